"""Writes `tests/data/devinterp_parity.npz`: trajectories of devinterp 1.3.2 on the noise and minibatches of our chains.

    python -m benchmarks.parity

A small tanh network in float64, two chains. This process draws noise and minibatches as `lightning_slt.sample` does;
the peer's own interpreter (`benchmarks/.envs`, made on first use) runs the peer's optimizers on them. The test
`tests/test_samplers_parity.py` compares our chains with what is stored, so it needs no peer.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.chain_speed.environments import DEVINTERP_1_3
from lightning_slt.data import Streams
from lightning_slt.sampling import ChainNoise

STORED = Path(__file__).resolve().parents[2] / "tests" / "data" / "devinterp_parity.npz"
SEED, CHAINS, STEPS, EVERY, SAMPLES, BATCH = 7, 2, 40, 4, 24, 6
SETTINGS = {"nbeta": 20.0, "localization": 5.0, "sgld_step_size": 0.02, "rmsprop_step_size": 0.004}


def problem() -> dict[str, np.ndarray]:
    """Anchor, data, noise and minibatches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    anchor = torch.cat([p.detach().flatten() for p in net.parameters()])
    noise = ChainNoise(range(CHAINS), like=anchor.repeat(CHAINS, 1), seed=SEED)
    streams = Streams(SAMPLES, batch_size=BATCH, seed=SEED, chains=range(CHAINS), share_batches=False)
    arrays = {
        "anchor": anchor,
        "x": torch.randn(SAMPLES, 4, dtype=torch.float64),
        "y": torch.arange(SAMPLES) % 3,
        "noise": torch.stack([noise.normals().clone() for _ in range(STEPS)], 1),  # [chain, step, coordinate]
        "batches": torch.stack([streams.next() for _ in range(STEPS)], 1),  # [chain, step, sample]
        "seed": torch.tensor(SEED),
        "every": torch.tensor(EVERY),
        **{name: torch.tensor(value, dtype=torch.float64) for name, value in SETTINGS.items()},
    }
    return {name: array.numpy() for name, array in arrays.items()}


def main() -> None:
    """Draw, let the peer run, store."""
    given = problem()
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "question.npz", Path(folder) / "answer.npz"
        np.savez(question, **given)
        peer = Path(__file__).with_name("peer.py")
        subprocess.run([DEVINTERP_1_3.python(), peer, question, answer], check=True)
        with np.load(answer) as file:
            paths = dict(file)
    STORED.parent.mkdir(exist_ok=True)
    np.savez_compressed(STORED, **given, **paths)
    print(f"{STORED}: {STORED.stat().st_size} bytes, {', '.join(sorted(paths))}")


if __name__ == "__main__":
    main()
