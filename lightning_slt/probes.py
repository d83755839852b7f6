"""Probes: named, fixed sets of samples whose losses are measured at every draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from lightning_slt.boundary import check_loss_fn
from lightning_slt.types import LossFn


@dataclass(frozen=True, eq=False)
class Probe:
    """A fixed set of samples, evaluated in eval mode, in the same order and without new augmentations at every draw.

    Args:
        data: A Dataset or list of samples, a DataLoader, or a dict or list of these; None for what the chains' own
            minibatches come from.
        name: In keys, tags and tables.
        num_samples: So many of them, chosen at random once; None is all. More than ``data`` has are an error when the
            probe is fetched; of the chains' own data (``data=None``) at most so many are taken.
        labels: One whole number per sample of ``data`` ``[sample]``, for agreement and colours; None takes the targets
            of ``(input, target)`` samples where these are whole numbers.
        loss_fn: ``loss_fn(module, batch)`` → ``[sample]`` or ``[sample, token]``, in nats; None is the one that is
            sampled.
        batch_size: Samples that are evaluated together for each chain; fewer need less memory.

    Raises:
        ValueError: If the name is empty or a number not positive.
        TypeError: If the loss is no function of (module, batch).

    >>> import torch
    >>> Probe([torch.zeros(2), torch.ones(2)], name="two").name
    'two'
    """

    data: Any
    name: str = "probe"
    num_samples: int | None = None
    labels: Tensor | Sequence[int] | None = None
    loss_fn: LossFn | None = None
    batch_size: int = 256

    def __post_init__(self) -> None:
        """Refuse what no probe can be."""
        if not isinstance(self.name, str) or not self.name.strip() or "/" in self.name:
            raise ValueError(f"a Probe's name must be a non-empty word without '/', got {self.name!r}")
        count = self.num_samples
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ValueError(f"Probe.num_samples must be a whole number of at least 1, or None for all, got {count!r}")
        size = self.batch_size
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"Probe.batch_size must be a whole number of at least 1, got {size!r}")
        if self.loss_fn is not None:
            check_loss_fn(self.loss_fn)

    def on(self, source: Any) -> Probe:
        """This probe, or one of the chains' own data where it has none."""
        return self if self.data is not None else replace(self, data=source)

    def same_as(self, other: Probe) -> bool:
        """Whether both are one: same name, data, count and loss."""
        mine = (self.name, self.data, self.num_samples, self.batch_size, self.loss_fn)
        theirs = (other.name, other.data, other.num_samples, other.batch_size, other.loss_fn)
        return all(a is b or (isinstance(a, str | int) and a == b) for a, b in zip(mine, theirs, strict=True))


@dataclass(frozen=True, kw_only=True)
class ProbeAtAnchor:
    """What an estimator may know of a probe before the chains run.

    Attributes:
        anchor: Its losses at the anchor ``[sample]`` or ``[sample, token]``, in nats.
        labels: ``[sample]``, or None.
        indices: Which samples of the user's data these are ``[sample]``.
    """

    anchor: Tensor = field(repr=False)
    labels: Tensor | None = field(repr=False)
    indices: Tensor = field(repr=False)


def as_probe(probe: Any, *, name: str = "probe") -> Probe:
    """A probe, or one of a bare data set."""
    return probe if isinstance(probe, Probe) else Probe(probe, name=name)


def distinct(probes: Sequence[Probe]) -> dict[str, Probe]:
    """Probes by name, each once.

    Raises:
        ValueError: If two different ones share a name.
    """
    known: dict[str, Probe] = {}
    for probe in probes:
        if not known.setdefault(probe.name, probe).same_as(probe):
            raise ValueError(
                f"two probes are called {probe.name!r} and differ in data, num_samples, batch_size or loss_fn; "
                "give one of them another name: Probe(data, name='other')"
            )
    return known
