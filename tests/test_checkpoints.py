"""Saved weights in every layout that runs leave behind: which files, which steps, and into which modules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lightning_slt.checkpoints import choose, find_checkpoints
from lightning_slt.weights import load_into

pytestmark = pytest.mark.usefixtures("elsewhere")


class Tied(nn.Module):
    """A language model whose last layer has the embedding for its weight."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.lm_head = nn.Linear(3, 5, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight


def drawn(module: nn.Module, seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(value.shape, generator=g) for name, value in module.state_dict().items()}


def sharded(weights: dict[str, Tensor], folder: Path, *, whole: str = "model.safetensors") -> None:
    """Two shards and their index, as Hugging Face saves what is large."""
    folder.mkdir(parents=True)
    stem, ending = whole.split(".", 1)
    shards = {name: f"{stem}-{k % 2 + 1:05d}-of-00002.{ending}" for k, name in enumerate(weights)}
    for shard in set(shards.values()):
        part = {name: weights[name] for name, file in shards.items() if file == shard}
        if ending == "bin":
            torch.save(part, folder / shard)
        else:
            save_file(part, folder / shard)
    (folder / f"{whole}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def hub(place: Path, refs: dict[str, str]) -> None:
    """A repository as huggingface_hub keeps it: snapshots by hash, files of which are links, and names of them."""
    for name, digest in refs.items():
        (place / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "refs" / name).write_text(digest)
        blob, link = place / "blobs" / f"{digest}00", place / "snapshots" / digest / "model.safetensors"
        if not link.exists():
            blob.parent.mkdir(exist_ok=True)
            link.parent.mkdir(parents=True)
            save_file(drawn(nn.Linear(2, 2), len(name)), blob)
            link.symlink_to(Path("../../blobs") / blob.name)


@pytest.mark.parametrize("whole", ["model.safetensors", "pytorch_model.bin"])
def test_shards_are_read_together(whole: str) -> None:
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    weights = {step: drawn(module, step) for step in (0, 1000)}
    for step in weights:
        sharded(weights[step], Path(f"run/step{step}"), whole=whole)
    found = find_checkpoints("run")
    assert [c.step for c in found] == [0, 1000]
    for checkpoint in found:
        load_into(module, checkpoint.weights())
        assert all(torch.equal(v, weights[checkpoint.step][n]) for n, v in module.state_dict().items())
        assert checkpoint.size == sum(f.stat().st_size for f in checkpoint.path.parent.glob("*-of-00002.*"))


def test_shards_that_are_not_there_or_lie_elsewhere() -> None:
    module = nn.Linear(2, 2)
    sharded(drawn(module, 0), Path("run/step0"))
    sharded(drawn(module, 0), Path("run/step1"))
    Path("run/step1/model-00002-of-00002.safetensors").unlink()
    broken: dict[Path, str] = {}
    assert [c.step for c in find_checkpoints("run", broken=broken)] == [0]
    ((path, reason),) = broken.items()
    assert path == Path("run/step1/model.safetensors.index.json")
    assert "names the shard model-00002-of-00002.safetensors, which is not there" in reason
    Path("run/step1/model.safetensors.index.json").write_text('{"weight_map": {"weight": "../step0/x.safetensors"}}')
    with pytest.raises(ValueError, match=r"names a shard outside its folder: '\.\./step0/x.safetensors'"):
        find_checkpoints("run/step1")
    Path("run/step1/model.safetensors.index.json").write_text("[]")
    with pytest.raises(ValueError, match="is no index of shards"):
        find_checkpoints("run/step1")


def test_revisions_in_the_cache_of_hugging_face() -> None:
    a, b, c = (letter * 40 for letter in "ab1")
    hub(Path("models--EleutherAI--pythia-70m"), {"step0": a, "step1000": b, "main": c, "pr/7": c})
    found = find_checkpoints("models--EleutherAI--pythia-70m")
    assert [(x.step, x.path.parent.name) for x in found] == [(0, a), (1000, b)]
    assert [x.step for x in find_checkpoints(".")] == [0, 1000]
    assert find_checkpoints(f"models--EleutherAI--pythia-70m/snapshots/{b}")[0].step == 1000
    with pytest.raises(ValueError, match=r"no file of models--EleutherAI--pythia-70m/refs with a step .* holds 1111"):
        find_checkpoints(f"models--EleutherAI--pythia-70m/snapshots/{c}")
    hub(Path("models--EleutherAI--pythia-160m"), {"step0": a})
    with pytest.raises(ValueError, match=r"\. holds several models, models--EleutherAI--pythia-160m, .*-70m; name"):
        find_checkpoints(".")


def test_a_number_in_the_name_of_a_model_is_no_step() -> None:
    Path("pythia-70m").mkdir()
    save_file(drawn(nn.Linear(2, 2), 0), "pythia-70m/model.safetensors")
    with pytest.raises(ValueError, match=r"the step of pythia-70m/model\.safetensors is not known"):
        find_checkpoints("pythia-70m")
    Path("pythia-70m").rename("checkpoint-500")
    assert find_checkpoints("checkpoint-500")[0].step == 500


def test_a_sharded_checkpoint_of_lightning_says_what_to_do() -> None:
    Path("run/step=5.ckpt").mkdir(parents=True)
    Path("run/step=5.ckpt/.metadata").touch()
    with pytest.raises(ValueError, match="is a sharded checkpoint; make one file of it"):
        find_checkpoints("run")


def test_a_tied_weight_is_found_under_one_of_its_names() -> None:
    module = Tied()
    weights = drawn(module, 3)
    for left_out in ("lm_head.weight", "embed.weight"):
        load_into(module, {name: value for name, value in weights.items() if name != left_out})
        kept = weights["embed.weight" if left_out == "lm_head.weight" else "lm_head.weight"]
        assert torch.equal(module.embed.weight, kept)
        assert module.lm_head.weight is module.embed.weight
    del weights["lm_head.weight"]
    with pytest.raises(ValueError, match=r"missing \['lm_head.weight'\]"):
        load_into(Tied(tied=False), weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_into_single(dtype: torch.dtype) -> None:
    module = nn.Linear(2, 3)
    weights = {name: value.to(dtype) for name, value in drawn(module, 0).items()}
    load_into(module, weights)
    assert module.weight.dtype == torch.float32
    assert torch.equal(module.weight, weights["weight"].float())


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = Tied()


@pytest.mark.parametrize(
    ("saved", "own"),
    [
        ("gpt_neox.", ""),
        ("", "network."),
        ("_forward_module.model.", ""),
        ("_orig_mod.", "network."),
        ("model._orig_mod.", ""),
    ],
)
def test_prefixes_are_seen_through(saved: str, own: str) -> None:
    inner = Tied()
    module: nn.Module = Wrapped() if own else inner
    inner = module.network if isinstance(module, Wrapped) else inner
    weights = {name: value for name, value in drawn(inner, 5).items() if name != "lm_head.weight"}
    load_into(module, {f"{saved}{name}": value for name, value in weights.items()})
    assert torch.equal(inner.embed.weight, weights["embed.weight"])


def test_compiled_parts_keep_their_names() -> None:
    module = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"), nn.Linear(2, 2))
    weights = drawn(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 1)
    load_into(module, weights)
    assert torch.equal(module[1].weight, weights["1.weight"])
    assert torch.equal(dict(module.named_parameters())["0._orig_mod.weight"], weights["0.weight"])


def test_weights_that_fit_in_two_places_are_refused() -> None:
    weights = drawn(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), 1)
    with pytest.raises(ValueError, match=r"fit under more than one prefix, '0\.' and '1\.'"):
        load_into(nn.Linear(2, 2), weights)
    del weights["1.bias"]
    module = nn.Linear(2, 2)
    load_into(module, weights)
    assert torch.equal(module.weight, weights["0.weight"])


def test_checkpoints_are_chosen() -> None:
    for step in (0, 1, 2, 1000, 2000, 3000, 3500):
        torch.save({"w": torch.zeros(1)}, f"step={step}.pt")
    found = find_checkpoints(".")

    def steps(**how: object) -> list[int]:
        return [c.step for c in choose(found, **how)]  # type: ignore[arg-type]

    assert steps() == [0, 1, 2, 1000, 2000, 3000, 3500]
    assert steps(steps="0:3000:1000") == steps(steps=range(0, 3001, 1000), every=1)[:4] == [0, 1000, 2000, 3000]
    assert steps(steps="1:1000") == [1, 2, 1000]
    assert steps(steps="0, 2,1000:143000:1000") == [0, 2, 1000, 2000, 3000]
    assert steps(every=3) == [0, 1000, 3500]
    assert steps(last=2) == [3000, 3500]
    with pytest.raises(ValueError, match="there is no checkpoint of step 999; the nearest is of step 1000"):
        choose(found, steps="0,999")
    with pytest.raises(ValueError, match=r"none of the 7 checkpoints, steps 0 to 3500, is among '10:20'"):
        choose(found, steps="10:20")
    for wrong in ("a", "1:2:3:4", "1:", "-1", "0:10:0", ""):
        with pytest.raises(ValueError, match="steps are written 1000, or first:last"):
            choose(found, steps=wrong)
    with pytest.raises(ValueError, match="every must be a whole number from 1, got 0"):
        choose(found, every=0)
    with pytest.raises(ValueError, match="last must be a whole number from 1, got 0"):
        choose(found, last=0)


def test_folders_of_records_hold_no_checkpoints() -> None:
    """Their arrays and anchors are safetensors too, with numbers in their names."""
    for folder in ("run/checkpoints", "run/slt_records/slt"):
        Path(folder).mkdir(parents=True)
        save_file(drawn(nn.Linear(2, 2), 0), f"{folder}/anchor-000007.safetensors")
    assert [c.path for c in find_checkpoints("run")] == [Path("run/checkpoints/anchor-000007.safetensors")]
    assert [c.step for c in find_checkpoints("run/slt_records")] == [7]  # unless they are asked for


@pytest.mark.parametrize("name", ["model", "model_state_dict", "ema"])
def test_weights_under_a_name_of_the_users(name: str) -> None:
    weights = drawn(nn.Linear(2, 2), 0)
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2, 2)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({name: weights, "optimizer": optimizer, "epoch": 3, "global_step": torch.tensor(12)}, "last.pt")
    (found,) = find_checkpoints("last.pt")
    assert (found.step, found.global_step, found.epoch) == (12, 12, 3)
    assert found.weights().keys() == weights.keys()
    counted = {**weights, "step": torch.tensor(3)}  # a buffer of the network's
    torch.save(counted, "step=12.pt")
    assert find_checkpoints("step=12.pt")[0].weights().keys() == counted.keys()
    torch.save({name: weights, "other": weights, "global_step": 12}, "last.pt")
    assert find_checkpoints("last.pt")[0].weights() == {}  # which of them is not for us to guess
