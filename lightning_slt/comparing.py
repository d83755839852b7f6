"""``compare``: two networks, runs or results side by side, and what of the difference is more than error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lightning_slt.analysis.comparison import (
    Difference,
    Preference,
    align,
    difference,
    kernel_features,
    preference,
)
from lightning_slt.analysis.responses import standardized
from lightning_slt.analysis.trajectories import JointTrajectories, joint_trajectories
from lightning_slt.components import FULL, Component
from lightning_slt.estimators import LLC, Estimator
from lightning_slt.reporting.comparison import WHOLE, Comparison
from lightning_slt.results import Result, StoredResult
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.sides import CONSTANTS, Given, Side, sampled, side_of
from lightning_slt.types import Estimate, LossFn


def compare(
    a: Given,
    b: Given,
    *,
    data: Any = None,
    estimators: Sequence[Estimator] | None = None,
    baseline: Sequence[Given] = (),
    names: tuple[str, str] = ("a", "b"),
    step: int | None = None,
    num_samples: int | None = None,
    sampler: Sampler | None = None,
    nbeta: float | None = None,
    localization: float | None = None,
    sampling: SamplingConfig | None = None,
    components: str | Mapping[str, Component] | None = None,
    loss_fn: LossFn | None = None,
    permutations: int = 999,
    seed: int = 0,
) -> Comparison:
    """Tell two networks of equal loss apart, or a network before and after a fine-tune.

    Args:
        a: A network, a run's folder, readings, or results of :func:`lightning_slt.estimate`.
        b: The same kind of thing.
        data: What networks are sampled on: the same for both.
        estimators: Of networks; None is ``[LLC()]``.
        baseline: Others of a's kind, trained from other seeds say: what differs more than these do is more than chance.
        names: For the report.
        step: Of runs, the reading at this step, or the last one before; None is the last of all.
        num_samples: n of the free energy; None takes what the readings were sampled on, where that is known.
        sampler: Of networks. What is left open is found on both and the settings for the larger curvature serve both.
        nbeta: Of networks.
        localization: Of networks.
        sampling: Of networks.
        components: Of networks.
        loss_fn: Of networks.
        permutations: For the null of alignments.
        seed: Of these.

    Returns:
        What both sides have in common, compared.

    Raises:
        TypeError: For networks without data, or sides of different kinds.
        ValueError: If the sides have nothing in common.
    """
    networks = [side for side in (a, b, *baseline) if isinstance(side, nn.Module)]
    if 0 < len(networks) < 2 + len(baseline):
        raise TypeError(f"a network is compared with a network, got {type(a).__name__} and {type(b).__name__}")
    options: dict[str, Any] = {"components": components, "loss_fn": loss_fn}
    given: dict[str, Any] = {"sampler": sampler, "nbeta": nbeta, "localization": localization, "sampling": sampling}
    if networks:
        if data is None:
            raise TypeError("networks are compared by sampling around them; give data= what both are sampled on")
        sides = sampled(networks, data, [LLC()] if estimators is None else estimators, given, options)
    else:
        sides = [side_of(side, step=step) for side in (a, b, *baseline)]
    one, two, *others = sides
    shared = [where for where in one.results if where in two.results]
    if not shared:
        raise ValueError(
            f"the sides have nothing in common: {names[0]} has {', '.join(one.results) or 'nothing'}, "
            f"{names[1]} has {', '.join(two.results) or 'nothing'}"
        )
    differences, alignments = {}, {}
    for where in shared:
        found = [side.results[where] for side in (one, two, *(o for o in others if where in o.results))]
        if isinstance(found[0], Estimate):
            differences[where] = difference(found[0], found[1])
        elif (factors := _factors(found)) is not None:
            mine, theirs, *rest = factors
            alignments[where] = align(mine, theirs, others=rest, permutations=permutations, seed=seed)
    return Comparison(
        names=names,
        differences=differences,
        alignments=alignments,
        preference=_preference(one, two, num_samples),
        curves=_curves(one, two),
        trajectories=_trajectories(one, two, names),
        notes=tuple(_notes(one, two, others, names, aligned=bool(alignments))),
    )


def _factors(results: Sequence[Any]) -> list[Tensor] | None:
    """What :func:`align` takes, of loss kernels and response matrices; None for other kinds."""
    kinds = {r.kind if isinstance(r, StoredResult) else type(r).__name__ for r in results if isinstance(r, Result)}
    if kinds == {"KernelEstimate"}:
        return [r.factor.double() if isinstance(r, StoredResult) else kernel_features(r.factor) for r in results]
    if kinds == {"Responses"}:
        return [standardized(r.matrix).T for r in results]
    return None


def _preference(one: Side, two: Side, num_samples: int | None) -> Preference | None:
    if WHOLE not in one.results or WHOLE not in two.results:
        return None
    llc = difference(one.results[WHOLE], two.results[WHOLE])
    losses = [side.results[WHOLE].health.values.get("anchor_loss", math.nan) for side in (one, two)]
    count = num_samples or one.samples or two.samples
    if count is None or count < 2:
        return None
    return preference(losses[1] - losses[0], llc.difference, llc.stderr, num_samples=count)


def _curves(one: Side, two: Side) -> dict[str, dict[int, Difference]]:
    def series(side: Side) -> dict[str, dict[int, Estimate]]:
        found: dict[str, dict[int, Estimate]] = {}
        for reading in side.readings:
            for component, estimates in reading.estimates.items():
                for key, value in estimates.items():
                    if isinstance(value, Estimate):
                        found.setdefault(f"{component}/{key}", {})[reading.step] = value
        return found

    mine, theirs = series(one), series(two)
    return {
        where: {step: difference(found, theirs[where][step]) for step, found in own.items() if step in theirs[where]}
        for where, own in mine.items()
        if where in theirs
    }


def _trajectories(one: Side, two: Side, names: tuple[str, str]) -> JointTrajectories | None:
    def has(side: Side) -> bool:
        return any("trajectory" in reading.estimates.get(FULL, {}) for reading in side.readings)

    runs = dict(zip(names, (one.readings, two.readings), strict=True))
    return joint_trajectories(runs) if has(one) and has(two) else None


def _notes(one: Side, two: Side, others: Sequence[Side], names: tuple[str, str], *, aligned: bool) -> list[str]:
    settings = {name: (one.settings.get(name), two.settings.get(name)) for name in CONSTANTS}
    notes = [
        f"{name} differs: {_short(mine)} of {names[0]}, {_short(theirs)} of {names[1]}; these are different "
        "posteriors, and their numbers cannot be compared"
        for name, (mine, theirs) in settings.items()
        if mine != theirs
    ]
    if one.step != two.step:
        notes.append(f"{names[0]} was read at step {one.step}, {names[1]} at step {two.step}")
    failed = [f"{where} of {name}" for name, side in zip(names, (one, two), strict=True) for where in side.unreliable]
    if failed:
        notes.append(f"failed their health checks: {', '.join(failed)}")
    if aligned and not others:
        notes.append("without baseline= there is nothing to tell what seeds alone would make of alignments")
    return notes


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
