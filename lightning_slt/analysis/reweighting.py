r"""Which data to weigh more or less so that components change as wished (arXiv:2504.18274).

Mix samples or tokens into the data, ``q_h = (1 − Σ h_i) q + Σ h_i δ_i``: for small h what components' observables
``μ_C = ⟨φ_C⟩`` become is linear in h, with the response matrix as its slope:

.. math:: d\mu_C = n\beta \sum_i \chi_{iC}\, dh_i  \quad\Rightarrow\quad  dh = \frac{1}{n\beta} (\chi^T)^+ d\mu

the smallest reweighting that does it. Directions of χ that its errors would produce by themselves are left out: their
inverse would be noise blown up. It is a suggestion, to be tried and measured; nothing is applied here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_slt.estimators import Responses


class Reweighting(NamedTuple):
    """A suggested change of the data.

    Attributes:
        weights: dh ``[row]``: how much of each sample or token to mix in, as a share of the data; negative: take out.
        expected: The change ``[component]`` that it makes to first order: what was wished where ``rank`` is full.
        stderr: Error of that from the errors of χ ``[component]``; NaN where these are not known.
        rank: Directions of χ that stand out of its noise.
        components: Names of the columns.
    """

    weights: Tensor
    expected: Tensor
    stderr: Tensor
    rank: int
    components: tuple[str, ...]


def suggest_reweighting(responses: Responses, change: Mapping[str, float], *, nbeta: float) -> Reweighting:
    r"""The smallest reweighting of the probes' rows that changes components' mean losses ``E_C[L − L(w*)]`` as wished.

    Args:
        responses: A response matrix made with ``method="restricted"``.
        change: ``{component: dμ}`` in nats; a component that is left out is to stay as it is. λ̂ of a component changes
            by nβ times as much.
        nbeta: nβ of the chains.

    Raises:
        ValueError: For a component that is not in the matrix, or a matrix of the two-chain form, whose magnitudes are
            known up to a factor for each component only.

    >>> from lightning_slt.types import Health
    >>> chi = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-1.0, -2.0]])
    >>> none = torch.zeros(2)
    >>> found = Responses(matrix=chi, stderr=0 * chi, by_probe=chi[:1], by_probe_stderr=chi[:1], rise=none, delta=chi,
    ...                   rows=torch.zeros(3, 3), components=("a", "b"), probes=("p",), method="restricted",
    ...                   signal=9.0, uniform=0.0, parts={}, health=Health(ok=True))
    >>> suggest_reweighting(found, {"a": 0.3}, nbeta=10.0).weights.round(decimals=6)
    tensor([ 0.0200, -0.0100, -0.0100], dtype=torch.float64)
    """
    if responses.method != "restricted":
        raise ValueError(
            f"the matrix was made with method={responses.method!r}, whose magnitudes are known up to a factor for each "
            'component; write Susceptibility(…, method="restricted")'
        )
    unknown = [name for name in change if name not in responses.components]
    if unknown:
        raise ValueError(f"no component is called {unknown[0]!r}; the matrix has {', '.join(responses.components)}")
    wished = torch.tensor([change.get(name, 0.0) for name in responses.components], dtype=torch.float64)
    slope = nbeta * responses.matrix.double()
    errors = nbeta * responses.stderr.double()
    left, sizes, right = torch.linalg.svd(slope, full_matrices=False)
    kept = sizes > _noise_level(errors)
    weights = left[:, kept] @ ((right[kept] @ wished) / sizes[kept])
    return Reweighting(
        weights=weights,
        expected=slope.T @ weights,
        stderr=(errors.square().T @ weights.square()).sqrt(),
        rank=int(kept.sum()),
        components=responses.components,
    )


def _noise_level(errors: Tensor) -> float:
    """Largest singular value that errors of that size make by themselves, ``σ(√rows + √columns)``; 0 where unknown."""
    rows, columns = errors.shape
    rounding = 1e-12
    typical = float(errors.square().mean().sqrt().nan_to_num())
    return max(rounding, typical * (math.sqrt(rows) + math.sqrt(columns)))
