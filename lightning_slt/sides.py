"""One side of a comparison: what was estimated of a network, from wherever the user has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lightning_slt.assignment import SPANNING
from lightning_slt.calibration import Settings
from lightning_slt.components import FULL
from lightning_slt.estimators import Estimator
from lightning_slt.plan import estimate
from lightning_slt.records import Reading, load_records
from lightning_slt.sources import source_parts

Given = nn.Module | str | Path | Sequence[Reading] | Mapping[str, Any]
"""A network, the folder of a run's logs, readings, or what :func:`lightning_slt.estimate` returned."""

CONSTANTS = ("sampler", "nbeta", "localization")
"""Settings in which two sides must agree, or their numbers are of different posteriors."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """What was estimated of one network.

    Attributes:
        results: By ``<component>/<key>``.
        settings: The constants of the posterior.
        samples: How many samples it was sampled on; None where that is not known.
        step: Of the reading; None without one.
        readings: All of the run, of which ``results`` are the last.
    """

    results: Mapping[str, Any]
    settings: Mapping[str, Any]
    samples: int | None = None
    step: int | None = None
    readings: Sequence[Reading] = ()

    @property
    def unreliable(self) -> list[str]:
        """Results that failed their checks."""
        return [where for where, result in self.results.items() if not result.health.ok]


def side_of(given: Given, *, step: int | None = None) -> Side:
    """A side from results, readings, or a run's folder.

    Args:
        given: One of these.
        step: The reading at this step, or the last one before; None is the last of all.

    Raises:
        ValueError: If there is no such reading, or several monitors have one of the same name.
    """
    if isinstance(given, Mapping):
        return _of_results(given)
    readings: Sequence[Reading] = load_records(given) if isinstance(given, str | Path) else given  # type: ignore[assignment]
    made = [r for r in readings if r.estimates and (step is None or r.step <= step)]
    if not made:
        raise ValueError(f"there is no reading{'' if step is None else f' up to step {step}'} in {given}")
    last = {reading.name: reading for reading in sorted(made, key=lambda r: r.step)}.values()
    places = [(f"{c}/{key}", r.name) for r in last for c, by_key in r.estimates.items() for key in by_key]
    owners = {where: [name for other, name in places if other == where] for where, _ in places}
    if twice := next((where for where, names in owners.items() if len(names) > 1), None):
        raise ValueError(
            f"the monitors {' and '.join(map(repr, owners[twice]))} both have {twice}; compare the readings of one: "
            f"load_records(run, name={owners[twice][0]!r})"
        )
    described = next((reading.settings for reading in last if reading.settings), {})
    count = str(described.get("samples", "")).rpartition(" of ")[2]
    return Side(
        results={
            f"{c}/{key}": found for r in last for c, by_key in r.estimates.items() for key, found in by_key.items()
        },
        settings={key: described.get(key) for key in CONSTANTS},
        samples=int(count) if count.isdigit() else None,
        step=max(reading.step for reading in last),
        readings=readings,
    )


def sampled(
    networks: Sequence[nn.Module],
    data: Any,
    estimators: Sequence[Estimator],
    given: Mapping[str, Any],
    options: Mapping[str, Any],
) -> list[Side]:
    """Sides of networks under one posterior's constants: those found for the network with the largest curvature.

    Args:
        networks: Which.
        data: What is sampled on.
        estimators: What is estimated.
        given: Sampler, nβ, γ and counts, None where they are to be found.
        options: Further ones of :func:`lightning_slt.estimate`.
    """

    def run(network: nn.Module, settings: Mapping[str, Any]) -> dict[str, Any]:
        return estimate(network, data, estimators, **settings, **options)

    results = [run(network, given) for network in networks]
    found = [_settings(_flat(one)) for one in results]
    if (given["sampler"] is None or given["localization"] is None) and all(found):
        steepest = max(found, key=lambda settings: settings.curvature)
        shared = {name: getattr(steepest, name) for name in given}
        pairs = zip(networks, results, found, strict=True)
        results = [one if settings is steepest else run(network, shared) for network, one, settings in pairs]
    samples = len(source_parts(data)[0])
    return [_of_results(one, samples) for one in results]


def _of_results(results: Mapping[str, Any], samples: int | None = None) -> Side:
    flat = _flat(results)
    settings = _settings(flat)
    known = {} if settings is None else {name: getattr(settings, name) for name in CONSTANTS}
    if settings is not None:
        known["sampler"] = type(settings.sampler).__name__
    return Side(results=flat, settings=known, samples=samples)


def _flat(results: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in results.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}/{inner}": found for inner, found in value.items()}
        else:
            flat[f"{SPANNING if hasattr(value, 'components') else FULL}/{key}"] = value
    return flat


def _settings(flat: Mapping[str, Any]) -> Any:
    """What the chains ran with; None where there were none."""
    return next((s for v in flat.values() if isinstance(s := getattr(v, "settings", None), Settings)), None)
