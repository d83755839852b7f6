r"""How far the weights can be compressed before the loss rises by a tolerance (arXiv:2510.12077).

For each scheme and each tolerance τ the most compression that keeps :math:`L(w) \le L(w^*) + \tau`: critical bits
:math:`\log_2 n_q` of a quantization to n_q levels, shares of singular values, of weights and of attention heads to
keep, and the largest relative noise. Theory: there is a two-part code whose redundancy is
:math:`\lambda \log n - (m - 1) \log\log n`, so that within one architecture critical bits grow linearly in λ.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from lightning_slt.components import Component, resolve_components
from lightning_slt.components.heads import head_components, why_no_heads
from lightning_slt.compression import Scheme, critical, factorization, noise, pruning, quantization, removal, rises
from lightning_slt.data import SamplingData
from lightning_slt.estimators.base import AtAnchor, View
from lightning_slt.results import Result
from lightning_slt.seeding import generator
from lightning_slt.types import Batch, Health, Params, is_amount

SchemeName = Literal["quantization", "factorization", "noise", "pruning", "heads"]

NUMBERS: dict[str, str] = {
    "quantization": "bits", "factorization": "rank", "noise": "sigma", "pruning": "kept", "heads": "heads"
}  # fmt: skip
"""What the critical number of each scheme is called: ``bits_0.02`` at a tolerance of 0.02 nats."""

CLIPS = (1.0, 0.8, 0.6, 0.45, 0.3)
"""Ranges of the grid that are tried, as shares of the largest weight."""

BATCH = 512
"""Samples at a time."""


@dataclass(frozen=True, kw_only=True)
class Compression(Result):
    """What compressing the weights at one anchor costs.

    Attributes:
        loss: At the anchor on the same samples, in nats.
        critical: Critical numbers by name: ``bits_0.02``, ``rank_0.02``, ``sigma_0.02``, ``kept_0.02``,
            ``heads_0.02``; NaN where there is none in the range of the dial.
        curves: By scheme, ``[setting, 2]``: the dial, and the rise of the loss there in nats.
        reasons: Why numbers are NaN, one line each.
        int8: Rise of the loss in torch's own int8 format; None where it was not asked for.
    """

    loss: float
    critical: Mapping[str, float]
    curves: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    reasons: tuple[str, ...] = ()
    int8: float | None = None

    def scalars(self) -> dict[str, float]:
        """The loss, all critical numbers, and int8's rise where it was asked for."""
        return {"loss": self.loss, **self.critical, **({} if self.int8 is None else {"int8": self.int8})}

    def arrays(self) -> dict[str, Tensor]:
        """The curves."""
        return dict(self.curves)


@dataclass(frozen=True, kw_only=True)
class Compressibility(AtAnchor):
    """Finds the critical compression by several schemes; without any chains, so that all processes do the same.

    Args:
        schemes: Of "quantization", "factorization", "noise", "pruning" and "heads".
        tolerances: By how much the loss may rise, in nats.
        components: Which weights: a pattern, a Component, or {name: Component}, of which the union counts; None for
            all that train and have two axes or more. Biases and norms are a small share of the weights that needs a
            large share of the precision; formats leave them as they are, and so does None. Heads are always whole.
        num_samples: On so many samples of the data, chosen at random once; None for all.
        clips: Ranges of the grid that are tried at every number of levels, as shares of the largest weight.
        per_tensor: A range of the grid for each tensor, as formats have it, in the place of one for all weights, as a
            code of the whole network with one precision has it.
        num_noise: Over so many noises the loss is averaged.
        exhaustive: Look at every setting of a dial, rather than at those that lead to the critical one; for whole
            curves, and where a loss that goes up and down along the dial is to be followed in all its turns.
        int8: Also the rise of the loss with all ``nn.Linear`` in torch's own dynamic int8 format, on the CPU.
        name: Key of the result.

    Raises:
        ValueError: For tolerances, counts or schemes that cannot be.

    >>> Compressibility(tolerances=(0.02,)).fields
    ('loss', 'bits_0.02', 'rank_0.02', 'sigma_0.02', 'kept_0.02')
    """

    schemes: Sequence[SchemeName] = ("quantization", "factorization", "noise", "pruning")
    tolerances: Sequence[float] = (0.02, 0.05, 0.1)
    components: str | Component | Mapping[str, Component] | None = None
    num_samples: int | None = 1024
    clips: Sequence[float] = CLIPS
    per_tensor: bool = False
    num_noise: int = 8
    exhaustive: bool = False
    int8: bool = False
    name: str = "compressibility"

    def __post_init__(self) -> None:
        """Check the arguments, and name the scalars."""
        _check(self)
        numbers = [f"{NUMBERS[scheme]}_{tolerance:g}" for scheme in self.schemes for tolerance in self.tolerances]
        object.__setattr__(self, "fields", ("loss", *numbers, *(["int8"] if self.int8 else [])))

    @property
    def needs_whole_weights(self) -> bool:
        """It compresses copies of whole tensors."""
        return True

    def measure(self, view: View) -> Compression:
        """Compress copies of the anchor's weights again and again."""
        losses = _Losses(view, self.num_samples)
        anchor = losses({})
        if not math.isfinite(anchor) or not all(bool(w.isfinite().all()) for w in view.weights.values()):
            return self._nothing(anchor)
        found: dict[str, float] = {}
        curves: dict[str, Tensor] = {}
        reasons: list[str] = []
        for name, scheme in _schemes(self, view, losses).items():
            if isinstance(scheme, str):
                found |= {f"{NUMBERS[name]}_{tolerance:g}": math.nan for tolerance in self.tolerances}
                reasons.append(f"{name}: {scheme}")
                continue
            seen = rises(scheme, losses, anchor_loss=anchor, tolerances=self.tolerances, exhaustive=self.exhaustive)
            curves[name] = torch.tensor([[scheme.dials[k], rise] for k, rise in seen.items()], dtype=torch.float64)
            for tolerance in self.tolerances:
                key, (dial, reason) = f"{NUMBERS[name]}_{tolerance:g}", critical(scheme, seen, tolerance)
                found[key] = math.log2(dial) if name == "quantization" else dial
                reasons += [f"{key}: {reason}"] if reason else []
        rise = losses.int8() - anchor if self.int8 else None
        if rise is not None and math.isnan(rise):
            reasons.append("int8: this build of torch has no dynamic quantization, or the network has no nn.Linear")
        health = Health(ok=True, warnings=("unreached",) if reasons else (), values={"unreached": len(reasons)})
        return Compression(loss=anchor, critical=found, curves=curves, reasons=tuple(reasons), int8=rise, health=health)

    def _nothing(self, anchor: float) -> Compression:
        health = Health(ok=False, failed=("finite",), values={"finite": 1.0})
        numbers = dict.fromkeys((f for f in self.fields if f not in ("loss", "int8")), math.nan)
        reasons = ("the loss or a weight at the anchor is not finite",)
        return Compression(
            loss=anchor, critical=numbers, reasons=reasons, int8=math.nan if self.int8 else None, health=health
        )


class _Losses:
    """The mean loss on the same samples at any weights."""

    def __init__(self, view: View, num_samples: int | None) -> None:
        self.view = view
        indices = _some(view.data, num_samples, seed=view.seed)
        self.batches = [(len(part), view.data.batch(part)) for part in torch.split(indices, BATCH)]

    def __call__(self, weights: Params) -> float:
        with torch.no_grad():
            return self._mean(lambda batch: self.view.loss(weights, batch))

    def int8(self) -> float:
        """The loss with torch's dynamically quantized linear layers; NaN where there is no such thing.

        Raises:
            TypeError: If the network cannot be copied.
        """
        module_loss = self.view.module_loss
        if module_loss.device.type != "cpu" or not any(isinstance(m, nn.Linear) for m in module_loss.module.modules()):
            return math.nan
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch announces the end of this path at every use
            module = copy.deepcopy(module_loss.module).to(module_loss.dtype)
            module.load_state_dict({**module_loss.weights, **module_loss.buffers}, strict=False)
            quantized = _dynamic_int8(module)
            if quantized is None:
                return math.nan
            return self._mean(lambda batch: module_loss.loss_fn(quantized, batch))

    def _mean(self, loss: Callable[[Batch], Tensor]) -> float:
        sums = [float(loss(batch).double().mean()) * count for count, batch in self.batches]
        return math.fsum(sums) / sum(count for count, _ in self.batches)


def _dynamic_int8(module: nn.Module) -> nn.Module | None:
    """Linear layers in torch's eager-mode int8 format; None where this build has none."""
    quantization = getattr(torch.ao, "quantization", None)
    if quantization is None or torch.backends.quantized.engine == "none":
        return None
    converted: nn.Module = quantization.quantize_dynamic(module, {nn.Linear}, dtype=torch.qint8)
    return converted


def _some(data: SamplingData, count: int | None, *, seed: int) -> Tensor:
    """Indices of the samples in use."""
    if count is None or count >= len(data):
        return torch.arange(len(data))
    return torch.randperm(len(data), generator=generator(seed, "compressibility"))[:count].sort().values


def _schemes(asked: Compressibility, view: View, losses: _Losses) -> dict[str, Scheme | str]:
    """What was asked for, or why it cannot be."""
    parts, whole = _chosen(asked.components, view)

    def on(compressed: Scheme) -> Scheme:
        """A scheme of parts as one of whole weights."""

        def candidates(index: int) -> Any:
            return (whole(some) for some in compressed.candidates(index))

        return Scheme(dials=compressed.dials, candidates=candidates, settle=compressed.settle, smooth=compressed.smooth)

    makers: dict[str, Callable[[], Scheme]] = {
        "quantization": lambda: on(quantization(parts, clips=asked.clips, per_tensor=asked.per_tensor)),
        "factorization": lambda: on(factorization(parts)),
        "noise": lambda: on(noise(parts, count=asked.num_noise, seed=view.seed)),
        "pruning": lambda: on(pruning(parts)),
        "heads": lambda: _heads(view, losses),
    }
    made: dict[str, Scheme | str] = {}
    for name in asked.schemes:
        try:
            made[name] = makers[name]()
        except ValueError as error:
            made[name] = str(error)
    return made


def _chosen(
    components: str | Component | Mapping[str, Component] | None, view: View
) -> tuple[Params, Callable[[Params], Params]]:
    """The weights to compress, those of a mask in a row, and a function that puts such into whole weights."""
    weights = view.weights
    every = reduce(or_, resolve_components(view.module, components).values())
    names = [name for name in every.parameters if components is not None or weights[name].ndim >= 2]
    if not names:
        raise ValueError(
            "no weight that trains has two axes or more, and biases and norms are compressed only where they are asked "
            "for: write Compressibility(components='*')"
        )
    masks = {name: mask.to(weights[name].device) for name, mask in every.masks.items() if name in names}
    parts = {name: weights[name][masks[name]] if name in masks else weights[name] for name in names}

    def whole(some: Params) -> Params:
        return {
            name: weights[name].masked_scatter(masks[name], part) if name in masks else part
            for name, part in some.items()
        }

    return parts, whole


def _heads(view: View, losses: _Losses) -> Scheme:
    """Heads left out: what belongs to them and to no head that is kept is zero, their share of the output among it."""
    heads = list(head_components(view.module).values())
    if not heads:
        raise ValueError(why_no_heads(view.module))

    def without(removed: Sequence[int]) -> Params:
        if not removed:
            return {}
        gone = reduce(or_, (heads[k] for k in removed))
        kept = [heads[k] for k in range(len(heads)) if k not in removed]
        shared = reduce(or_, kept) if kept else None
        result = {}
        for name in gone.parameters:
            mask = gone.masks.get(name, torch.ones_like(view.weights[name], dtype=torch.bool))
            if shared is not None and name in shared.parameters:
                still = shared.masks.get(name)
                mask = torch.zeros_like(mask) if still is None else mask & ~still
            result[name] = view.weights[name].masked_fill(mask.to(view.weights[name].device), 0.0)
        return result

    return removal(len(heads), without, losses)


def _check(asked: Compressibility) -> None:
    for what, known in (("schemes", get_args(SchemeName)), ("tolerances", None), ("clips", None)):
        values = getattr(asked, what)
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise ValueError(f"{what} must be a tuple of at least one, got {values!r}")
        if len(set(values)) != len(values):
            raise ValueError(f"{what} holds one twice: {values!r}")
        if known is not None and (unknown := [v for v in values if v not in known]):
            raise ValueError(f"{unknown[0]!r} is no scheme; there are {', '.join(known)}")
    if wrong := [t for t in asked.tolerances if not is_amount(t)]:
        raise ValueError(f"tolerances are nats, zero or more, got {wrong[0]!r}; write tolerances=(0.02,)")
    if wrong := [c for c in asked.clips if not is_amount(c) or not 0 < c <= 1]:
        raise ValueError(f"clips are shares of the largest weight, above 0 and up to 1, got {wrong[0]!r}")
    for what, count in (("num_samples", asked.num_samples), ("num_noise", asked.num_noise)):
        if what == "num_samples" and count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"{what} must be a whole number of at least 1, got {count!r}")
