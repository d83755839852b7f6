"""What the benchmarks of precision and of the roofline count."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.chain_speed.cases import CASES
from benchmarks.chain_speed.measure import write_anchor
from benchmarks.chain_speed.worker import Spec, load_problem
from benchmarks.precision import bias
from benchmarks.roofline import Timer, forms_of_update, main, operations, set_up
from lightning_slt.isolation import isolated


def test_bias_is_between_chains_of_equal_noise() -> None:
    g = torch.Generator().manual_seed(0)
    exact = torch.randn(3, 8, generator=g, dtype=torch.float64)
    shift = 0.1 * torch.randn(3, 8, generator=g, dtype=torch.float64)
    found = bias(exact + shift, exact)
    assert found["bias"] == pytest.approx(float(shift.mean()))
    assert found["stderr"] == pytest.approx(float(((shift.std(1) ** 2 / 8).sum() / 9) ** 0.5))
    assert found["stderr_of_a_run"] == pytest.approx(float((((exact + shift).std(1) ** 2) / 8).mean() ** 0.5))


@pytest.fixture(scope="module")
def anchor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_anchor(CASES["mlp-small"], tmp_path_factory.mktemp("anchor"), "cpu")


def test_operations_of_a_perceptron(anchor: Path) -> None:
    """Two operations for each weight and sample forward, two for its gradient, and two for that of hidden units."""
    case = CASES["mlp-small"]
    problem = load_problem(Spec("ours", case.name, str(anchor), "cpu", 1))
    with isolated(problem.module, seed=0):
        counted = operations(set_up(problem, "float32"))
    assert counted == case.num_chains * 2 * case.batch_size * (2 * (64 * 32 + 32 * 10) + 32 * 10)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of importing the compiler
def test_forms_of_the_update_agree(anchor: Path) -> None:
    problem = load_problem(Spec("ours", "mlp-small", str(anchor), "cpu", 1))
    with isolated(problem.module, seed=0):
        setup = set_up(problem, "float32")
        noise = torch.randn(setup.position.shape, generator=torch.Generator().manual_seed(0))
        start, found = setup.position.clone(), {}
        works = forms_of_update(setup, noise, 1e-3, others=True)
        for name, work in works.items():  # eager inside `isolated`
            setup.position.copy_(start).add_(0.01)
            work()
            found[name] = setup.position.clone()
    for other in ("foreach", "compiled"):
        torch.testing.assert_close(found[other], found["as written"], rtol=1e-5, atol=1e-6)
    assert not torch.equal(found["as written"], start)


def test_timer_calls_as_often_as_fills_its_time() -> None:
    now, calls = 0.0, 0

    def work() -> None:
        nonlocal now, calls
        now, calls = now + 0.01, calls + 1

    assert Timer(torch.device("cpu"), lambda: now, 1.0)(work, repeats=2) == pytest.approx([0.01, 0.01])
    assert calls in (2 + 2 * 49, 2 + 2 * 50)


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "roofline.json"
    arguments = ["--cases", "mlp-small", "--precisions", "float32", "--seconds", "0.01", "--output", str(path)]
    assert main(arguments) == 0
    assert "of bandwidth" in capsys.readouterr().out
    assert path.exists()
