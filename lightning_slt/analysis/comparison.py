r"""Two networks, or two checkpoints, told apart by what was estimated of them (arXiv:2502.05475; 2501.16496).

Scalars (LLCs, refined ones) by their difference with its error; kernels and response matrices by how well they align:

.. math:: \mathrm{CKA}(A, B) = \frac{\langle HAH, HBH \rangle}{\|HAH\| \, \|HBH\|}, \qquad H = 1 - \tfrac1n 11^T

(centred kernel alignment, Cortes et al. 2012), beside the alignment that a permutation of samples would give, and
beside that of networks of one kind, which differ in their seed alone.

Which of two networks the posterior prefers is told by the free energy ``n L_n + λ log n``: at n samples b is preferred
where ``n Δℓ + Δλ log n < 0``, Δ = b − a. With a loss higher and an LLC lower it is preferred up to the n at which
``log(n)/n = −Δℓ/Δλ``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_slt.gram import normalized
from lightning_slt.types import Estimate, student_t_cdf

BLOCKS = 10
"""Parts of a probe that are left out in turn for the error of an alignment."""


class Difference(NamedTuple):
    """A scalar of two networks.

    Attributes:
        first: Of a.
        second: Of b.
        difference: b − a.
        stderr: Its standard error: from the differences chain by chain, which share noise and minibatches.
        p: Of no difference, two-sided, by Student's t.
        ok: Whether both estimates passed their checks.
    """

    first: float
    second: float
    difference: float
    stderr: float
    p: float
    ok: bool

    @property
    def z(self) -> float:
        """Difference over its standard error; 0 where there is none."""
        if self.difference == 0:
            return 0.0
        return self.difference / self.stderr if self.stderr > 0 else math.nan


class Alignment(NamedTuple):
    """Two kernels, or two response matrices, of the same samples.

    Attributes:
        cka: Centred kernel alignment, 1 for equal ones up to a factor.
        stderr: From leaving out a tenth of the samples in turn (jackknife); of the samples, not of the chains.
        p: Share of permutations of the samples that align as well or better: small where they have anything in common.
        by_chance: Mean alignment of these permutations.
        baseline: Alignments of a with others of its kind ``[other]``; what seeds alone make.
        baseline_z: How many standard deviations of these b lies below them; NaN for fewer than three.
    """

    cka: float
    stderr: float
    p: float
    by_chance: float
    baseline: tuple[float, ...] = ()
    baseline_z: float = math.nan

    @property
    def differs(self) -> bool | None:
        """Whether b is less like a than any other of a's kind; None without others."""
        return self.cka < min(self.baseline) if self.baseline else None


class Preference(NamedTuple):
    """Which of two networks the free energy favours.

    Attributes:
        loss: Δℓ = b − a of the mean losses on the sampling data, in nats.
        llc: Δλ̂.
        llc_stderr: Its error.
        num_samples: n.
        free_energy: ``n Δℓ + Δλ̂ log n`` in nats; below 0 favours b.
        stderr: Of that, ``log n`` times the error of Δλ̂: Δℓ of the very samples has none.
        switch: The n at which the preference switches; NaN where it does not, because the same one is better in both.
        switch_range: That n at Δλ̂ minus and plus its error.
    """

    loss: float
    llc: float
    llc_stderr: float
    num_samples: int
    free_energy: float
    stderr: float
    switch: float
    switch_range: tuple[float, float]


def difference(first: Estimate, second: Estimate) -> Difference:
    """Two estimates, paired chain by chain where they have as many.

    Chains of one index share seed, noise and minibatches at equal settings, so that their differences vary less than
    independent chains would; where they do not, pairing is no worse.
    """
    one, two = first.per_chain.double(), second.per_chain.double()
    ok = first.health.ok and second.health.ok
    if one.shape == two.shape:
        pairs = (two - one)[(two - one).isfinite()]
        value, degrees = float(pairs.mean()), len(pairs) - 1
        stderr = float(pairs.std()) / math.sqrt(len(pairs)) if degrees > 0 else math.nan
    else:
        value, stderr = second.mean - first.mean, math.hypot(first.stderr, second.stderr)
        degrees = min(int(one.isfinite().sum()), int(two.isfinite().sum())) - 1
    return Difference(first.mean, second.mean, value, stderr, _two_sided(value, stderr, degrees), ok)


def _two_sided(value: float, stderr: float, degrees: int) -> float:
    if not (stderr > 0 and degrees > 0):
        return math.nan
    return 2 * (1 - student_t_cdf(abs(value) / stderr, degrees=degrees))


def align(
    first: Tensor,
    second: Tensor,
    *,
    others: Sequence[Tensor] = (),
    permutations: int = 999,
    seed: int = 0,
) -> Alignment:
    """Align two kernels of the same samples.

    Args:
        first: A factor F of a's kernel ``FᵀF`` ``[feature, sample]``: of a loss kernel, or a response matrix with
            components in its rows.
        second: The same of b; features need not correspond.
        others: The same of others of a's kind, for the baseline.
        permutations: Of the samples, for the null.
        seed: Of these.

    Raises:
        ValueError: If they are not of the same number of samples.
    """
    if len({factor.shape[1] for factor in (first, second, *others)}) > 1:
        counts = [factor.shape[1] for factor in (first, second, *others)]
        raise ValueError(f"kernels of {counts} samples cannot be aligned; take the same probe for all networks")
    one, two = first.double(), second.double()
    found = cka(one, two)
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(one.shape[1], generator=generator) for _ in range(permutations)]
    chance = torch.tensor([cka(one, two[:, order]) for order in orders])
    baseline = tuple(cka(one, other.double()) for other in others)
    spread = torch.tensor(baseline).std() if len(baseline) > 2 else torch.tensor(math.nan)
    return Alignment(
        cka=found,
        stderr=_jackknife(one, two),
        p=float(1 + (chance >= found).sum()) / (1 + permutations),
        by_chance=float(chance.mean()) if permutations else math.nan,
        baseline=baseline,
        baseline_z=float((torch.tensor(baseline).mean() - found) / spread),
    )


def cka(first: Tensor, second: Tensor) -> float:
    """Centred kernel alignment of two factors ``[feature, sample]``; no ``[sample, sample]`` matrix is made.

    >>> a = torch.eye(3)
    >>> round(cka(a, 2 * a), 6)
    1.0
    """
    one, two = (factor - factor.mean(1, keepdim=True) for factor in (first, second))
    norm = (one @ one.T).norm() * (two @ two.T).norm()
    return float((one @ two.T).square().sum() / norm) if norm > 0 else math.nan


def kernel_features(factor: Tensor) -> Tensor:
    """Factor of R from that of K: no sample counts more because its loss varies more."""
    return normalized(factor.double())


def _jackknife(first: Tensor, second: Tensor) -> float:
    r"""``sqrt((B−1)/B Σ_b (x_b − x̄)²)`` over the alignments with one of B parts of the samples left out."""
    count = first.shape[1]
    blocks = min(BLOCKS, count)
    part = torch.arange(count) % blocks
    left = torch.tensor([cka(first[:, part != b], second[:, part != b]) for b in range(blocks)], dtype=torch.float64)
    return float(((blocks - 1) / blocks * (left - left.mean()).square().sum()).sqrt())


def preference(loss: float, llc: float, llc_stderr: float, *, num_samples: int) -> Preference:
    """Which network the free energy favours, and from which n on.

    Args:
        loss: Δℓ = b − a, in nats.
        llc: Δλ̂.
        llc_stderr: Its standard error.
        num_samples: n, at least 2.

    >>> found = preference(0.001, -5.0, 0.5, num_samples=1000)
    >>> round(found.free_energy, 2), round(found.switch)
    (-33.54, 54533)
    """
    log_n = math.log(num_samples)
    ends = sorted(switch(loss, llc + sign * llc_stderr) for sign in (-1, 1))
    return Preference(
        loss=loss,
        llc=llc,
        llc_stderr=llc_stderr,
        num_samples=num_samples,
        free_energy=num_samples * loss + llc * log_n,
        stderr=log_n * llc_stderr,
        switch=switch(loss, llc),
        switch_range=(ends[0], ends[1]),
    )


def switch(loss: float, llc: float) -> float:
    """The larger n with ``n Δℓ + Δλ log n = 0``, from which on the loss decides; NaN where there is none.

    ``log(n)/n`` has its maximum 1/e at n = e: where −Δℓ/Δλ is larger, or has the wrong sign, nothing switches.
    """
    ratio = -loss / llc if llc else math.nan
    if not 0 < ratio <= 1 / math.e:
        return math.nan
    low, high = math.e, math.e
    while math.log(high) / high > ratio:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if math.log(middle) / middle > ratio else (low, middle)
    return (low + high) / 2
