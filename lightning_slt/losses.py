"""Ready-made losses per sample, to pass as ``loss_fn``: classification, regression, next-token prediction.

Each takes ``(module, batch)`` and calls ``module(inputs)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_slt.boundary import HOW_TO_WRITE_A_LOSS, accepts, describe
from lightning_slt.types import Batch

IGNORED = -100
"""Target that marks padding, as in ``torch.nn.functional.cross_entropy``."""


def classification(module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of ``module(x)`` ``[sample, class]`` against labels ``[sample]``; ``batch = (x, y)``.

    Returns:
        ``[sample]``, in nats.
    """
    x, y = _pair(batch)
    return F.cross_entropy(module(x), y, reduction="none")


def regression(module: nn.Module, batch: Batch) -> Tensor:
    """Squared error of ``module(x)`` against targets of the same shape, averaged over outputs; ``batch = (x, y)``.

    Returns:
        ``[sample]``.

    Raises:
        ValueError: If prediction and target differ in shape (broadcasting would give a wrong loss).
    """
    x, y = _pair(batch)
    prediction = module(x)
    if prediction.shape != y.shape:
        raise ValueError(
            f"prediction has shape {tuple(prediction.shape)}, target {tuple(y.shape)}; make them equal, for instance "
            "with TensorDataset(x, y[:, None]) where a network of one output is given targets without that axis"
        )
    losses: Tensor = (prediction - y).square().reshape(len(y), -1).mean(1)
    return losses


def next_token(module: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each next token, padding counted as zero.

    ``batch`` is the tokens ``[sample, position]``, a tuple whose first entry they are, or a dict with ``input_ids``
    and optionally ``attention_mask``, handed on to a module whose ``forward`` takes it, and ``labels``. Padding is
    what ``labels`` mark by −100; without labels it is where the mask is zero. The module returns logits ``[sample,
    position, vocabulary]``, or an object with ``logits``.

    Returns:
        ``[sample, position − 1]``, in nats; entry t is the loss of token t + 1.

    Raises:
        TypeError: If the batch is a dict without ``input_ids``.
    """
    tokens, labels, mask = _tokens(batch)
    inner = getattr(module, "_orig_mod", module)  # a compiled module's own forward takes anything
    masked = mask is not None and accepts(type(inner).forward, "attention_mask")
    output = module(tokens, attention_mask=mask) if masked else module(tokens)
    logits = getattr(output, "logits", output)
    predicted, target = logits[:, :-1].flatten(0, 1), labels[:, 1:]
    return F.cross_entropy(predicted, target.flatten(), reduction="none", ignore_index=IGNORED).view(target.shape)


def _tokens(batch: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, labels, and the mask where there is one."""
    if not isinstance(batch, Mapping):
        tokens = batch[0] if isinstance(batch, tuple | list) else batch
        return tokens, tokens, None
    if "input_ids" not in batch:
        raise TypeError(f"the batch is {describe(batch)}; expected input_ids among them, or {HOW_TO_WRITE_A_LOSS}")
    tokens, mask = batch["input_ids"], batch.get("attention_mask")
    counted = tokens if mask is None else tokens.masked_fill(mask == 0, IGNORED)
    return tokens, batch.get("labels", counted), mask


def _pair(batch: Any) -> tuple[Tensor, Tensor]:
    if isinstance(batch, tuple | list) and len(batch) == 2:
        return batch[0], batch[1]
    raise TypeError(f"the batch is {describe(batch)}; expected (x, y), or {HOW_TO_WRITE_A_LOSS}")
