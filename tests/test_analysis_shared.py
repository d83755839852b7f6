"""Saved checkpoints shared out over processes: records, logs and what listeners hear are those of one process."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from languages import NeoX
from lightning.pytorch.callbacks import ModelCheckpoint
from models import FEW, Classifier, blobs, loader_of, seed_all, trainer_for
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_analysis import CONFIG
from test_checkpoints import drawn
from torch import nn

import lightning_slt as slt
from lightning_slt.calibration import OUTGROWN
from lightning_slt.callbacks.offline import ProcessDiedError
from lightning_slt.cli import main
from lightning_slt.losses import classification
from lightning_slt.reading import Anchor, Reader

pytestmark = [pytest.mark.ddp, pytest.mark.usefixtures("elsewhere")]


def save() -> None:
    """Checkpoints at steps 1, 2, … 8 of a short run."""
    seed_all(0)
    saving = ModelCheckpoint("saved", every_n_train_steps=1, save_top_k=-1)
    trainer_for(saving, max_epochs=2).fit(Classifier(), loader_of(blobs()))


def callbacks() -> list[Any]:
    held_out = slt.Probe(blobs(6, seed=3), name="held")
    return [
        slt.SLTMonitor([slt.LLC(traces=True), slt.LossKernel(held_out)], sampling=FEW),
        slt.TrajectoryMonitor(probe=held_out),
        slt.StageMonitor("slt/full/llc", pictures=False),
    ]


def analyzed(folder: str, devices: int, made: Any = None, module: Any = None, **options: Any) -> list[slt.Reading]:
    options = {"start_method": "fork", "progress": False, "data": loader_of(blobs()), **options}
    made = callbacks() if made is None else made
    return slt.analyze(module or Classifier(), "saved", made, run_dir=folder, devices=devices, **options)


class Witness:
    """Writes down which process made which reading, and lets it do something on the way."""

    def __init__(
        self, patched: pytest.MonkeyPatch, *, then: Callable[[int, int], None] = lambda rank, step: None
    ) -> None:
        self.path, read = Path("made.txt").absolute(), Reader.read

        def watched(reader: Reader, anchor: Anchor, settings: Any, **options: Any) -> Any:
            recall = reader.recall

            def witnessed(of: Reader, at: Anchor, key: str, make: Callable[[], Any]) -> Any:
                def noted() -> Any:
                    rank = int(os.environ.get("LOCAL_RANK", 0))
                    then(rank, at.step)
                    with self.path.open("a") as file:
                        file.write(f"{rank} {at.step}\n")
                    return make()

                return recall(of, at, key, noted)

            reader.recall = witnessed
            try:
                return read(reader, anchor, settings, **options)
            finally:
                reader.recall = recall

        patched.setattr(Reader, "read", watched)

    def take(self) -> list[tuple[int, int]]:
        """Ranks and steps since the last look."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        self.path.unlink(missing_ok=True)
        return [(int(rank), int(step)) for rank, step in map(str.split, lines)]


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
    one, two = analyzed("one", 1, alone, every=2), analyzed("two", 2, together, every=2)
    assert {r.step for r in one} == {1, 3, 5, 7}
    assert numbers(one) == numbers(two)
    assert logged("one") == logged("two")
    assert alone[2].state_dict() == together[2].state_dict()
    assert torch.equal(alone[1].rows.values, together[1].rows.values)
    assert all(r.duration > 1e-3 for r in two if r.name == "slt")  # what it took where it was made
    assert not list(Path("two").rglob("*.reading"))
    assert numbers(analyzed("two", 2, every=2)) == numbers(analyzed("two", 1, every=2)) == numbers(two)


def every_kind() -> list[Any]:
    """One result of each kind that there is."""
    held, other = slt.Probe(blobs(6, seed=3), name="held"), slt.Probe(blobs(5, seed=4), name="other")
    several = [
        slt.LLC(control=True), slt.LLC().on(blobs(8, seed=5), name="eight"), slt.LossKernel(held),
        slt.Information(held), slt.BayesianInfluence(train=held, query=other),
        slt.Susceptibility(other, components="layers"),
    ]  # fmt: skip
    return [
        slt.SLTMonitor(several, sampling=FEW),
        slt.CompressibilityMonitor(quantity="slt/full/llc", name="small", schemes=("pruning",), sampling=FEW),
    ]


def test_every_kind_of_result_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading is made once, and not all in the process that records them."""
    save()
    witness = Witness(monkeypatch, then=lambda rank, step: time.sleep(0.2 * (rank == 0)))
    one, _ = analyzed("one", 1, every_kind(), every=4), witness.take()
    two = analyzed("two", 2, every_kind(), every=4)
    made = witness.take()
    assert sorted(step for _, step in made) == [1, 1, 5, 5]
    assert {rank for rank, _ in made} == {0, 1}
    assert numbers(one) == numbers(two)
    assert logged("one") == logged("two")


class Stiff(pl.LightningModule):
    """A quadratic whose curvature is among the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))
        self.register_buffer("curvature", torch.tensor(1.0))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return 0.5 * self.curvature * self.w.square().sum() + 0 * batch[0].sum()


def test_settings_that_are_outgrown_are_renewed_and_readings_made_again() -> None:
    Path("saved").mkdir()
    for step, curvature in enumerate([1.0, 2.0, 3 * OUTGROWN, 4 * OUTGROWN, 5 * OUTGROWN, 5 * OUTGROWN]):
        torch.save({"w": torch.zeros(3), "curvature": torch.tensor(curvature)}, f"saved/step={step}.pt")
    made = [[slt.LLCMonitor(sampling=FEW)], [slt.LLCMonitor(sampling=FEW)]]
    for folder, devices in (("one", 1), ("two", 2)):
        analyzed(folder, devices, made[devices - 1], Stiff())
    one, two = (slt.load_records(folder, revised=True) for folder in ("one", "two"))
    assert {r.revises for r in one} > {0, 1}
    assert numbers(one) == numbers(two)
    assert made[0][0].state_dict()["settings"] == made[1][0].state_dict()["settings"]


def test_a_finder_sets_the_monitors_of_all_processes() -> None:
    Path("saved").mkdir()
    for step in range(4):
        torch.save({"w": torch.zeros(3), "curvature": torch.tensor(1.0)}, f"saved/step={step}.pt")
    counts, found = slt.SamplingConfig(num_chains=4, num_draws=200, batch_size=8), []
    for folder, devices in (("one", 1), ("two", 2)):
        finder = slt.SamplerFinder(at_step=2, step_size=5e-3, nbeta=30.0, localization=12.0, sampling=counts)
        found.append(analyzed(folder, devices, [slt.LLCMonitor(sampling=FEW), finder], Stiff()))
    assert [r.settings["localization"] for r in found[0]] == [12.0] * 4
    assert numbers(found[0]) == numbers(found[1])


def test_a_process_that_is_killed_loses_no_reading_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    save()
    whole = analyzed("whole", 1, [slt.LLCMonitor(sampling=FEW)])

    def kill(rank: int, step: int) -> None:
        if rank == 1 and step >= 4:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.3 * (rank == 0 and step > 1))  # while the other reads ahead

    with monkeypatch.context() as patched:
        witness = Witness(patched, then=kill)
        with pytest.raises(ProcessDiedError, match=r"died .*SIGKILL.*; what was read is kept in later"):
            analyzed("later", 2, [slt.LLCMonitor(sampling=FEW)])
    before = witness.take()
    assert 1 in {rank for rank, _ in before}
    witness = Witness(monkeypatch)
    assert numbers(analyzed("later", 1, [slt.LLCMonitor(sampling=FEW)])) == numbers(whole)
    again = [step for _, step in witness.take()]
    ready = {step for rank, step in before if rank == 1}
    assert ready.isdisjoint(again)
    assert len(again) < 8


def test_what_another_process_cannot_read_the_first_one_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    save()
    Path("saved").joinpath("epoch=0-step=3.ckpt").write_bytes(b"no checkpoint")

    def fail(rank: int, step: int) -> None:
        if rank == 1:
            raise MemoryError("this one alone")
        time.sleep(0.05)

    witness = Witness(monkeypatch, then=fail)
    with pytest.warns(UserWarning, match=r"left out: .*step=3\.ckpt cannot be read"):
        two = analyzed("two", 2, [slt.LLCMonitor(sampling=FEW)])
    assert {rank for rank, _ in witness.take()} == {0}
    with pytest.warns(UserWarning, match="left out"):
        assert numbers(two) == numbers(analyzed("one", 1, [slt.LLCMonitor(sampling=FEW)]))


def test_what_cannot_be_shared_says_so() -> None:
    save()
    for devices in (0, True, "2"):
        with pytest.raises(ValueError, match="devices must be a whole number from 1"):
            analyzed("out", devices)  # type: ignore[arg-type]
    loss = lambda module, batch: classification(module, batch)  # noqa: E731
    with pytest.raises(TypeError, match=r"cannot be sent to other processes: .*lambda.* start_method='fork'"):
        analyzed("out", 2, [slt.LLCMonitor(loss_fn=loss)], start_method="spawn")
    with pytest.raises(ValueError, match="does not fit Linear"):
        analyzed("out", 2, [slt.LLCMonitor(loss_fn=classification)], nn.Linear(9, 9))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_processes_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Started anew, with the model, its data and the monitors sent to them."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    Path("config.yaml").write_text(CONFIG)
    Path("saved").mkdir()
    for step in range(4):
        torch.save(drawn(NeoX(), step), f"saved/step={step}.pt")
    for devices in ("1", "2"):
        assert main(["analyze", "saved", "--config", "config.yaml", "--out", devices, "--devices", devices]) == 0
    assert numbers(slt.load_records("1")) == numbers(slt.load_records("2"))
    assert logged("1") == logged("2")
