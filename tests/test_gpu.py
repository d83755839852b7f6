"""The same guarantees on a CUDA device; needs one (`pytest -m gpu`)."""

from typing import ClassVar

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_slt as slt

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),
]


def regression_task(device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    net = nn.Linear(4, 1).to(device)
    return net, TensorDataset(x, net(x.to(device)).detach().cpu())


def llc(device, **sampling):
    torch.manual_seed(0)
    net, data = regression_task(device)
    config = slt.SamplingConfig(num_draws=400, num_burnin=200, batch_size=256, **sampling)
    return slt.estimate(
        net,
        data,
        [slt.LLC()],
        sampler=slt.SGLD(step_size=1e-3),
        nbeta=100.0,
        localization=1.0,
        sampling=config,
        loss_fn=slt.losses.regression,
    )["llc"]


def test_the_llc_of_a_regular_model():
    estimate = llc("cuda", num_chains=32)
    x = regression_task("cpu")[1].tensors[0]
    design = torch.cat([x, torch.ones(len(x), 1)], 1)
    curvatures = 2 * torch.linalg.eigvalsh(design.T @ design / len(x))
    truth = slt.theory.sgld_quadratic_llc(curvatures, nbeta=100.0, localization=1.0, step_size=1e-3)
    assert abs(estimate.mean - truth) < 4 * estimate.stderr


def test_the_same_seed_gives_the_same_bits_in_chunks():
    whole = llc("cuda", num_chains=6)
    again = llc("cuda", num_chains=6)
    assert torch.equal(whole.per_chain, again.per_chain)


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed", "bf16-true"])
def test_training_is_untouched(tmp_path, precision):
    def weights(callbacks):
        L.seed_everything(0)
        x = torch.randn(128, 8)
        loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=32, shuffle=True)
        net = Net()
        L.Trainer(
            max_epochs=2,
            accelerator="gpu",
            devices=1,
            precision=precision,
            callbacks=callbacks,
            default_root_dir=tmp_path,
            enable_checkpointing=False,
        ).fit(net, loader)
        return [*net.state_dict().values(), torch.cuda.get_rng_state()]

    monitor = slt.LLCMonitor(every_n_train_steps=2, sampling=slt.SamplingConfig(num_chains=2, num_draws=10))
    for plain, watched in zip(weights([]), weights([monitor]), strict=True):
        assert torch.equal(plain.cpu(), watched.cpu())


class Seen:
    """What a loss saw: on a class, because readings put back what a loss changes."""

    allocated: ClassVar[list[int]] = []


@pytest.mark.parametrize("offload", [False, True])
def test_what_training_keeps_makes_room_for_a_reading(tmp_path, offload):
    """Gradients and two states of Adam are three copies of the weights."""

    class Wide(Net):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 2**20), nn.ReLU(), nn.Linear(2**20, 2))

    def loss(module, batch):
        Seen.allocated.append(torch.cuda.memory_allocated())
        return nn.functional.cross_entropy(module.net(batch[0]), batch[1], reduction="none")

    monitor = slt.LLCMonitor(
        loss_fn=loss, offload=offload, at_steps=[3], sampler=slt.SGLD(step_size=1e-6), nbeta=10.0, localization=10.0,
        sampling=slt.SamplingConfig(num_chains=2, num_draws=2, num_burnin=0, batch_size=8, chain_method="sequential"),
    )  # fmt: skip
    Seen.allocated.clear()
    x = torch.randn(32, 8)
    trainer = L.Trainer(
        max_steps=3, accelerator="gpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, callbacks=[monitor], default_root_dir=tmp_path,
    )  # fmt: skip
    module = Wide()
    weights = 4 * sum(p.numel() for p in module.parameters())
    trainer.fit(module, DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=8))
    first, last = Seen.allocated[0], Seen.allocated[-1]  # before there were gradients and states, and at step 3
    assert (last - first > 2.5 * weights) == (not offload)


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_precision_of_the_passes(precision):
    """The same noise and minibatches: what rounding adds is below the standard error, and switches are put back."""
    torch.set_float32_matmul_precision("highest")
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    exact, found = (llc("cuda", num_chains=16, precision=p) for p in ("float32", precision))
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
    difference = found.per_chain - exact.per_chain
    assert abs(float(difference.mean())) < exact.stderr
    if precision != "tf32":  # products as thin as these may be made without it
        assert torch.equal(found.per_chain, exact.per_chain) == (precision == "float32")


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_kernels_of_a_precision(precision):
    """A product in the loss has the error of its arithmetic: 2⁻²⁴, 2⁻¹¹ and 2⁻⁹ are half a unit of the last place."""
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        pytest.skip("needs a device with TF32 and bfloat16 (compute capability 8.0)")
    torch.manual_seed(0)
    x, w = torch.randn(512, 256, device="cuda"), torch.randn(256, 256, device="cuda")
    rows = []

    def loss(weights, batch):
        rows.append((batch[0] @ weights["w"]).float().detach())
        return (batch[0] @ weights["w"]).float().square().mean()

    posterior = slt.LocalPosterior(loss=loss, anchor={"w": w}, nbeta=1.0, localization=1.0)
    config = slt.SamplingConfig(
        num_chains=2, num_draws=1, batch_size=512, precision=precision, chain_method="sequential"
    )
    list(slt.sample(posterior, slt.SGLD(step_size=0.0), TensorDataset(x), config))
    exact = x.double() @ w.double()
    error = float((rows[0].double() - exact).norm() / exact.norm())
    low, high = {"float32": (0, 2e-6), "tf32": (2e-5, 1e-3), "bf16": (1e-3, 1e-2)}[precision]
    assert low < error < high
