r"""Ways to compress weights, each with a dial, and the most compression that a loss bears (arXiv:2510.12077).

A network bears a dial's setting where :math:`L(\text{compressed}) \le L(w^*) + \tau`, τ being the tolerance in nats.
The critical setting is the end of the contiguous range of such settings, seen from the fine side: compressed weights
can recover at some coarse setting by chance, and that is no compression to rely on.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_slt.seeding import generator
from lightning_slt.types import Params

PER_OCTAVE = 16
"""Settings of a dial for every factor of two."""

FINEST_LEVELS, FINEST_NOISE, COARSEST_NOISE, FEWEST_KEPT = 256, 2.0**-10, 4.0, 2.0**-10
"""Ends of the dials: levels of a grid, relative standard deviations of noise, share of weights kept."""

EVERY_LEVEL = 32
"""Grids of up to so many levels are all among the settings."""


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One way to compress the weights of one network.

    Attributes:
        dials: Its settings, from the finest to the coarsest.
        candidates: Compressed weights at one setting, by its index: one for each clip factor, or for each noise.
        settle: What becomes of the candidates' losses: their minimum, or their mean.
        smooth: Whether the loss rises steadily along the dial, so that a crossing may be found by bisection.
        discrete: Whether settings between two neighbours mean nothing.
    """

    dials: tuple[float, ...]
    candidates: Callable[[int], Iterator[Params]]
    settle: Callable[[Sequence[float]], float] = min
    smooth: bool = True
    discrete: bool = False


class Critical(NamedTuple):
    """The most compression that a tolerance allows.

    Attributes:
        dial: The setting, between two of the scheme's by interpolation; NaN where there is none in its range.
        reason: Why there is none, or nothing.
    """

    dial: float
    reason: str = ""


def quantized(weights: Mapping[str, Tensor], levels: int, *, clip: float = 1.0, per_tensor: bool = False) -> Params:
    r"""Every weight at the nearest of ``n_q`` levels, evenly spaced over a symmetric range.

    .. math:: -m + \frac{2m}{n_q - 1} k, \quad k = 0 \dots n_q - 1, \quad m = \text{clip} \cdot \max |w|

    with one m for all, as a code of the whole network has one precision, or with one of its own for each tensor. An
    even number of levels has none at zero.

    >>> quantized({"w": torch.tensor([-1.0, 0.1, 0.6])}, 3)["w"]
    tensor([-1.,  0.,  1.])
    """
    largest = {name: w.abs().max() if w.numel() else w.new_zeros(()) for name, w in weights.items()}
    compressed = {}
    for name, w in weights.items():
        m = clip * (largest[name] if per_tensor else max(largest.values()).to(w.device))
        spacing = 2 * m / (levels - 1)
        k = ((w.clamp(-m, m) + m) / spacing).round()
        compressed[name] = torch.where(spacing > 0, spacing * k - m, w)
    return compressed


def quantization(weights: Mapping[str, Tensor], *, clips: Sequence[float], per_tensor: bool = False) -> Scheme:
    """Fewer and fewer levels, the range chosen for the loss among some shares of the largest weight, anew each time.

    The loss goes up and down with the parity of a small number of levels, so that it is swept there.
    """
    few = range(2, EVERY_LEVEL + 1)
    octaves = math.log2(FINEST_LEVELS / EVERY_LEVEL)
    many = {round(EVERY_LEVEL * 2 ** (k / PER_OCTAVE)) for k in range(round(octaves * PER_OCTAVE) + 1)}
    dials = sorted({*few, *many}, reverse=True)
    return Scheme(
        dials=tuple(map(float, dials)),
        candidates=lambda index: (quantized(weights, dials[index], clip=clip, per_tensor=per_tensor) for clip in clips),
        smooth=False,
    )


def factorization(weights: Mapping[str, Tensor]) -> Scheme:
    r"""Truncated singular value decompositions; the dial is the share of all singular values that is kept.

    Of every matrix ``k = ⌈s · r⌉`` of its r singular values, the same s for all. Tensors of more than two axes count
    as matrices of their first axis by all others.

    Args:
        weights: Those of fewer than two axes are left as they are.

    Raises:
        ValueError: If none has two axes.
    """
    matrices = {name: w for name, w in weights.items() if w.ndim >= 2 and w.numel()}
    if not matrices:
        raise ValueError("factorization needs whole weights with two axes or more, and there is none")
    parts = {name: torch.linalg.svd(w.flatten(1), full_matrices=False) for name, w in matrices.items()}
    full = {name: len(s) for name, (_, s, _) in parts.items()}
    shares = [2 ** (-k / PER_OCTAVE) for k in range(math.ceil(PER_OCTAVE * math.log2(max(full.values()))) + 1)]
    ranks = list(dict.fromkeys(tuple(math.ceil(s * r - 1e-9) for r in full.values()) for s in shares))

    def candidates(index: int) -> Iterator[Params]:
        yield {
            name: (u[:, :k] * s[:k] @ v[:k]).view_as(matrices[name]) if k < full[name] else matrices[name]
            for (name, (u, s, v)), k in zip(parts.items(), ranks[index], strict=True)
        }

    return Scheme(dials=tuple(sum(k) / sum(full.values()) for k in ranks), candidates=candidates)


def noise(weights: Mapping[str, Tensor], *, count: int, seed: int) -> Scheme:
    r"""Gaussian noise ``w + σ · rms(w) · ξ`` by tensor, losses averaged over some ξ that are the same at every σ.

    On a loss :math:`\tfrac12 \sum_i h_i (w_i - w^*_i)^2` its expected rise is
    :math:`\tfrac12 \sigma^2 \sum_i h_i \,\text{rms}^2`.
    """
    octaves = round(PER_OCTAVE * math.log2(COARSEST_NOISE / FINEST_NOISE))
    dials = [FINEST_NOISE * 2 ** (k / PER_OCTAVE) for k in range(octaves + 1)]

    def noisy(sigma: float, index: int) -> Params:
        g = generator(seed, "compression noise", index)
        xi = {name: torch.randn(w.shape, generator=g, dtype=w.dtype).to(w.device) for name, w in weights.items()}
        return {name: w + sigma * w.square().mean().sqrt() * xi[name] for name, w in weights.items()}

    return Scheme(
        dials=tuple(dials),
        candidates=lambda index: (noisy(dials[index], k) for k in range(count)),
        settle=lambda losses: math.fsum(losses) / len(losses),
    )


def pruning(weights: Mapping[str, Tensor]) -> Scheme:
    """The smallest weights of all tensors set to zero; the dial is the share that is kept. Equal ones are kept."""
    sizes = torch.cat([w.abs().flatten() for w in weights.values()]).sort(descending=True).values
    octaves = math.ceil(-PER_OCTAVE * math.log2(max(FEWEST_KEPT, 1 / len(sizes))))
    kept = list(dict.fromkeys(math.ceil(len(sizes) * 2 ** (-k / PER_OCTAVE) - 1e-9) for k in range(octaves + 1)))

    def candidates(index: int) -> Iterator[Params]:
        limit = sizes[kept[index] - 1]
        yield {name: torch.where(w.abs() >= limit, w, 0.0) for name, w in weights.items()}

    return Scheme(dials=tuple(k / len(sizes) for k in kept), candidates=candidates)


def removal(count: int, without: Callable[[Sequence[int]], Params], loss: Callable[[Params], float]) -> Scheme:
    """Parts left out, such as attention heads, in the order of the loss without each alone; the dial is the share kept.

    Args:
        count: Parts.
        without: Weights without some of them.
        loss: Of weights.
    """
    alone = [loss(without([part])) for part in range(count)]
    order = sorted(range(count), key=lambda part: (math.isnan(alone[part]), alone[part]))

    def candidates(index: int) -> Iterator[Params]:
        yield without(order[:index])

    dials = tuple((count - removed) / count for removed in range(count + 1))
    return Scheme(dials=dials, candidates=candidates, smooth=False, discrete=True)


def rises(
    scheme: Scheme,
    loss: Callable[[Params], float],
    *,
    anchor_loss: float,
    tolerances: Sequence[float],
    exhaustive: bool = False,
) -> dict[int, float]:
    """Rises of the loss at as many settings as the critical ones need.

    Walks in steps of a factor of two from the fine side until a tolerance is passed, then looks between the last two
    settings: by bisection where the loss rises steadily, else at one after another.

    Args:
        scheme: How to compress.
        loss: Of weights, in nats.
        anchor_loss: Of the weights as they are.
        tolerances: In nats.
        exhaustive: Every setting instead.

    Returns:
        ``{index of the setting: L − L(w*)}``, in the order of the settings; infinite where the loss is no number.
    """
    seen: dict[int, float] = {}

    def look(index: int) -> float:
        if index not in seen:
            rise = scheme.settle([_number(loss(w)) for w in scheme.candidates(index)]) - anchor_loss
            seen[index] = rise
        return seen[index]

    last = len(scheme.dials) - 1
    for index in range(last + 1) if exhaustive else ():
        look(index)
    octaves = list(_octaves(scheme.dials))
    for tolerance in sorted(tolerances):
        if all(look(index) <= tolerance for index in octaves):
            continue
        while (following := _next(seen, tolerance, octaves, smooth=scheme.smooth)) is not None:
            look(following)
    return dict(sorted(seen.items()))


def critical(scheme: Scheme, found: Mapping[int, float], tolerance: float) -> Critical:
    r"""Where the rise of the loss first passes the tolerance, seen from the fine side.

    Between the last setting ``d₀`` that is borne and the first ``d₁`` that is not, with rises ``e₀ ≤ τ < e₁``,

    .. math:: \log d = \log d_0 + \frac{\tau - e_0}{e_1 - e_0} (\log d_1 - \log d_0)

    and ``d = d₀`` where ``e₁`` is infinite or the dial is discrete.
    """
    indices = sorted(found)
    first = next((place for place, index in enumerate(indices) if not found[index] <= tolerance), None)
    if first is None:
        return Critical(math.nan, f"even {scheme.dials[indices[-1]]:.3g} stays within the tolerance")
    if first == 0:
        return Critical(math.nan, f"{scheme.dials[0]:.3g} already costs {found[indices[0]]:.3g} nats")
    before, after = indices[first - 1], indices[first]
    if scheme.discrete or math.isinf(found[after]):
        return Critical(scheme.dials[before])
    share = (tolerance - found[before]) / (found[after] - found[before])
    log_before, log_after = math.log(scheme.dials[before]), math.log(scheme.dials[after])
    return Critical(math.exp(log_before + share * (log_after - log_before)))


def _number(value: float) -> float:
    """A network whose loss is no number has not borne the compression."""
    return math.inf if math.isnan(value) else value


def _octaves(dials: Sequence[float]) -> Iterator[int]:
    """Indices of the first setting, of the next by a factor of two or more, and so on; the last one in the end."""
    ratios = [abs(math.log2(dial / dials[0])) if dial > 0 else math.inf for dial in dials]
    place, octave = 0, 0.0
    while place < len(dials) - 1:
        yield place
        octave = math.floor(ratios[place] + 1e-9) + 1.0
        place = bisect_left(ratios, octave - 1e-9, lo=place + 1)
    yield len(dials) - 1


def _next(seen: Mapping[int, float], tolerance: float, octaves: Sequence[int], *, smooth: bool) -> int | None:
    """The next setting to look at within the octave that holds the first failure; None where that is known."""
    fails = min(index for index, rise in seen.items() if not rise <= tolerance)
    start = max((index for index in octaves if index < fails), default=fails)
    unseen = [index for index in range(start + 1, fails) if index not in seen]
    rising = [seen[index] for index in range(start, fails + 1) if index in seen]
    if not smooth or any(a > b for a, b in pairwise(rising)):
        return unseen[0] if unseen else None
    passes = max((index for index in seen if index < fails), default=fails)
    return (passes + fails) // 2 if fails - passes > 1 else None
