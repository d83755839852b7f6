"""Ready-made losses on batches of every form, and what may be a loss at all."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import lightning_slt as slt
from lightning_slt.functional import derive_loss

TOKENS = torch.tensor([[1, 2, 3, 4, 0, 0], [5, 6, 1, 2, 3, 4]])
RIGHT = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


class Masked(nn.Module):
    """Every position sees the mean of the positions before it that the mask leaves."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = seen[..., None].float()
        return self.head((self.embed(input_ids) * weights).cumsum(1) / weights.cumsum(1).clamp(min=1))


class Whatever(Masked):
    def forward(self, input_ids: Tensor, **options: Any) -> Tensor:
        return super().forward(input_ids, options["attention_mask"])


class Unmasked(Masked):
    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens)


def one_by_one(logits: Tensor, tokens: Tensor, counts: Tensor) -> Tensor:
    """Loss of token t + 1 where it counts, else zero."""
    rows = [
        [-logits[i, t].log_softmax(0)[tokens[i, t + 1]] if counts[i, t + 1] else torch.tensor(0.0) for t in range(5)]
        for i in range(2)
    ]
    return torch.stack([torch.stack(row) for row in rows])


@pytest.mark.parametrize("mask", [RIGHT, RIGHT.flip(1), RIGHT.bool()])
@pytest.mark.parametrize("kind", [Masked, Whatever, Unmasked])
def test_next_token_hands_the_mask_on_and_counts_no_padding(kind: type[Masked], mask: Tensor) -> None:
    module = kind()
    found = slt.losses.next_token(module, {"input_ids": TOKENS, "attention_mask": mask})
    seen = None if kind is Unmasked else mask
    torch.testing.assert_close(found, one_by_one(Masked.forward(module, TOKENS, seen), TOKENS, mask))


def test_next_token_takes_labels_as_they_are() -> None:
    """As networks with a loss of their own do: where there are labels, they alone say what counts."""
    module, labels = Masked(), TOKENS.masked_fill(TOKENS == 3, slt.losses.IGNORED)
    batch = {"input_ids": TOKENS, "attention_mask": RIGHT, "labels": labels}
    expected = one_by_one(module(TOKENS, RIGHT), TOKENS, TOKENS != 3)
    torch.testing.assert_close(slt.losses.next_token(module, batch), expected)


def test_next_token_through_a_compiled_module() -> None:
    module = Masked()
    compiled = torch.compile(module, backend="eager")
    batch = {"input_ids": TOKENS, "attention_mask": RIGHT}
    with torch.compiler.set_stance("force_eager"):
        found = slt.losses.next_token(compiled, batch)
    torch.testing.assert_close(found, slt.losses.next_token(module, batch))


NET, X, Y = nn.Linear(3, 2), torch.randn(5, 3), torch.arange(5) % 2


@pytest.mark.parametrize(
    ("loss", "batch", "error", "words"),
    [
        (slt.losses.classification, {"x": X, "y": Y}, TypeError, "a dict with the keys x, y; expected (x, y)"),
        (slt.losses.classification, X, TypeError, "a tensor of shape (5, 3); expected (x, y)"),
        (
            slt.losses.regression,
            (X, Y, Y),
            TypeError,
            "a tuple of tensors of shapes (5, 3), (5,), (5,); expected (x, y)",
        ),
        (slt.losses.regression, [X], TypeError, "a list of tensors of shapes (5, 3); expected (x, y)"),
        (slt.losses.regression, (X, Y), ValueError, "prediction has shape (5, 2), target (5,)"),
        (slt.losses.next_token, {"tokens": X}, TypeError, "a dict with the keys tokens; expected input_ids"),
    ],
)
def test_ready_made_losses_say_what_batch_they_take(loss: Any, batch: Any, error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        loss(NET, batch)
    assert words in str(caught.value)
    assert error is ValueError or "def loss_fn(module, batch)" in str(caught.value)


class Focal(nn.Module):
    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        raise AssertionError("must not run")


OF_INPUT_AND_TARGET = [
    nn.CrossEntropyLoss(),
    nn.MSELoss(reduction="none"),
    F.cross_entropy,
    functools.partial(F.cross_entropy, reduction="none"),
    torchmetrics.functional.mean_squared_error,
    Focal(),
]


@pytest.mark.parametrize("loss_fn", OF_INPUT_AND_TARGET)
def test_a_loss_of_input_and_target_is_no_loss_fn(loss_fn: Any) -> None:
    for use in (lambda: derive_loss(NET, loss_fn), lambda: estimate(loss_fn)):
        with pytest.raises(TypeError, match=r"expected \(module, batch\)") as caught:
            use()
        assert "slt.losses.classification" in str(caught.value)
        assert "def loss_fn(module, batch)" in str(caught.value)


@pytest.mark.parametrize(
    ("loss_fn", "words"),
    [
        (lambda batch: batch[0].mean(), "takes (batch), expected (module, batch)"),
        (lambda x, y, z: x, "takes (x, y, z), expected (module, batch)"),
        (lambda: 0, "takes (), expected (module, batch)"),
        (NET, "takes (input), expected (module, batch)"),
        (nn.CrossEntropyLoss, "callable with (module, batch), got the class CrossEntropyLoss"),
    ],
)
def test_a_loss_fn_of_other_arguments_is_refused(loss_fn: Any, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        derive_loss(NET, loss_fn)
    assert words in str(caught.value)
    assert "def loss_fn(module, batch)" in str(caught.value)


class AsModule(nn.Module):
    def forward(self, module: nn.Module, batch: Any) -> Tensor:
        return slt.losses.classification(module, batch)


@pytest.mark.parametrize(
    "loss_fn",
    [
        AsModule(),
        lambda module, batch, weight=1.0: slt.losses.classification(module, batch),
        lambda *both: slt.losses.classification(*both),
        functools.partial(lambda weight, module, batch: slt.losses.classification(module, batch), 1.0),
    ],
)
def test_any_callable_of_module_and_batch_is_a_loss_fn(loss_fn: Any) -> None:
    assert estimate(loss_fn)["llc"].mean == estimate(slt.losses.classification)["llc"].mean


def estimate(loss_fn: Any, **changes: Any) -> Any:
    keywords = {
        "sampler": slt.SGLD(step_size=1e-3),
        "nbeta": 10.0,
        "localization": 5.0,
        "sampling": slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=0, batch_size=4),
        **changes,
    }
    return slt.estimate(NET, TensorDataset(X, Y), [slt.LLC()], loss_fn=loss_fn, **keywords)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, int])
def test_constants_of_any_numeric_type(kind: Any) -> None:
    """Exactly those of plain floats, and stored as such: records and checkpoints hold plain values."""
    plain = estimate(slt.losses.classification)["llc"]
    found = estimate(slt.losses.classification, nbeta=kind(10), localization=kind(5))["llc"]
    assert torch.equal(found.per_chain, plain.per_chain)
    assert type(slt.LLCMonitor(nbeta=kind(10)).nbeta) is type(found.settings.localization) is float
    assert type(slt.SGLD(step_size=kind(1)).step_size) in (float, int)
    assert type(slt.HMC(step_size=1e-3, num_leapfrog=np.int64(3)).num_leapfrog) is int
    assert type(slt.LLCMonitor(every_n_train_steps=np.int64(3)).schedule.every_n_train_steps) is int
    assert type(slt.SamplingConfig(num_chains=np.int64(3)).num_chains) is int
