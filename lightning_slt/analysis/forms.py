r"""The shape of a trajectory: curvature, and the turns that mark candidate forms (arXiv:2402.02364, 2501.17745).

Read shapes with care. Principal components of any smooth curve, of a random walk even, oscillate: the k-th is close to
half k waves of a cosine, and two of them draw a Lissajous figure, turns and all (Antognini & Sohl-Dickstein 2018;
:func:`lissajous` measures it). Distances from reference predictors are no such artefact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

CONTRAST = 1.5
"""By how much a vertex must be more curved than what lies between it and the next tighter one."""


class Osculation(NamedTuple):
    """The circle that fits a curve best at each of its points; NaN at both ends.

    Attributes:
        curvature: ``[point]``, one over the circle's radius; NaN where the curve stands still.
        centres: ``[point, axis]``; NaN where it is straight.
    """

    curvature: Tensor
    centres: Tensor


def osculation(points: Tensor) -> Osculation:
    r"""Osculating circles by central differences, in any number of dimensions.

    .. math:: r' = \tfrac12 (c_{t+1} - c_{t-1}), \quad r'' = c_{t+1} - 2 c_t + c_{t-1}, \quad
              \kappa = \frac{|r' \times r''|}{|r'|^3}

    With n the part of r″ across r′, ``|r' × r''| = |r'| |n|``, and the centre lies at ``c + n |r'|² / |n|²``.

    Args:
        points: ``[point, axis]``, in order.

    >>> angle = torch.arange(5).double() / 100
    >>> round(float(osculation(2 * torch.stack([angle.cos(), angle.sin()], 1)).curvature[2]), 4)
    0.5
    """
    c = points.double()
    curvature, centres = c.new_full((len(c),), math.nan), torch.full_like(c, math.nan)
    first, second = (c[2:] - c[:-2]) / 2, c[2:] - 2 * c[1:-1] + c[:-2]
    length = first.square().sum(1)
    across = second - ((first * second).sum(1) / length)[:, None] * first
    bend = across.square().sum(1)
    curvature[1:-1] = bend.sqrt() / length
    centres[1:-1] = c[1:-1] + across * (length / bend)[:, None]
    return Osculation(curvature, centres)


def smoothed(points: Tensor, width: float) -> Tensor:
    """Gaussian means over neighbouring points, weights adding up to 1 at the ends too.

    Args:
        points: ``[point, axis]``.
        width: Standard deviation in points; 0 leaves them as they are.
    """
    if width == 0:
        return points.double()
    index = torch.arange(len(points)).double()
    weights = (-((index[:, None] - index) / width).square() / 2).softmax(1)
    return weights @ points.double()


@dataclass(frozen=True)
class Form:
    """A turn of a trajectory: a candidate form.

    Attributes:
        kind: "cusp" where it turns back, by more than a right angle at one reading; "vertex" where its curvature is
            largest.
        index: Which point.
        turning: Angle between the ways to and from it, in degrees.
        curvature: One over the radius of the osculating circle.
    """

    kind: Literal["cusp", "vertex"]
    index: int
    turning: float
    curvature: float


def forms(points: Tensor, *, contrast: float = CONTRAST) -> list[Form]:
    """Cusps and vertices of a trajectory, in order.

    Args:
        points: ``[point, axis]``; smooth them first where readings are noisy, see :func:`smoothed`.
        contrast: A vertex counts where its curvature is this many times the least one on the way to the next tighter
            turn, on either side: a circle has none, an ellipse of axes 2 : 1 the two at its ends.
    """
    c = points.double()
    ways = c.diff(dim=0)
    cosines = torch.cosine_similarity(ways[:-1], ways[1:], dim=1, eps=1e-300)
    curvature = osculation(c).curvature[1:-1]
    found = []
    for at in range(len(cosines)):
        back = bool(cosines[at] < 0)
        if back or _stands_out(curvature, at, contrast):
            kind: Literal["cusp", "vertex"] = "cusp" if back else "vertex"
            turning = math.degrees(math.acos(max(-1.0, min(1.0, float(cosines[at])))))
            found.append(Form(kind, at + 1, turning, float(curvature[at])))
    return found


def _stands_out(curvature: Tensor, at: int, contrast: float) -> bool:
    """Whether a curvature is a peak above the valleys that separate it from any higher one; ends are no valleys."""
    height = float(curvature[at])
    for side in (curvature[:at].flip(0), curvature[at + 1 :]):
        higher = (side > height).nonzero()
        valley = side[: int(higher[0])] if len(higher) else side
        if not len(valley) or not height >= contrast * float(valley.nan_to_num(math.inf).min()):
            return False
    return height > 0


def lissajous(points: Tensor) -> Tensor:
    r"""How far each axis is what a random walk would show: squared correlation with half k waves ``[axis]``.

    .. math:: c_t^{(k)} \propto \cos\big(\pi k (t + \tfrac12) / T\big), \qquad
              \text{share of variance } 6 / (\pi^2 k^2)

    are the principal components of a random walk in many dimensions (Antognini & Sohl-Dickstein 2018). Near 1, turns of
    the curve say nothing; a curve that moves one way with changing speed is near 1, too.

    Args:
        points: ``[point, axis]``, axes by falling share.

    >>> steps = torch.randn(50, 2000, generator=torch.Generator().manual_seed(0)).cumsum(0)
    >>> u, s, _ = torch.linalg.svd(steps - steps.mean(0), full_matrices=False)
    >>> bool((lissajous((u * s)[:, :2]) > 0.95).all())
    True
    """
    waves = half_waves(*points.shape)
    centred = points.double() - points.double().mean(0)
    return (centred * waves).sum(0).square() / (centred.square().sum(0) * waves.square().sum(0))


def half_waves(count: int, axes: int) -> Tensor:
    """``cos(π k (t + ½) / T)`` for k from 1 on: orthogonal, and of mean 0 ``[point, axis]``."""
    time, waves = torch.arange(count).double() + 0.5, torch.arange(axes).double() + 1
    return (math.pi / count * torch.outer(time, waves)).cos()
