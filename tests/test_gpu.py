"""The same guarantees on a CUDA device; needs one (`pytest -m gpu`)."""

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
