"""Bad input: what was given, what was expected, what to write."""

import inspect
import math
import re
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import lightning_slt as slt

DATA = TensorDataset(torch.randn(32, 3), torch.randn(32, 1))
SETTINGS = {"sampler": slt.SGLD(step_size=1e-4), "nbeta": 10.0, "localization": 1.0}
FEW = slt.SamplingConfig(num_chains=2, num_draws=4, num_burnin=0, batch_size=8)


class Shared(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(3, 1))
        self.frozen, self.tied = nn.Linear(3, 1).requires_grad_(False), nn.Linear(3, 1, bias=False)
        self.tied.weight = self[0].weight

    def forward(self, x):
        return self[0](x)


def estimate(module=None, data=DATA, estimators=None, **changes):
    keywords = {**SETTINGS, "sampling": FEW, "loss_fn": slt.losses.regression, **changes}
    return slt.estimate(module or nn.Linear(3, 1), data, estimators or [slt.LLC()], **keywords)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: slt.SGLD(step_size=-1e-3), "SGLD.step_size must be a finite number, zero or more, got -0.001"),
        (lambda: slt.SGLD(step_size=math.nan), "SGLD.step_size must be a finite number"),
        (lambda: slt.SGLD(step_size=1e-3, temperature=-1.0), "SGLD.temperature must be a finite number"),
        (lambda: slt.SamplingConfig(num_chains=0), "num_chains must be a whole number of at least 1, got 0"),
        (lambda: slt.SamplingConfig(num_draws=2.5), "num_draws must be a whole number of at least 1, got 2.5"),
        (lambda: slt.SamplingConfig(num_burnin=-1), "num_burnin must be a whole number of at least 0, got -1"),
        (lambda: slt.SamplingConfig(batch_size=0), "batch_size must be a whole number of at least 1"),
        (lambda: slt.SamplingConfig(chunk_size=0), "chunk_size must be a whole number of at least 1"),
        (lambda: slt.SamplingConfig(chain_method="fast"), "'auto', 'vectorized' or 'sequential', got 'fast'"),
        (lambda: slt.Component(()), "at least one parameter name"),
        (lambda: slt.LogSteps(0, 10, 3), "1 <= first < last"),
        (lambda: slt.LogSteps(1, 10, 2.5), "LogSteps.count must be a whole number, got 2.5"),
        (lambda: slt.LogSteps("1", 10, 3), "LogSteps.first must be a whole number, got '1'"),
        (lambda: slt.LLCMonitor(nbeta=-1.0), "nbeta must be a finite number, zero or more, or None"),
        (lambda: slt.LLCMonitor(localization=math.inf), "localization must be a finite number"),
        (lambda: slt.LLCMonitor(every_n_train_steps=0), "every_n_train_steps must be a whole number of at least 1"),
        (lambda: slt.LLCMonitor(max_overhead=0.0), "max_overhead must be a positive share such as 0.1"),
        (lambda: slt.LLCMonitor(max_overhead=10), "max_overhead must be a share of training time, at most 1, got 10"),
        (lambda: slt.LLCMonitor(max_overhead=10), "write max_overhead=0.1 for 10 %"),
        (lambda: slt.LLCMonitor(max_overhead="10%"), "max_overhead must be a positive share such as 0.1, got '10%'"),
        (
            lambda: slt.LLCMonitor(nbeta="30"),
            "nbeta must be a finite number, zero or more, or None to be found, got '30'",
        ),
        (lambda: slt.LLCMonitor(localization=True), "localization must be a finite number"),
        (lambda: slt.LLCMonitor(train_time_interval=5), "train_time_interval must be positive, a timedelta such"),
        (lambda: slt.LLCMonitor(at_steps=5), "at_steps must be whole numbers, zero or more, got 5; write at_steps=[5]"),
        (lambda: slt.LLCMonitor(at_steps=[5, -1]), "at_steps must be whole numbers, zero or more, got [5, -1]"),
        (lambda: slt.LLCMonitor(at_steps="1,2"), "at_steps must be whole numbers, zero or more, got '1,2'"),
        (lambda: slt.LLCMonitor(on_failure="ignore"), "on_failure must be 'warn' or 'raise', got 'ignore'"),
        (lambda: slt.LLCMonitor(name=""), "name must be a non-empty string"),
        (lambda: slt.LLCMonitor(sampling=slt.SamplingConfig(num_chains=1)), "at least two chains"),
        (lambda: slt.SLTMonitor([slt.LLC(), slt.LLC()]), "two estimators share a name"),
        (lambda: slt.SLTMonitor([]), "estimators is empty"),
    ],
)
def test_constructors_refuse(make, words):
    with pytest.raises(ValueError, match=r".") as caught:
        make()
    assert words in str(caught.value)


def test_a_monitor_refuses_a_loss_of_other_arguments_when_it_is_made():
    with pytest.raises(TypeError, match=r"loss_fn takes \(batch\), expected \(module, batch\)"):
        slt.LLCMonitor(loss_fn=lambda batch: batch)


class Stream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(3), torch.zeros(1)


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"nbeta": "30"}, ValueError, "nbeta must be a finite number, zero or more, or None to be found, got '30'"),
        ({"nbeta": -1.0}, ValueError, "nbeta must be a finite number, zero or more"),
        ({"localization": math.nan}, ValueError, "localization must be a finite number"),
        ({"data": TensorDataset(torch.empty(0, 3), torch.empty(0, 1))}, ValueError, "has no samples"),
        ({"data": torch.randn(8, 3)}, TypeError, "data is a tensor of shape (8, 3); expected a Dataset"),
        ({"data": DATA.tensors}, TypeError, "a tuple of tensors of shapes (32, 3), (32, 1); expected a Dataset"),
        ({"data": list(DATA.tensors)}, TypeError, "write TensorDataset(X, Y)"),
        ({"data": "train"}, TypeError, "data is the string 'train'; expected a Dataset"),
        ({"data": TensorDataset}, TypeError, "data is the class TensorDataset, expected a data set"),
        ({"data": Stream()}, TypeError, "stream without a length"),
        ({"data": DataLoader(DATA, batch_size=None)}, TypeError, "batch_size=None"),
        ({"estimators": [slt.LLC]}, TypeError, "must hold estimators such as LLC()"),
        ({"estimators": slt.LLC()}, TypeError, "must be a list such as [LLC()]"),
        ({"components": "encoder.*"}, ValueError, "no trainable parameter matches 'encoder.*'"),
        ({"components": {"a": slt.Component(("wieght",))}}, ValueError, "the nearest of its 2 names: weight"),
        (
            {"components": {"a": slt.Component(("weight",), {"weight": torch.ones(3, 1, dtype=torch.bool)})}},
            ValueError,
            "mask of 'weight' has shape (3, 1), the parameter (1, 3)",
        ),
        ({"on_failure": "ignore"}, ValueError, "on_failure must be 'warn' or 'raise'"),
        ({"loss_fn": 3}, TypeError, "loss_fn must be callable"),
        ({"loss_fn": None}, TypeError, "def loss_fn(module, batch)"),
        ({"loss_fn": None}, TypeError, "write loss_fn=slt.losses.classification"),
        ({"loss_fn": lambda m, b: torch.full((8,), math.nan)}, ValueError, "the loss at the anchor is nan"),
        ({"loss_fn": lambda m, b: b[1].square().mean()}, ValueError, "ignores the"),
        ({"loss_fn": lambda m, b: 1.0}, TypeError, "the loss must be a tensor, got a float"),
        (
            {"loss_fn": lambda m, b: {"a": m(b[0]).mean()}},
            TypeError,
            "got a dict with the keys a: return one of them, or",
        ),
        ({"loss_fn": lambda m, b: SimpleNamespace(loss=m(b[0]).mean())}, TypeError, "return its .loss"),
        ({"module": nn.Linear}, TypeError, "module must be a torch.nn.Module, got the class Linear; write Linear(…)"),
        ({"module": DATA}, TypeError, "module must be a torch.nn.Module, got a TensorDataset"),
        ({"components": "frozen"}, ValueError, "no trainable parameter matches 'frozen'; 'frozen.weight' is frozen"),
        (
            {"components": {"a": slt.Component(("frozen.bias",))}},
            ValueError,
            "no trainable parameter is called 'frozen.bias'; 'frozen.bias' is frozen",
        ),
        (
            {"components": "tied.weight"},
            ValueError,
            "'tied.weight' is the same parameter as '0.weight'; write that name",
        ),
        (
            {"components": {"a": slt.Component(("tied.weight",))}},
            ValueError,
            "'tied.weight' is the same parameter as '0.weight'; write that name",
        ),
        (
            {"data": [(torch.zeros(3 + i), torch.zeros(1)) for i in range(4)]},
            ValueError,
            "samples cannot be batched: stack expects each tensor to be equal size",
        ),
        ({"data": [(object(), torch.zeros(1))] * 4}, ValueError, "write DataLoader(data, collate_fn=…)"),
    ],
)
def test_estimate_refuses(changes, kind, words):
    shared = {"module": Shared()} if "frozen" in words or "tied" in words else {}
    with pytest.raises(kind) as caught:
        estimate(**shared, **changes)
    assert words in str(caught.value)


def test_a_frozen_module_has_nothing_to_sample():
    with pytest.raises(ValueError, match="no parameter of the module requires gradients"):
        estimate(nn.Linear(3, 1).requires_grad_(False))


class Manual(nn.Module):
    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 1)

    def training_step(self, batch, batch_idx):
        raise AssertionError("must not run")


class Nothing(Manual):
    automatic_optimization = True

    def training_step(self, batch, batch_idx):
        return None


@pytest.mark.parametrize(
    ("module", "words"), [(Manual(), "uses manual optimization"), (Nothing(), "training_step returned NoneType")]
)
def test_steps_without_a_loss_say_what_to_write(module, words):
    with pytest.raises(TypeError) as caught:
        estimate(module, loss_fn=None)
    assert words in str(caught.value)
    assert "def loss_fn(module, batch)" in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: slt.LLCMonitor(every_n_step=3),
            "LLCMonitor takes no every_n_step=; did you mean every_n_train_",
        ),
        (lambda: slt.SLTMonitor([slt.LLC()], localisation=3.0), "SLTMonitor takes no localisation=; did you mean loc"),
        (
            lambda: slt.SusceptibilityMonitor(components="layers", probe=DATA),
            "SusceptibilityMonitor takes no probe=; did you mean probes=",
        ),
        (lambda: slt.LossKernelMonitor(probes=DATA), "LossKernelMonitor takes no probes=; did you mean probe="),
        (lambda: slt.InfluenceMonitor(probe=DATA), "InfluenceMonitor takes no probe=; it takes train, query, sampler"),
        (lambda: slt.RefinedLLCMonitor(componets="layers"), "takes no componets=; did you mean components="),
        (lambda: slt.LossKernelMonitor(), "missing 1 required keyword-only argument: 'probe'"),
    ],
)
def test_keywords_that_a_monitor_does_not_take(make, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


def test_constructors_still_show_what_they_take():
    parameters = inspect.signature(slt.LLCMonitor).parameters
    assert list(parameters)[:4] == ["sampler", "nbeta", "localization", "sampling"]
    assert parameters["every_n_train_steps"].default is None


def test_warnings_point_at_the_users_line(tmp_path):
    """At the call that led to them, from a live reading as from one without a Trainer."""

    class Diverges(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(3, 1)

        def per_sample_loss(self, batch):
            if self.trainer.global_step:
                raise ArithmeticError("no loss today")
            return (self.net(batch[0]) - batch[1]).square().mean(1)

        def training_step(self, batch, batch_idx):
            return (self.net(batch[0]) - batch[1]).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    monitor = slt.LLCMonitor(sampling=FEW, every_n_train_steps=1)
    trainer = L.Trainer(
        max_steps=1, callbacks=[monitor], default_root_dir=tmp_path, logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="the reading at step 1 failed") as told:
        trainer.fit(Diverges(), DataLoader(DATA, batch_size=8))
    assert {w.filename for w in told if "failed" in str(w.message)} == {__file__}
    with pytest.warns(UserWarning, match="the loss was not finite") as told:
        estimate(sampler=slt.SGLD(step_size=1e30))
    assert {w.filename for w in told if "finite" in str(w.message)} == {__file__}
