"""What failed health checks mean for the user: which, by how much, and what to do. And when to say it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from lightning_slt.estimators.base import Estimator
from lightning_slt.health import DIVERGES, Thresholds

ADVICE = {
    "above_anchor": "the loss does not rise above the anchor's: the network still learns fast, or raise num_draws",
    "drift": "the chains have not settled: raise num_burnin, or localization",
    "rhat": "the chains disagree: raise num_draws or localization, or lower nbeta",
    "spikes": "single draws jump: lower the step_size",
    "finite": "chains diverged and are left out: lower the step_size",
    "snr": "few directions count, or minibatches are too small: raise num_chains or batch_size",
    "drift_to_noise": "the gradient drives the chains: lower the step_size or nbeta",
    "below_anchor": "most draws lie below the anchor's loss: the network still learns; lower nbeta",
    "prior_bound": "the loss falls away from the anchor: lower nbeta, or raise localization",
    "step_size": "the step is too long for this curvature: lower the step_size, or leave sampler= to the monitor",
    "heating": "the step or the minibatch noise raises the value: lower the step_size, or raise batch_size",
    "acceptance": "a Metropolis correction would often reject the steps: lower the step_size",
    "steps": "the curvature has grown more than the steps can follow: a larger localization for the whole run",
    "n_eff": "too few independent draws for single covariances: raise num_chains, num_draws or thinning",
    "between_chains": "the chains have not seen the same posterior: raise num_burnin or localization, or lower nbeta",
    "reliability": "single correlations are mostly noise: raise num_chains or num_draws, or look at group means only",
}
"""One line for each check of :class:`lightning_slt.health.Thresholds`."""


def worthless(results: Mapping[str, Mapping[str, Any]], *, exact: bool) -> dict[str, str]:
    """Estimates that are no numbers, though their chains may have ended: not finite, or of a step that diverges.

    Args:
        results: ``{component: {key: estimate}}``.
        exact: Whether the sampler accepts or rejects, so that a long step makes it stand still instead.

    Returns:
        Why, by ``<component>/<key>``.
    """
    found = {}
    for where, estimate in _flat(results).items():
        health = estimate.health
        stability = health.values.get("step_size", math.nan)
        if not exact and "step_size" in health.failed and stability >= DIVERGES:
            found[where] = f"the step diverges: its stability number is {stability:.3g}, the limit {DIVERGES:g}"
        elif not math.isfinite(getattr(estimate, "mean", 0.0)):
            found[where] = "the mean is not finite"
    return found


class Verdicts:
    """Counts the readings of a fit that cannot be relied on, and says so when there is something new to say.

    A reading that was made again, at other settings of the same weights, counts once, as it came out last.

    Args:
        estimators: Whose thresholds the readings are held against.
        name: The monitor's.
    """

    def __init__(self, estimators: Sequence[Estimator], name: str) -> None:
        """Nothing read yet."""
        self.name = name
        self.limits = {e.name: getattr(e, "thresholds", Thresholds()) for e in estimators}
        self._failed: dict[int, tuple[str, ...] | None] = {}  # by step: checks that failed, None for no reading at all
        self._told: set[str] = set()

    def take(self, step: int, results: Mapping[str, Mapping[str, Any]]) -> str | None:
        """Note one reading, empty where it could not be made.

        Returns:
            What to tell the user, where a check failed that had not failed before.
        """
        failing = _failing(results)
        self._failed[step] = tuple(failing) if results else None
        if failing.keys() <= self._told:
            return None
        self._told |= failing.keys()
        lines = [self._line(check, by_place) for check, by_place in failing.items()]
        return "\n  ".join([f"{self.name}: the reading at step {step} cannot be relied on:", *lines]) + (
            f"\nThis is said again where another check fails; {self.name}/…/ok tells it for every reading."
        )

    def summary(self) -> str:
        """One line for the end of the fit."""
        words = f"{self.name}: {self.readings} {'reading' if self.readings == 1 else 'readings'}"
        unreliable = [checks for checks in self._failed.values() if checks]
        if unreliable:
            words += f", {len(unreliable)} of them unreliable ({_counts(Counter(chain.from_iterable(unreliable)))})"
        if missing := list(self._failed.values()).count(None):
            words += f", {missing} of them failed"
        return words

    @property
    def readings(self) -> int:
        """How many there are."""
        return len(self._failed)

    def _line(self, check: str, by_place: Mapping[str, float]) -> str:
        where, value = next(iter(by_place.items()))
        mine = [thresholds for name, thresholds in self.limits.items() if where.endswith(f"/{name}")]
        limit = getattr(mine[0] if mine else Thresholds(), check)[1]
        others = f" and {len(by_place) - 1} more" if len(by_place) > 1 else ""
        return f"{where}{others}: {check} = {value:.3g}, limit {limit:g}: {ADVICE.get(check, 'see the docs')}"


def _flat(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    return {f"{component}/{key}": e for component, estimates in results.items() for key, e in estimates.items()}


def _failing(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Value of every check that failed, by check and place."""
    failing: dict[str, dict[str, float]] = {}
    for where, estimate in _flat(results).items():
        for check in estimate.health.failed:
            failing.setdefault(check, {})[where] = estimate.health.values.get(check, math.nan)
    return failing


def _counts(failed: Counter[str]) -> str:
    return ", ".join(f"{check} {count}" for check, count in failed.most_common())
