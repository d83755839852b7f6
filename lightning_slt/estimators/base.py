"""What every estimator is: a frozen description that starts an accumulator for each run of chains."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_slt.data import SamplingData
from lightning_slt.functional import ModuleLoss
from lightning_slt.probes import Probe, ProbeAtAnchor
from lightning_slt.results import Result
from lightning_slt.types import Batch, Draw, FunctionalLoss, Params

SCALAR_FIELDS: tuple[str, ...] = ("mean", "stderr", "lower", "upper", "rhat")
"""What is logged of a scalar :class:`lightning_slt.types.Estimate`, beside ``ok``."""


WHOLE = "(all weights)"
"""In the place of a component's name, what the chains of all weights gave to an estimator that asks for them too."""


class Source(NamedTuple):
    """Samples that an estimator's chains draw their minibatches from in the place of the reading's own.

    Attributes:
        name: Tells data sets apart.
        data: A Dataset or list of samples, a DataLoader, or a dict or list of these.
    """

    name: str
    data: Any


@dataclass(frozen=True, kw_only=True)
class Run:
    """What an accumulator may know of the chains that feed it.

    Attributes:
        num_chains: Of the whole run, all processes together.
        num_draws: Kept draws per chain.
        nbeta: nβ.
        localization: γ.
        dimension: Number d of free coordinates.
        num_samples: Samples n that the mean loss is one of.
        share_batches: Whether chains use the same minibatches.
        stability: ``ε (nβ λ_max + γ)`` where it was measured, else NaN.
        steps: Share of the steps that the curvature asks for.
        curvature: λ_max at the anchor where it was measured, else NaN.
        probes: What is known of each probe, by name.
        device: Where the draws are.
    """

    num_chains: int
    num_draws: int
    nbeta: float
    localization: float
    dimension: int
    num_samples: int = 1
    share_batches: bool = False
    stability: float = float("nan")
    steps: float = 1.0
    curvature: float = float("nan")
    probes: Mapping[str, ProbeAtAnchor] = field(default_factory=dict)
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Accumulator(ABC):
    """Takes the draws of one run in, and gives the estimate at the end."""

    @abstractmethod
    def update(self, draw: Draw) -> None:
        """Take one draw of some chains in."""

    @property
    @abstractmethod
    def states(self) -> Sequence[Metric]:
        """Statistics that several processes add up before :meth:`compute`."""

    @abstractmethod
    def compute(self) -> Any:
        """The estimate: a frozen dataclass with ``health``, and ``settings`` for :func:`run_chains` to fill in."""


class Estimator(ABC):
    """Base of all estimators; frozen dataclasses with a ``name``, the key of their result.

    Attributes:
        name: Key of the result.
        control: Whether the chains shall run once more at nβ = 0, for :meth:`controlled`. One such run serves all
            estimators that ask.
        fields: Names of the scalars that its result has, beside ``ok``.
        spanning: Whether its result spans components, and is made by :meth:`combine` of what each of them gives.
    """

    name: str
    control: bool = False
    # no annotations: command-line parsers look them up in the modules of subclasses
    fields = SCALAR_FIELDS
    spanning = False

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes whose losses it needs at every draw."""
        return ()

    @property
    def source(self) -> Source | None:
        """Samples for chains of its own; None for the reading's. See :meth:`on`."""
        return getattr(self, "_source", None)

    @property
    def moves(self) -> Any:
        """What moves for it, as users write ``components``; None for what moves in the reading."""
        return None

    @property
    def whole(self) -> bool:
        """Whether it needs the chains of all weights, too: :meth:`combine` finds what they gave under ``WHOLE``."""
        return False

    def on(self, data: Any, *, name: str) -> Any:
        """The same on other samples: a copy whose chains draw their minibatches from these (a data-refined quantity).

        Args:
            data: A Dataset or list of samples, a DataLoader, or a dict or list of these.
            name: Of the data; the key of the copy's result is ``<key>/<name>``.

        Raises:
            ValueError: If the name is empty or holds a slash.
        """
        if not isinstance(name, str) or not name.strip() or "/" in name:
            raise ValueError(f"the name of a data set must be a non-empty word without '/', got {name!r}")
        other = copy(self)
        for key, value in (("_source", Source(name, data)), ("name", f"{self.name}/{name}")):
            object.__setattr__(other, key, value)
        return other

    @property
    def component_fields(self) -> tuple[str, ...]:
        """Names of the scalars that a result which spans components has for each of them, beside ``ok``."""
        return ()

    def combine(self, parts: Mapping[str, Any]) -> Any:
        """The result of an estimator that spans components, from its results ``{component: result}``."""
        raise NotImplementedError(f"{type(self).__name__} spans components and has no combine()")

    @abstractmethod
    def start(self, run: Run) -> Accumulator:
        """An empty accumulator for one run of chains."""

    def controlled(self, estimate: Any, control: Any) -> Any:
        """Put the control run beside the estimate.

        Args:
            estimate: Of the posterior.
            control: The same of localization and noise alone, computed with the posterior's nβ.
        """
        raise NotImplementedError(f"{type(self).__name__} asks for a control run and has no controlled()")


@dataclass(frozen=True, kw_only=True)
class View:
    """The network at one anchor, for what is measured there without any chains.

    Attributes:
        module_loss: Holds copies of the weights; see :meth:`evaluate`.
        loss: Function of (weights, batch), with the same random numbers at every call if it draws any.
        data: The reading's own samples.
        probes: What is known of each probe, by name.
        probe_batches: Its samples in order, by name.
        seed: Of the run.
    """

    module_loss: ModuleLoss
    loss: FunctionalLoss
    data: SamplingData
    probes: Mapping[str, ProbeAtAnchor] = field(default_factory=dict)
    probe_batches: Mapping[str, tuple[Batch, ...]] = field(default_factory=dict)
    seed: int = 0

    @property
    def module(self) -> nn.Module:
        """The network, to look at its structure; its own weights may have moved on."""
        return self.module_loss.module

    @property
    def weights(self) -> Params:
        """The anchor, by parameter name; not to be written to."""
        return self.module_loss.weights

    def batches(self, size: int = 256) -> Iterator[Batch]:
        """All samples of the reading's data, in order."""
        for part in torch.split(torch.arange(len(self.data)), size):
            yield self.data.batch(part)

    def mean_loss(self, weights: Params, *, size: int = 256) -> float:
        """Mean loss over the reading's data at some weights, in nats; names left out stay at the anchor."""
        with torch.no_grad():
            parts = torch.split(torch.arange(len(self.data)), size)
            losses = [self.loss(weights, self.data.batch(part)).double().mean() * len(part) for part in parts]
        return float(sum(losses)) / len(self.data)

    def evaluate(self, function: Callable[[nn.Module, Batch], Tensor], weights: Params, batch: Batch) -> Tensor:
        """What a function of (module, batch) returns with some weights in the place of the module's own."""
        with torch.no_grad():
            return self.module_loss.with_loss(function)(weights, batch)


class AtAnchor(Estimator):
    """An estimator that needs no chains: it looks at the anchor alone, once for the whole network."""

    @property
    def needs_whole_weights(self) -> bool:
        """Whether it works on the weights themselves, of which each process has only shards where they are sharded."""
        return False

    @abstractmethod
    def measure(self, view: View) -> Result:
        """What it finds."""

    def start(self, run: Run) -> Accumulator:
        """There are no chains for it."""
        raise TypeError(f"{type(self).__name__} looks at the anchor alone and takes no draws")
