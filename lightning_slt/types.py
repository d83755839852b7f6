r"""The words that every layer shares: weights, losses, draws, health and estimates.

Axes come in this order everywhere: ``[chain, draw, sample, token]``. A parameter leaf of several chains is
``[chain, *shape]``; all free coordinates of a chain, laid out one after another, form a row of a *position*
``[chain, coordinate]``. Losses are in nats; the LLC is dimensionless.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]
"""Weights by parameter name."""

Batch = Any
"""One collated batch: tensors, or any nesting of dicts, lists and tuples of tensors."""

LossFn = Callable[[nn.Module, Batch], Tensor]
"""``loss_fn(module, batch)``: losses ``[sample]`` or ``[sample, token]``, or their mean ``[]``, in nats."""

FunctionalLoss = Callable[[Params, Batch], Tensor]
"""The same as a function of the weights alone."""

LEVEL = 0.9
"""Coverage of an estimate's band wherever it is shown."""


def is_amount(value: object) -> bool:
    """Whether a setting is a finite number, zero or more.

    >>> is_amount(0.0), is_amount(-1), is_amount(float("nan")), is_amount("1e-3")
    (True, False, False, False)
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return 0 <= float(value) < math.inf


class Product(NamedTuple):
    """A matrix of each chain as its two factors, to be added somewhere without being laid out first.

    Attributes:
        left: ``[chain, row, inner]``.
        right: ``[chain, inner, column]``.
    """

    left: Tensor
    right: Tensor

    @property
    def dense(self) -> Tensor:
        """The product ``[chain, row, column]``."""
        return torch.stack([torch.mm(a, b) for a, b in zip(self.left, self.right, strict=True)])

    def add_to(self, target: Tensor, *, scale: float) -> None:
        """``target += scale · left right`` in place, chain by chain, so that a chain's bits are its own.

        In float64 some processors round by where in memory the target begins, which differs from chain to chain.
        """
        for matrix, a, b in zip(target, self.left, self.right, strict=True):
            if target.dtype == torch.float64:
                matrix.add_(torch.mm(a, b), alpha=scale)
            else:
                matrix.addmm_(a, b, alpha=scale)


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One kept position of every chain of a chunk, with the losses measured there.

    Attributes:
        chains: Indices of the chains in this draw.
        index: Which kept draw this is, from 0.
        step: How many sampler steps led here, from 1; the anchor itself (step 0) is never a draw.
        loss: Minibatch loss at the draw ``[chain]``, in nats.
        anchor_loss: Loss at the anchor on the same minibatches ``[chain]``, in nats.
        probes: Losses on each named probe ``[chain, sample]`` or ``[chain, sample, token]``, in nats.
        position: Free coordinates ``[chain, coordinate]``. A view of the running chains: clone it to keep it.
        motion: Norms of the step from here, where they were measured.
    """

    chains: tuple[int, ...]
    index: int
    step: int
    loss: Tensor
    anchor_loss: Tensor
    position: Tensor
    probes: Mapping[str, Tensor] = field(default_factory=dict)
    motion: Motion | None = None


@dataclass(frozen=True, kw_only=True)
class Motion:
    r"""How a chain moves at one draw, each ``[chain]``.

    Attributes:
        distance: ``‖w − w*‖`` over the free coordinates.
        gradient_norm: ``‖nβ ∇L‖`` on a minibatch.
        localization_norm: ``‖γ (w − w*)‖``.
        noise_norm: Norm of a step's noise in the units of these two; None where the sampler's steps have no such part.
        drift_to_noise: Norm of the deterministic part of the step over the norm of its noise; None where the
            sampler's steps have no such parts.
        acceptance: Probability that a Metropolis correction would accept the step that led here; None where the step
            is no proposal of known density.
        heating: What length of step and minibatch noise add to ``E[(w − w*)·nβ∇L]``: on a quadratic twice what they
            add to the LLC. None for exact samplers.
    """

    distance: Tensor
    gradient_norm: Tensor
    localization_norm: Tensor
    noise_norm: Tensor | None = None
    drift_to_noise: Tensor | None = None
    acceptance: Tensor | None = None
    heating: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Health:
    """What the checks said of one estimate.

    Attributes:
        ok: True where no check failed.
        failed: Names of the checks that failed: the number cannot be relied on.
        warnings: Names of the checks that call for a look, without making the number unreliable.
        values: The measured value behind each check, by name.
        dead_chains: Chains left out, each with the sampler step at which it was first seen not finite.
    """

    ok: bool
    failed: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    values: Mapping[str, float] = field(default_factory=dict)
    dead_chains: Mapping[int, int] = field(default_factory=dict)

    def __str__(self) -> str:
        """One line for tables and logs."""
        if not self.failed and not self.warnings:
            return "ok"
        words = [f"{name}={self.values.get(name, float('nan')):.3g}" for name in self.failed]
        words += [f"({name}={self.values.get(name, float('nan')):.3g})" for name in self.warnings]
        if self.dead_chains:
            words.append("dead chains " + ", ".join(f"{c} at step {s}" for c, s in self.dead_chains.items()))
        return ("ok " if self.ok else "UNRELIABLE ") + " ".join(words)


@dataclass(frozen=True, kw_only=True, repr=False)
class Estimate:
    r"""A scalar with its error, chain by chain.

    Attributes:
        mean: Mean over the chains that finished; NaN where none did.
        stderr: Standard error of ``mean`` from the spread between chains; NaN below two chains.
        per_chain: Value of each chain ``[chain]``; NaN for a dead one.
        health: What the checks said.
        traces: Whole traces ``[chain, draw]`` by name, where they were asked for.
        settings: What it was made with, a :class:`lightning_slt.calibration.Settings`: nβ, γ, ε, resolution, counts.
            None where nobody filled it in, as in records, where one set stands beside all estimates of a reading.
        diagnostics: Whether loggers get all of ``health.values``.

    >>> print(Estimate(mean=2.0312, stderr=0.0517, per_chain=torch.tensor([2.0, 2.1]), health=Health(ok=True)))
    2.031 ± 0.052 of 2 chains; ok
    >>> {"llc": Estimate(mean=2.0312, stderr=0.0517, per_chain=torch.tensor([2.0, 2.1]), health=Health(ok=True))}
    {'llc': Estimate(2.031 ± 0.052 of 2 chains; ok)}
    """

    mean: float
    stderr: float
    per_chain: Tensor
    health: Health
    traces: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Any = None
    diagnostics: bool = False

    def __str__(self) -> str:
        """The number, its error and its health in one line, and what it was made with in a second one."""
        return self._line() if self.settings is None else f"{self._line()}\n    {self.settings}"

    def __repr__(self) -> str:
        """The first of these lines, so that a dict of results can be read."""
        return f"Estimate({self._line()})"

    def _line(self) -> str:
        chains, live = len(self.per_chain), int(torch.isfinite(self.per_chain).sum())
        of = f"{chains} chains" if live == chains else f"{live} of {chains} chains"
        return f"{_with_error(self.mean, self.stderr)} of {of}; {self.health}"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        r"""Central interval that covers the expectation with probability ``level``.

        ``mean ± t · stderr`` with Student's t of C − 1 degrees of freedom, C the number of live chains:
        normal quantiles would cover only 80 % at a nominal 90 % with four chains.

        Args:
            level: Coverage, between 0 and 1.

        Returns:
            Lower and upper end; NaN where ``stderr`` is NaN.

        Raises:
            ValueError: If ``level`` is not between 0 and 1.

        >>> import torch
        >>> e = Estimate(mean=2.0, stderr=0.5, per_chain=torch.tensor([1.5, 2.5]), health=Health(ok=True))
        >>> tuple(round(x, 3) for x in e.interval(0.9))
        (-1.157, 5.157)
        """
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}; write e.g. interval(0.9)")
        degrees = int(torch.isfinite(self.per_chain).sum()) - 1
        half = student_t_quantile(0.5 + level / 2, degrees=degrees) * self.stderr if degrees >= 1 else float("nan")
        return self.mean - half, self.mean + half


def _with_error(value: float, error: float) -> str:
    """Both to the second digit of the error, without exponents where they are of ordinary size."""
    if not (math.isfinite(value) and 1e-4 <= error < 1e5):
        return f"{value:.4g} ± {error:.2g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"


def student_t_cdf(t: float, *, degrees: int) -> float:
    """Distribution function of Student's t for a whole number of degrees of freedom (Abramowitz & Stegun 26.7.3-4).

    >>> round(student_t_cdf(2.0, degrees=3), 6)
    0.930337
    """
    theta = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(theta), math.sin(theta)
    odd = degrees % 2 == 1
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for k in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    area = 2 / math.pi * (theta + (sine * total if degrees > 1 else 0.0)) if odd else sine * total
    return 0.5 + area / 2


def student_t_quantile(probability: float, *, degrees: int) -> float:
    """Quantile of Student's t by bisection of its distribution function.

    >>> round(student_t_quantile(0.975, degrees=7), 4)
    2.3646
    """
    low, high = -1e9, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        if student_t_cdf(middle, degrees=degrees) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2
