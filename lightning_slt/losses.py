"""Ready-made losses per sample, to pass as ``loss_fn``: classification, regression, next-token prediction.

Each takes ``(module, batch)`` and calls ``module(inputs)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_slt.types import Batch

IGNORED = -100
"""Target that marks padding, as in ``torch.nn.functional.cross_entropy``."""


def classification(module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of ``module(x)`` ``[sample, class]`` against labels ``[sample]``; ``batch = (x, y)``.

    Returns:
        ``[sample]``, in nats.
    """
    x, y = batch
    return F.cross_entropy(module(x), y, reduction="none")


def regression(module: nn.Module, batch: Batch) -> Tensor:
    """Squared error of ``module(x)`` against targets of the same shape, averaged over outputs; ``batch = (x, y)``.

    Returns:
        ``[sample]``.

    Raises:
        ValueError: If prediction and target differ in shape (broadcasting would give a wrong loss).
    """
    x, y = batch
    prediction = module(x)
    if prediction.shape != y.shape:
        raise ValueError(f"prediction has shape {tuple(prediction.shape)}, target {tuple(y.shape)}; make them equal")
    losses: Tensor = (prediction - y).square().reshape(len(y), -1).mean(1)
    return losses


def next_token(module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each next token, padding (target −100) counted as zero.

    ``batch`` is the tokens ``[sample, position]``, a tuple whose first entry they are, or a dict with ``input_ids``
    and optionally ``labels``. The module returns logits ``[sample, position, vocabulary]``, or an object with
    ``logits``.

    Returns:
        ``[sample, position − 1]``, in nats; entry t is the loss of token t + 1.
    """
    tokens, labels = _tokens(batch)
    output = module(tokens)
    logits = getattr(output, "logits", output)
    predicted, target = logits[:, :-1].flatten(0, 1), labels[:, 1:]
    return F.cross_entropy(predicted, target.flatten(), reduction="none", ignore_index=IGNORED).view(target.shape)


def _tokens(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, Mapping):
        return batch["input_ids"], batch.get("labels", batch["input_ids"])
    tokens = batch[0] if isinstance(batch, tuple | list) else batch
    return tokens, tokens
