"""Components whose chains share passes move as they do one after another."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_slt as slt
from lightning_slt import sampling, together
from lightning_slt.batches import ChainBatch
from lightning_slt.components import resolve_components
from lightning_slt.data import SamplingData, Streams, load_data
from lightning_slt.functional import ModuleLoss
from lightning_slt.posterior import LocalPosterior
from lightning_slt.preflight import COPIES_TOGETHER
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import Chunk, ProbeData, SamplingConfig, sample
from lightning_slt.together import SMALL_PASS, _SharedPasses, groups, sample_together
from lightning_slt.types import Draw, Motion
from tests.attentions import HEADS, WIDTH, Separate

CONFIG = SamplingConfig(num_chains=3, num_draws=4, num_burnin=2, thinning=2, batch_size=5, chain_method="vectorized")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, WIDTH)
        self.attn = Separate(("q", "k", "v", "o"), num_heads=HEADS)
        self.out = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.out(h + self.attn(h))


def loss_fn(module: nn.Module, batch: list[Tensor]) -> Tensor:
    (x,) = batch
    return F.cross_entropy(module(x)[:, :-1].transpose(1, 2), x[:, 1:], reduction="none").mean(1)


def setup(components: str, dtype: torch.dtype = torch.float64) -> tuple[dict[str, LocalPosterior], SamplingData]:
    torch.manual_seed(0)
    module = Net().to(dtype)
    loss = ModuleLoss(module, loss_fn)
    posteriors = {
        name: LocalPosterior(
            loss=loss, anchor={n: loss.weights[n] for n in c.parameters}, masks=c.masks, nbeta=20.0, localization=50.0
        )
        for name, c in resolve_components(module, components).items()
    }
    return posteriors, load_data([(x,) for x in torch.randint(0, 7, (32, 6))], seed=0)


def first_batch(data: SamplingData, size: int = 5) -> ChainBatch:
    return data.chain_batch(Streams(len(data), batch_size=size, seed=0, chains=(0, 1), share_batches=False).next())


def kept(draw: Draw) -> Draw:
    """With a position that later steps do not move."""
    return replace(draw, position=draw.position.clone(), loss=draw.loss.clone())


def tensors(draw: Draw) -> dict[str, Tensor]:
    found = {"loss": draw.loss, "anchor_loss": draw.anchor_loss, "position": draw.position, **draw.probes}
    motion = {} if draw.motion is None else {f.name: getattr(draw.motion, f.name) for f in fields(Motion)}
    return found | {name: value for name, value in motion.items() if isinstance(value, Tensor)}


SAMPLERS: list[Sampler] = [
    slt.SGLD(step_size=1e-4),
    slt.RMSPropSGLD(step_size=1e-5, num_adapt=3),
    slt.AdamSGLD(step_size=1e-5, num_adapt=3),
    slt.SGHMC(step_size=1e-4),
    slt.SGNHT(step_size=1e-4),
    slt.UnderdampedLangevin(step_size=1e-2, friction=1.0),
    slt.MALA(step_size=1e-4),
    slt.HMC(step_size=1e-2, num_leapfrog=2),
]


@pytest.mark.parametrize("components", ["heads", "layers"])
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_draws_are_those_of_each_component_alone(sampler: Sampler, components: str) -> None:
    posteriors, data = setup(components)
    probes = {"probe": ProbeData(batches=(data.chain_batch(torch.arange(4)),))}
    apart = {name: [kept(d) for d in sample(p, sampler, data, CONFIG, probes=probes)] for name, p in posteriors.items()}
    found = [
        {name: kept(d) for name, d in draws.items()}
        for draws in sample_together(posteriors, sampler, data, CONFIG, probes=probes)
    ]
    assert len(found) == CONFIG.num_draws
    motions = 0
    for place, draws in enumerate(found):
        assert list(draws) == list(posteriors)
        for name, draw in draws.items():
            alone = apart[name][place]
            assert (draw.chains, draw.index, draw.step) == (alone.chains, alone.index, alone.step)
            expected, given = tensors(alone), tensors(draw)
            assert expected.keys() == given.keys()
            motions += draw.motion is not None
            for key, value in expected.items():
                assert torch.allclose(given[key], value, rtol=1e-10, atol=1e-10, equal_nan=True), key
    assert motions


@pytest.mark.parametrize("size", [1, 2, 3])
def test_chunks_and_a_choice_of_chains(size: int) -> None:
    posteriors, data = setup("heads")
    config, sampler = replace(CONFIG, chunk_size=size), slt.SGLD(step_size=1e-4)
    steps: list[int] = []
    found = [
        {name: kept(d) for name, d in draws.items()}
        for draws in sample_together(posteriors, sampler, data, config, chains=(0, 2, 1), on_step=steps.append)
    ]
    assert sum(steps) == len(posteriors) * config.num_chains * config.num_steps
    for name, posterior in posteriors.items():
        alone = [kept(d) for d in sample(posterior, sampler, data, config, chains=(0, 2, 1))]
        assert [d[name].chains for d in found] == [d.chains for d in alone]
        for draws, draw in zip(found, alone, strict=True):
            assert torch.allclose(draws[name].position, draw.position, rtol=0, atol=1e-10)


def test_recorded_passes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "RECORDED_FROM", 1)
    monkeypatch.setattr(together, "RECORDED_FROM", 1)
    posteriors, data = setup("heads")
    sampler = slt.SGHMC(step_size=1e-4)  # takes a second look
    found = [{n: kept(d) for n, d in draws.items()} for draws in sample_together(posteriors, sampler, data, CONFIG)]
    for draws, draw in zip(found, sample(posteriors["attn.h2"], sampler, data, CONFIG), strict=True):
        expected, given = tensors(draw), tensors(draws["attn.h2"])
        for key, value in expected.items():
            assert torch.allclose(given[key], value, rtol=1e-10, atol=1e-10, equal_nan=True), key


def test_noise_is_common_to_all_components() -> None:
    posteriors, data = setup("heads")
    still = {name: replace(p, nbeta=0.0, localization=0.0) for name, p in posteriors.items()}
    draws = next(
        iter(sample_together(still, slt.SGLD(step_size=1e-2), data, replace(CONFIG, num_burnin=0, thinning=1)))
    )
    first, *others = (draws[name].position - still[name].anchor_row for name in still)
    for other in others:  # equal numbers of coordinates: the same increments
        assert torch.allclose(other, first, atol=1e-12)


def test_what_does_not_move_stays_at_the_anchor_to_the_bit() -> None:
    posteriors, data = setup("heads", torch.float32)
    chunks = [Chunk(p, slt.SGLD(step_size=1e-2), data, CONFIG, (0, 1), None) for p in posteriors.values()]
    shared = _SharedPasses(chunks, record=False)
    for chunk in chunks:
        chunk.position.add_(1.0)
    shared.gradient(0, first_batch(data))
    anchor = shared.passes.posterior.anchor_row
    for member in shared.members:
        moved = shared.rows[member.part] != anchor
        expected = torch.zeros_like(moved)
        expected[:, member.columns] = True
        assert torch.equal(moved, expected)


def test_small_passes_are_shared_by_all_components_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    posteriors, data = setup("layers", torch.float32)
    names = tuple(posteriors)
    batch = first_batch(data)
    assert groups(posteriors, batch, CONFIG) == [names]
    assert groups(posteriors, batch, replace(CONFIG, chain_method="sequential")) == [(name,) for name in names]
    monkeypatch.setattr(together, "free_memory", lambda device: 1)
    assert groups(posteriors, batch, CONFIG) == [(name,) for name in names]


def test_memory_bounds_how_many_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    posteriors, data = setup("heads", torch.float32)
    names, batch = tuple(posteriors), first_batch(data)
    coordinates = sum(value.numel() for value in next(iter(posteriors.values())).anchor.values())
    monkeypatch.setattr(together, "saved_bytes", lambda passes, batch: 0)
    for fitting, expected in ((2, [names[:2], names[2:]]), (3, [names[:3], names[3:]])):
        needed = fitting * CONFIG.num_chains * COPIES_TOGETHER * coordinates * 4
        monkeypatch.setattr(together, "free_memory", lambda device, needed=needed: 2 * needed)
        assert groups(posteriors, batch, CONFIG) == expected


def test_larger_passes_are_shared_by_components_of_the_same_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    heads, data = setup("heads", torch.float32)
    layers, _ = setup("layers", torch.float32)
    monkeypatch.setattr(together, "saved_bytes", lambda passes, batch: SMALL_PASS + 1)
    found = groups(heads | layers, first_batch(data), CONFIG)
    assert found == [tuple(heads), *((name,) for name in layers)]
