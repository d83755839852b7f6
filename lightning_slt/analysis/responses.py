r"""What a response matrix says: standardized, and taken apart into modes (arXiv:2504.18274, section 4).

Columns are put on one scale, as two-chain susceptibilities of different components are not comparable; what all
components share is then taken from every row. Never read the first mode of the raw matrix as a module: it is the mean
response, which all components have alike.

.. math:: \chi'_{tc} = \frac{\chi_{tc} - \bar\chi_c}{s_c}, \qquad \chi''_{tc} = \chi'_{tc} - \bar\chi'_t,
          \qquad \chi'' = U \Sigma V^T
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MODES = 4
"""Looked at where nobody says how many."""


class Modes(NamedTuple):
    """Singular vectors of a matrix of rows (samples or tokens) and components, the strongest first.

    Attributes:
        share: Of the sum of squares ``[mode]``; they add up to 1 over all modes.
        scores: ``U Σ``, what each row has of a mode ``[row, mode]``.
        loadings: ``V``, what each component has of it ``[component, mode]``; the largest in size is positive, so that
            a mode's most negative rows are what these components express.
    """

    share: Tensor
    scores: Tensor
    loadings: Tensor


def standardized(matrix: Tensor, *, centred: bool = True) -> Tensor:
    """Z-scores per component over rows, then each row less its mean over components.

    Args:
        matrix: χ ``[row, component]``.
        centred: Whether to take the mean over components away; a single component would leave nothing.

    Returns:
        The same shape, float64; zero in a column that is constant.

    >>> standardized(torch.tensor([[1.0, 10.0], [2.0, 30.0], [3.0, 20.0]]))
    tensor([[ 0.0000,  0.0000],
            [-0.5000,  0.5000],
            [ 0.5000, -0.5000]], dtype=torch.float64)
    """
    values = matrix.double() - matrix.double().mean(0)
    spread = values.std(0)
    scores = torch.where(spread > 0, values / spread, 0.0)
    return scores - scores.mean(1, keepdim=True) if centred else scores


def modes(matrix: Tensor, *, count: int = MODES) -> Modes:
    """The strongest modes of a matrix as it is; write ``modes(standardized(result.matrix))``.

    Args:
        matrix: ``[row, component]``, finite.
        count: How many, at most.

    Raises:
        ValueError: If the matrix holds something that is not finite.

    >>> rows, columns = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([3.0, -4.0])
    >>> found = modes(torch.outer(rows, columns), count=1)
    >>> found.share, found.loadings[:, 0]
    (tensor([1.], dtype=torch.float64), tensor([-0.6000,  0.8000], dtype=torch.float64))
    """
    if not bool(matrix.isfinite().all()):
        raise ValueError("the matrix has entries that are not finite; a reading without live chains has no modes")
    left, strength, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    energy = strength.square()
    signs = right.gather(1, right.abs().argmax(1, keepdim=True)).sign()[:, 0]
    count = min(count, len(strength))
    return Modes(
        share=(energy / energy.sum())[:count],
        scores=(left * strength * signs)[:, :count],
        loadings=(right.mT * signs)[:, :count],
    )


def noise_share(matrix: Tensor, stderr: Tensor) -> float:
    """Share of the standardized matrix's sum of squares, before rows are centred, that its standard errors explain.

    Above about ½ there is no structure to be read; more draws lower it.

    Args:
        matrix: χ ``[row, component]``.
        stderr: Of its entries.

    >>> noise_share(torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.5], [0.5]]))
    0.125
    """
    variance = matrix.double().var(0)
    shares = stderr.double().square().mean(0) / variance
    return float(shares[variance > 0].mean()) if bool((variance > 0).any()) else math.nan


class Extremes(NamedTuple):
    """The ends of one mode.

    Attributes:
        rows: Of the most negative and of the most positive scores, the most extreme first.
        components: The same of the loadings.
    """

    rows: tuple[list[int], list[int]]
    components: tuple[list[int], list[int]]


def extremes(found: Modes, mode: int, *, count: int = 5) -> Extremes:
    """Rows and components at both ends of a mode; none is listed at an end whose sign it does not have."""
    return Extremes(rows=_ends(found.scores[:, mode], count), components=_ends(found.loadings[:, mode], count))


def _ends(values: Tensor, count: int) -> tuple[list[int], list[int]]:
    order = values.argsort().tolist()
    negative = [i for i in order[:count] if values[i] < 0]
    positive = [i for i in order[::-1][:count] if values[i] > 0]
    return negative, positive


Text = Callable[[int, int, int], str]
"""``text(probe, sample, token)``: what a row of a response matrix is called; token −1 is a whole sample."""


def modes_table(
    found: Modes, rows: Tensor, *, components: Sequence[str], probes: Sequence[str], text: Text | None = None
) -> str:
    """Modes as a Markdown table, with the rows and components at both of their ends.

    Args:
        found: The modes.
        rows: Probe, sample and token of each row ``[row, 3]``, as :class:`lightning_slt.estimators.Responses` has them.
        components: Names of the columns.
        probes: Names of the probes.
        text: Names a row, such as by its token with the one before; None says which probe, sample and token it is.

    Returns:
        One line a mode.
    """
    say = text or (lambda probe, sample, token: f"{probes[probe]} {sample}" + (f":{token}" if token >= 0 else ""))
    lines = [
        "| mode | share | rows, lowest | rows, highest | components, − | components, + |",
        "|---|---|---|---|---|---|",
    ]
    for mode, share in enumerate(found.share.tolist()):
        ends = extremes(found, mode)
        called = [" · ".join(say(*rows[row].tolist()) for row in end).replace("|", "\\|") for end in ends.rows]
        loads = [
            " · ".join(f"{components[c]} {float(found.loadings[c, mode]):+.2f}" for c in end) for end in ends.components
        ]
        lines.append(f"| {mode + 1} | {share:.0%} | " + " | ".join([*called, *loads]) + " |")
    return "\n".join(lines)
