"""Influences as a table: the most helpful and the most harmful training samples of each query."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from lightning_slt.estimators import Influence

QUERIES = 20
"""Shown where nobody says which."""


def influence_table(result: Influence, *, queries: Sequence[int] | None = None, count: int = 3) -> str:
    """A Markdown table, one line a query.

    Args:
        result: Of samples; influences of single tokens have no such table.
        queries: Columns of the matrices to show; None for the first ones.
        count: Training samples of each kind.

    Returns:
        Samples by their index in the user's data, with the label where there is one. Negative is helpful. What lies
        within two standard errors of zero stands in brackets.

    Raises:
        ValueError: If tokens were kept apart.
    """
    if result.influence.ndim != 2:
        raise ValueError(
            f"tokens were kept apart, shape {tuple(result.influence.shape)}; write tokens='sum' for a table"
        )
    rows = ["| query | most helpful | most harmful |", "|---|---|---|"]
    for column in range(min(QUERIES, result.influence.shape[1])) if queries is None else queries:
        helpful, harmful = result.helpful(column, count=count), result.harmful(column, count=count)
        places = (result.rows(samples).tolist() for samples in (helpful, harmful))
        cells = (" · ".join(_entry(result, row, column) for row in found) for found in places)
        rows.append(f"| {_sample(result.query_indices, result.query_labels, column)} | {' | '.join(cells)} |")
    unit = "nats²" if result.factor == 1.0 else "nats"
    return "\n".join(
        [
            *rows,
            "",
            f"Influence in {unit} ± standard error; negative: more weight on the sample lowers the query's loss; in "
            f"brackets what lies within two standard errors of zero. Worth {result.n_eff:.0f} independent draws, "
            f"reliability {result.reliability:.2f}.",
        ]
    )


def influence_texts(result: Influence) -> Mapping[str, str]:
    """What TensorBoard's text page shows of a reading."""
    return {"samples": influence_table(result)} if result.influence.ndim == 2 else {}


def _entry(result: Influence, row: int, column: int) -> str:
    value, error = float(result.influence[row, column]), float(result.stderr[row, column])
    text = f"{_sample(result.train_indices, result.train_labels, row)} {value:+.2g}"
    if math.isnan(error):
        return text
    text += f" ± {error:.1g}"
    return text if abs(value) > 2 * error else f"({text})"


def _sample(indices: Tensor, labels: Tensor | None, position: int) -> str:
    name = f"**{int(indices[position])}**"
    return name if labels is None else f"{name} [{int(labels[position])}]"
