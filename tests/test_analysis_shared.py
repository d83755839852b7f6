"""Saved checkpoints shared out over processes: records, logs and what listeners hear are those of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from models import FEW, Classifier, blobs, loader_of, seed_all, trainer_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import lightning_slt as slt

pytestmark = [pytest.mark.ddp, pytest.mark.usefixtures("elsewhere")]


def save(*, every: int = 1, epochs: int = 3) -> None:
    """Checkpoints at steps 1, 2, … of a short run."""
    seed_all(0)
    saving = ModelCheckpoint("saved", every_n_train_steps=every, save_top_k=-1)
    trainer_for(saving, max_epochs=epochs).fit(Classifier(), loader_of(blobs()))


def callbacks(*, found: bool = True) -> list[Any]:
    given = {} if found else {"sampler": slt.SGLD(step_size=1e-3), "nbeta": 20.0, "localization": 30.0}
    held_out = slt.Probe(blobs(6, seed=3), name="held")
    return [
        slt.SLTMonitor([slt.LLC(traces=True), slt.LossKernel(held_out)], sampling=FEW, **given),
        slt.TrajectoryMonitor(probe=held_out),
        slt.StageMonitor("slt/full/llc", pictures=False),
    ]


def analyzed(folder: str, devices: int, made: list[Any] | None = None, **options: Any) -> list[slt.Reading]:
    options = {"start_method": "fork", "progress": False, "data": loader_of(blobs()), **options}
    return slt.analyze(Classifier(), "saved", made or callbacks(), run_dir=folder, devices=devices, **options)


def logged(folder: str) -> dict[Any, Any]:
    """Everything that TensorBoard has, but for times."""
    events = EventAccumulator(folder, size_guidance={"scalars": 0, "tensors": 0, "images": 0})
    events.Reload()
    scalars = {(t, e.step): str(e.value) for t in events.Tags()["scalars"] for e in events.Scalars(t)}
    texts = {
        (t, e.step): e.tensor_proto.SerializeToString() for t in events.Tags()["tensors"] for e in events.Tensors(t)
    }
    pictures = {(t, e.step): e.encoded_image_string for t in events.Tags()["images"] for e in events.Images(t)}
    return {**scalars, **texts, **pictures}


def numbers(readings: list[slt.Reading]) -> list[Any]:
    """Everything that is recorded, but for times, bit by bit."""
    return [
        (
            (r.name, r.index, r.step, r.global_step, r.epoch, str(r.settings), r.failure, r.revises),
            [(c, key, str(e.health), bits(e)) for c, by_key in r.estimates.items() for key, e in by_key.items()],
        )
        for r in readings
    ]


def bits(estimate: Any) -> dict[str, Any]:
    return {name: (v.shape, v.double().numpy().tobytes()) for name, v in arrays_of(estimate).items()}


def arrays_of(estimate: Any) -> dict[str, torch.Tensor]:
    if isinstance(estimate, slt.Estimate):
        values = torch.tensor([estimate.mean, estimate.stderr], dtype=torch.float64)
        return {"values": values, "per_chain": estimate.per_chain, **estimate.traces}
    return {**estimate.arrays(), **{k: torch.tensor(v, dtype=torch.float64) for k, v in estimate.scalars().items()}}


def test_two_processes_give_what_one_gives_to_the_bit() -> None:
    save()
    alone, together = callbacks(), callbacks()
    one, two = analyzed("one", 1, alone), analyzed("two", 2, together)
    assert {r.step for r in one} == set(range(1, 13))
    assert numbers(one) == numbers(two)
    assert logged("one") == logged("two")
    assert alone[2].state_dict() == together[2].state_dict()
    assert torch.equal(alone[1].rows.values, together[1].rows.values)
    assert all(r.duration > 1e-3 for r in two if r.name == "slt")  # what it took where it was made
    assert not list(Path("two").rglob("*.reading"))
    assert numbers(analyzed("two", 2)) == numbers(analyzed("two", 1)) == numbers(two)
