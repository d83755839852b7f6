"""The benchmark of chain-steps times one kind of run: long enough to be recorded, or not recorded at all."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks.chain_speed.__main__ import CONTENDERS
from benchmarks.chain_speed.measure import Budget, Field
from lightning_slt.sampling import RECORDED_FROM


@dataclass
class Clock:
    """A worker whose steps cost a quarter, after some set-up, in runs that are recorded."""

    runs: list[int] = field(default_factory=list)

    def reply(self) -> dict[str, Any]:
        return {"ready": True}

    def run(self, steps: int, **_: Any) -> dict[str, Any]:
        self.runs.append(steps)
        recorded = steps >= RECORDED_FROM
        return {"seconds": 1.0 + (0.5 + 0.01 * steps if recorded else 0.04 * steps), "peak_bytes": 0}


@pytest.mark.parametrize("seconds", [0.1, 1.0, 2.0, 4.0, 100.0])
def test_the_marginal_cost_is_that_of_recorded_steps(seconds: float) -> None:
    clock = Clock()
    contenders = Field({"ours": clock}, Budget(seconds=seconds), {"ours": CONTENDERS["ours"].least_steps})  # type: ignore[dict-item]
    contenders.start()
    clock.runs.clear()
    for seed in range(3):
        contenders.time(seed)
    assert contenders.measurements["ours"].step_seconds == pytest.approx([0.01] * 3)
    assert min(clock.runs) >= RECORDED_FROM
