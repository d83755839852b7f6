"""``calibrate``: settings for a module at its present weights, found by experiment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from lightning_slt.components import Component, resolve_components
from lightning_slt.data import load_data
from lightning_slt.finding.result import Calibration, Target
from lightning_slt.finding.searches import Amounts, grid_values, reach_absolute, search
from lightning_slt.functional import ModuleLoss, cast_batch
from lightning_slt.isolation import isolated
from lightning_slt.plan import check_settings
from lightning_slt.samplers import SGLD, Sampler
from lightning_slt.sampling import SamplingConfig
from lightning_slt.seeding import derive_seed
from lightning_slt.snapshot import prepare, take_snapshot
from lightning_slt.sources import source_parts
from lightning_slt.types import LossFn

ABSOLUTE_CHAINS = 64
"""Chains of the absolute target where the user names none: its tests are only as sharp as they are many."""


def calibrate(
    module: nn.Module,
    data: Any,
    *,
    target: Target = "relative",
    sampler: Sampler | None = None,
    step_size: Amounts = None,
    nbeta: Amounts = None,
    localization: Amounts = None,
    sampling: SamplingConfig | None = None,
    components: str | Mapping[str, Component] | Component | None = None,
    loss_fn: LossFn | None = None,
    max_steps: int = 50_000,
    on_step: Callable[[int], None] | None = None,
) -> Calibration:
    r"""Find sampler settings for a module at its present weights, without changing it.

    * ``target="relative"``: a curve that can be compared over a run at small cost. Sweeps ε × nβ × γ, all settings as
      one batch of chains; refuses those that do not converge or whose steps are too long; suggests the finest
      resolution γ/nβ that is left, an nβ on the plateau of λ̂(nβ) and the longest unbiased ε.
    * ``target="absolute"``: λ̂ close to λ, at nβ = n/log n and γ = 1, by underdamped Langevin dynamics with a step that
      follows the curvature along the chains. Takes thousands of steps; for small networks and ground truth.

    Args:
        module: The network, on its device.
        data: A Dataset or list of samples, a DataLoader, or a dict or list of these.
        target: Which of the two.
        sampler: Of the sweep, its step size varied; None is SGLD. The absolute target has its own.
        step_size: ε to try, one or several; None for a grid derived from the curvature.
        nbeta: nβ to try; None is (10, 30, 100), or n/log n for the absolute target.
        localization: γ to try; None is nβ λ_max over (3, 10, 30), or 1 for the absolute target.
        sampling: Counts. A sweep makes as many steps of burn-in as it keeps; the absolute target decides on its own
            how long it runs and takes chains and smallest batch size from here (64 chains where nothing is given).
        components: What moves; of several the one with the largest curvature is calibrated on.
        loss_fn: ``loss_fn(module, batch)``; None derives it.
        max_steps: Of one chain, for the absolute target.
        on_step: Called after every step with the number of chains that made it, for a progress display.

    Returns:
        The suggestion with its reason, or none with the reason; and everything that was tried.

    Raises:
        TypeError: If there is no loss to be had, or data cannot be indexed.
        ValueError: For settings, data or losses that cannot be sampled.

    >>> import torch
    >>> import lightning_slt as slt
    >>> from torch.utils.data import TensorDataset
    >>> net = nn.Linear(3, 1)
    >>> x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    >>> found = calibrate(net, TensorDataset(x, net(x).detach()), nbeta=30.0, step_size=[2e-3, 4e-3], localization=10.0,
    ...                   loss_fn=slt.losses.regression)
    >>> found.accepted, sorted(found.keywords())
    (True, ['localization', 'nbeta', 'sampler', 'sampling'])
    """
    check_settings(sampler=sampler, nbeta=None, localization=None, sampling=sampling)
    grids = grid_values(step_size=step_size, nbeta=nbeta, localization=localization)
    if target not in ("relative", "absolute"):
        raise ValueError(f"target must be 'relative' or 'absolute', got {target!r}")
    if target == "absolute" and (sampler is not None or step_size is not None):
        raise ValueError("the absolute target finds its own sampler and step size; leave sampler= and step_size= out")
    config = sampling or SamplingConfig(num_chains=ABSOLUTE_CHAINS if target == "absolute" else 8)
    with isolated(module, seed=derive_seed(config.seed, "reading"), also=(loss_fn, source_parts(data)[1])):
        module_loss = ModuleLoss(module, loss_fn, precision=config.precision)
        device, dtype = module_loss.device, module_loss.dtype
        samples = load_data(data, to_device=lambda b: cast_batch(b, device=device, dtype=dtype), seed=config.seed)
        snapshot = take_snapshot(module_loss, samples, resolve_components(module, components), config)
        resolved = prepare(snapshot, config, localization=1.0)
        if target == "absolute":
            return reach_absolute(snapshot, resolved, config, grids, max_steps, on_step)
        return search(snapshot, resolved, config, sampler or SGLD(step_size=1.0), grids, on_step)
