"""Settings of published experiments by name: ``LLCMonitor(**presets["pythia-70m"].keywords())``.

They define what those papers measured, on their networks and data; they are a start for similar ones, no default. What
a source does not state (batch sizes, and all counts for ResNet18) stands as :class:`SamplingConfig` has it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_slt.samplers import SGLD, RMSPropSGLD, Sampler
from lightning_slt.sampling import SamplingConfig


@dataclass(frozen=True, kw_only=True)
class Preset:
    r"""Settings of one published experiment.

    Attributes:
        sampler: With its step size.
        nbeta: nβ, or None for ``n / log n`` with n the number of training samples (never the batch size).
        localization: γ.
        sampling: Counts.
        source: Where they stand.
    """

    sampler: Sampler
    nbeta: float | None
    localization: float
    sampling: SamplingConfig
    source: str

    def keywords(self, *, n: int | None = None) -> dict[str, Any]:
        """Keywords for monitors and ``estimate``.

        Args:
            n: Number of training samples; needed where nβ is ``n / log n``.

        Returns:
            ``sampler``, ``nbeta``, ``localization`` and ``sampling``.

        Raises:
            ValueError: If n is needed and missing, or below 2.

        >>> round(presets["resnet18-cifar10"].keywords(n=50_000)["nbeta"])
        4621
        """
        if n is not None and n < 2:
            raise ValueError(
                f"n must be a number of samples, 2 or more, got {n!r}; write e.g. keywords(n=len(dataset))"
            )
        if self.nbeta is None and n is None:
            raise ValueError("nβ is n / log n here; give the number of training samples: keywords(n=len(dataset))")
        nbeta = self.nbeta if n is None or self.nbeta is not None else n / math.log(n)
        return {
            "sampler": self.sampler,
            "nbeta": nbeta,
            "localization": self.localization,
            "sampling": self.sampling,
        }


class Presets(Mapping[str, Preset]):
    """Presets by name; an unknown name is an error that lists the nearest ones."""

    def __init__(self, presets: Mapping[str, Preset]) -> None:
        """Keep them."""
        self._presets = dict(presets)

    def __getitem__(self, name: str) -> Preset:
        """The preset of that name.

        Raises:
            KeyError: If there is none.
        """
        if name not in self._presets:
            near = difflib.get_close_matches(str(name), self._presets, n=3, cutoff=0.4)
            raise KeyError(f"no preset {name!r}; the nearest are: {', '.join(near or self._presets)}")
        return self._presets[name]

    def __iter__(self) -> Iterator[str]:
        """Names."""
        return iter(self._presets)

    def __len__(self) -> int:
        """How many there are."""
        return len(self._presets)

    def __repr__(self) -> str:
        """Names."""
        return f"Presets({', '.join(self)})"


_PYTHIA = {
    **{"14m": 1e-3, "31m": 3e-4, "70m": 3e-4, "160m": 1e-4, "410m": 1e-4},
    **{"1b": 3e-5, "1.4b": 3e-5, "2.8b": 1e-5, "6.9b": 3e-6},
}

presets = Presets(
    {
        "attention-2-layer": Preset(
            sampler=SGLD(step_size=1e-3),
            nbeta=30.0,
            localization=200.0,
            sampling=SamplingConfig(num_chains=4, num_draws=200, num_burnin=0),
            source="arXiv:2410.02984, refined LLCs of a 2-layer attention-only transformer with 3M parameters",
        ),
        **{
            f"pythia-{size}": Preset(
                sampler=RMSPropSGLD(step_size=step_size, adaptation="always"),
                nbeta=30.0,
                localization=300.0,
                sampling=SamplingConfig(num_chains=4, num_draws=100, num_burnin=0),
                source=f"arXiv:2510.12077, LLC of Pythia {size.upper()}",
            )
            for size, step_size in _PYTHIA.items()
        },
        "resnet18-cifar10": Preset(
            sampler=SGLD(step_size=2e-7),
            nbeta=None,
            localization=1.0,
            sampling=SamplingConfig(),
            source="arXiv:2308.12108, LLC of ResNet18 on CIFAR-10",
        ),
    }
)
"""All of them."""
