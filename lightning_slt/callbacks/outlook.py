"""What an analysis of saved checkpoints would read, and how long that takes, without reading anything."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from lightning_slt.callbacks.ledger import Ledger
from lightning_slt.checkpoints import choose, find_checkpoints


def outlook(
    checkpoints: str | Path | Sequence[str | Path],
    *,
    run_dir: str | Path = "slt_analysis",
    steps: str | Collection[int] | None = None,
    every: int = 1,
    last: int | None = None,
    devices: int = 1,
) -> str:
    """Steps, sizes and states of the checkpoints that :func:`lightning_slt.analyze` would read, and its time.

    Args:
        checkpoints: As there, here and below.
        run_dir: Where what was read is recorded.
        steps: Only these.
        every: Only every so many of them.
        last: Only the last so many of these.
        devices: To share them.

    Returns:
        A table, and a line that sums it up.
    """
    broken: dict[Path, str] = {}
    ledger = Ledger(Path(run_dir))
    chosen = choose(find_checkpoints(checkpoints, broken=broken), steps=steps, every=every, last=last)
    states = ["read" if c.step in ledger.steps else "failed" if str(c.path) in ledger.broken else "" for c in chosen]
    rows = [
        f"{checkpoint.step:>10}  {checkpoint.size / 1e6:>10.3f}  {state:<6}  {checkpoint.path}"
        for checkpoint, state in zip(chosen, states, strict=True)
    ]
    rows += [f"{'?':>10}  {'':>10}  broken  {path}: {reason}" for path, reason in broken.items()]
    left, size = len(chosen) - states.count("read"), sum(c.size for c in chosen) / 1e9
    time = "how long that takes is known after the first"
    if ledger.seconds is not None:
        where = f"{devices} devices" if devices > 1 else "one device"
        time = f"about {in_units(ledger.seconds * left / devices)} on {where}, {in_units(ledger.seconds)} each so far"
    summary = f"{left} of {len(chosen)} checkpoints, {size:.3g} GB in all, are to be read; {time}"
    return "\n".join([f"{'step':>10}  {'MB':>10}  {'state':<6}  file", *rows, summary])


def in_units(seconds: float) -> str:
    """A duration in the units that one would say it in.

    >>> in_units(0.31), in_units(75), in_units(7500), in_units(200000)
    ('0.31 s', '1 min 15 s', '2 h 5 min', '2 d 8 h')
    """
    for large, small, size in (("d", "h", 86400), ("h", "min", 3600), ("min", "s", 60)):
        if seconds >= size:
            unit = {"h": 3600, "min": 60, "s": 1}[small]
            whole, rest = divmod(round(seconds / unit), size // unit)
            return f"{whole} {large} {rest} {small}"
    return f"{seconds:.2g} s"
