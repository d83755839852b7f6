"""``estimate``: quantities of any module at its present weights; and what every reading refuses or reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from torch import nn

from lightning_slt.assignment import SPANNING, check_estimators, divide
from lightning_slt.boundary import check_module, warn_user
from lightning_slt.calibration import calibrate_relative
from lightning_slt.components import FULL, Component
from lightning_slt.data import load_data
from lightning_slt.estimators.base import Estimator
from lightning_slt.functional import ModuleLoss, cast_batch
from lightning_slt.isolation import isolated
from lightning_slt.running import Results, make_reading
from lightning_slt.samplers.base import Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.seeding import derive_seed
from lightning_slt.snapshot import fetch_probes, prepare, take_snapshot
from lightning_slt.sources import source_parts
from lightning_slt.types import LossFn, is_amount

OnFailure = Literal["warn", "raise"]


class FailedReadingError(RuntimeError):
    """A reading in which a chain failed, where the user asked for that to raise."""


def estimate(
    module: nn.Module,
    data: Any,
    estimators: Sequence[Estimator],
    *,
    sampler: Sampler | None = None,
    nbeta: float | None = None,
    localization: float | None = None,
    sampling: SamplingConfig | None = None,
    components: str | Mapping[str, Component] | Component | None = None,
    loss_fn: LossFn | None = None,
    on_failure: OnFailure = "warn",
    on_step: Callable[[int], None] | None = None,
) -> Results:
    """Estimate quantities of any module at its present weights, without a Trainer and without changing it.

    Args:
        module: The network, on its device.
        data: A Dataset or list of samples, a DataLoader, or a dict or list of these.
        estimators: What to estimate.
        sampler: None is SGLD with a step size found by calibration.
        nbeta: nβ; None for the default of :mod:`lightning_slt.calibration`.
        localization: γ; None is found by calibration.
        sampling: Counts.
        components: None for all weights; see :func:`lightning_slt.components.resolve_components`.
        loss_fn: ``loss_fn(module, batch)``; None derives it, see :func:`lightning_slt.functional.derive_loss`.
        on_failure: ``"raise"`` where a chain that failed should be an error rather than a flag.
        on_step: Called after every step with the number of chains that made it, for a progress display.

    Returns:
        ``{key: estimate}``, or ``{component: {key: estimate}}`` where components were given; results that span
        components, such as ``susceptibility``, stand at the top.

    Raises:
        TypeError: If the module is none, there is no loss to be had, or data cannot be indexed.
        ValueError: For settings, data or losses that cannot be sampled.
        FailedReadingError: If a chain failed and ``on_failure="raise"``.

    >>> import torch
    >>> import lightning_slt as slt
    >>> from torch.utils.data import TensorDataset
    >>> net = nn.Linear(3, 1)
    >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> result = estimate(net, TensorDataset(x, net(x).detach()), [slt.LLC()], loss_fn=slt.losses.regression,
    ...                   sampler=slt.SGLD(step_size=1e-3), nbeta=50.0, localization=1.0,
    ...                   sampling=slt.SamplingConfig(num_burnin=200, batch_size=64))
    >>> bool(1.5 < result["llc"].mean < 2.5)
    True
    """
    check_module(module)
    estimators = check_estimators(estimators)
    check_on_failure(on_failure)
    nbeta, localization = check_settings(sampler=sampler, nbeta=nbeta, localization=localization, sampling=sampling)
    config = sampling or SamplingConfig()
    work = divide(module, components, estimators)
    collates = [source_parts(source)[1] for source in (data, *work.sources.values())]
    with isolated(module, seed=derive_seed(config.seed, "reading"), also=(loss_fn, *collates)):
        module_loss = ModuleLoss(module, loss_fn, precision=config.precision)
        device, dtype = module_loss.device, module_loss.dtype
        to_device = partial(cast_batch, device=device, dtype=dtype)
        load = partial(load_data, to_device=to_device, seed=config.seed)
        samples, sources = load(data), {name: load(source) for name, source in work.sources.items()}
        probes = fetch_probes(estimators, data, to_device=to_device, seed=config.seed)
        snapshot = take_snapshot(module_loss, samples, work.components, config, probes, sources)
        config = prepare(snapshot, config, localization=localization if localization is not None else 1.0)
        settings = None
        if work.sets:
            settings = calibrate_relative(
                snapshot.posterior,
                snapshot.components,
                snapshot.data,
                config,
                sampler=sampler,
                nbeta=nbeta,
                localization=localization,
            )
        results = make_reading(snapshot, work, settings, seed=config.seed, on_step=on_step)
    report_failures(results, None if on_failure == "raise" else warn_user)
    spanning = results.pop(SPANNING, {})
    own = results.get(FULL, {}) if components is None else results
    others = {} if components is not None else {name: found for name, found in results.items() if name != FULL}
    return {**own, **others, **spanning}


def check_settings(
    *, sampler: Sampler | None, nbeta: float | None, localization: float | None, sampling: SamplingConfig | None
) -> tuple[float | None, float | None]:
    """Refuse settings of the wrong kind before any data are read.

    Returns:
        nβ and γ as plain floats, whatever numeric type they were.

    Raises:
        TypeError: If the sampler or the counts are something else.
        ValueError: If nβ or γ is no finite number, zero or more.
    """
    if not (sampler is None or isinstance(sampler, Sampler)):
        raise TypeError(f"sampler must be a sampler such as SGLD(step_size=1e-4), or None, got {sampler!r}")
    if not (sampling is None or isinstance(sampling, SamplingConfig)):
        raise TypeError(f"sampling must be a SamplingConfig such as SamplingConfig(num_chains=4), got {sampling!r}")
    return _constant("nbeta", nbeta, 30.0), _constant("localization", localization, 300.0)


def _constant(name: str, value: float | None, example: float) -> float | None:
    if value is None or is_amount(value):
        return None if value is None else float(value)
    raise ValueError(
        f"{name} must be a finite number, zero or more, or None to be found, got {value!r}; write e.g. {name}={example}"
    )


def check_on_failure(on_failure: str) -> None:
    """Refuse anything but the two words.

    Raises:
        ValueError: If it is neither ``"warn"`` nor ``"raise"``.
    """
    if on_failure not in ("warn", "raise"):
        raise ValueError(f"on_failure must be 'warn' or 'raise', got {on_failure!r}")


def report_failures(results: Mapping[str, Results], complain: Callable[[str], None] | None) -> None:
    """Say which chains died, or raise.

    Args:
        results: ``{component: {key: estimate}}``.
        complain: Tells the user; None raises.

    Raises:
        FailedReadingError: If any did and nobody is to be told.
    """
    for component, estimates in results.items():
        for key, value in estimates.items():
            dead = value.health.dead_chains
            if not dead:
                continue
            where = ", ".join(f"chain {c} at step {s}" for c, s in dead.items())
            message = f"{component}/{key}: the loss was not finite in {where}; they are left out. Lower the step size"
            if complain is None:
                raise FailedReadingError(message)
            complain(message)
