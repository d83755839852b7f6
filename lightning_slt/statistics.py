r"""Streaming statistics in float64 with the chain axis kept, as torchmetrics.

States are plain sums over draws, preallocated for every chain of the run: each process fills the rows of its own
chains, so that states of several processes, or of parts of a run, merge by addition to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

DOUBLES = 2**28
"""Bytes up to which traces of probes in float64 are kept as such."""

States = Sequence[Metric]
"""Statistics that processes add up."""


def map_states(states: States, function: Callable[[Tensor], Tensor]) -> None:
    """Replace every state tensor by what a function makes of it, such as its sum over processes."""
    for metric in states:
        for name in metric._defaults:
            setattr(metric, name, function(getattr(metric, name)))


def statistics_device(device: torch.device) -> torch.device:
    """Where float64 sums can live: the device itself, or the CPU where it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


class Traces(Metric):
    """One scalar per chain and draw, kept whole.

    Args:
        num_chains: Of the whole run.
        num_draws: Kept draws.
        device: Where to accumulate.

    >>> t = Traces(2, 3)
    >>> t.update((0, 1), 2, torch.tensor([1.0, 2.0]))
    >>> t.compute()[:, 2]
    tensor([1., 2.], dtype=torch.float64)
    """

    full_state_update = False
    values: Tensor

    def __init__(self, num_chains: int, num_draws: int, *, device: torch.device | None = None) -> None:
        """Allocate the trace."""
        super().__init__(sync_on_compute=False)
        zeros = torch.zeros(num_chains, num_draws, dtype=torch.float64)
        self.add_state("values", zeros, dist_reduce_fx="sum")
        self.to(device or torch.device("cpu"))

    def update(self, chains: Sequence[int], index: int, values: Tensor) -> None:
        """Write one draw of some chains, in any order; ``values`` is ``[chain]``."""
        first, last = chains[0], chains[-1]
        if list(chains) == list(range(first, last + 1)):  # an index tensor would cost more than the rest
            self.values[first : last + 1, index] = values
        else:
            self.values[torch.tensor(chains, device=self.values.device), index] = values.to(self.values)

    def compute(self) -> Tensor:
        """``[chain, draw]``, float64."""
        return self.values.clone()


class ProbeTraces(Metric):
    """Losses of every sample of a probe at each chain and draw, less those at the anchor, kept whole.

    Args:
        num_chains: Of the whole run.
        num_draws: Kept draws.
        anchor: Losses at the anchor ``[sample]`` or ``[sample, token]``, in nats.
        device: Where to keep them.

    >>> t = ProbeTraces(2, 3, anchor=torch.tensor([1.0, 2.0]))
    >>> t.update((0, 1), 2, torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    >>> t.compute()[:, 2]
    tensor([[0., 0.],
            [2., 3.]])
    """

    full_state_update = False
    values: Tensor

    def __init__(self, num_chains: int, num_draws: int, *, anchor: Tensor, device: torch.device | None = None) -> None:
        """Allocate the traces: float64 where the losses are and it fits, else float32."""
        super().__init__(sync_on_compute=False)
        shape = (num_chains, num_draws, *anchor.shape)
        dtype = torch.float64 if 8 * math.prod(shape) <= DOUBLES and anchor.dtype == torch.float64 else torch.float32
        self.add_state("values", torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")
        self.anchor = anchor.detach()
        self.to(device or torch.device("cpu"))

    def update(self, chains: Sequence[int], index: int, losses: Tensor) -> None:
        """Write one draw of some chains; ``losses`` are ``[chain, sample]`` or ``[chain, sample, token]``."""
        rise = losses.double() - self.anchor.double() if losses.dtype == torch.float64 else losses - self.anchor
        self.values[list(chains), index] = rise.to(self.values)

    def compute(self) -> Tensor:
        """``[chain, draw, sample]`` or ``[chain, draw, sample, token]``, in nats."""
        return self.values


class Moments(Metric):
    r"""Means and covariances of a vector over draws, chain by chain.

    Keeps ``n``, ``Σ x`` and ``Σ x xᵀ`` of ``x − centre``; a centre near the mean, such as the value at the anchor,
    keeps the difference of large numbers small.

    Args:
        num_chains: Of the whole run.
        centre: Subtracted from every value ``[variable]``.

    >>> m = Moments(1, torch.zeros(2))
    >>> for row in ([1.0, 2.0], [3.0, 6.0]):
    ...     m.update((0,), torch.tensor([row]))
    >>> m.mean()
    tensor([[2., 4.]], dtype=torch.float64)
    >>> m.covariance()
    tensor([[2., 4.],
            [4., 8.]], dtype=torch.float64)
    """

    full_state_update = False
    count: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, num_chains: int, centre: Tensor) -> None:
        """Allocate the sums."""
        super().__init__(sync_on_compute=False)
        n = centre.numel()
        self.centre = centre.detach().to(torch.float64)
        self.add_state("count", torch.zeros(num_chains, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros(num_chains, n, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(num_chains, n, n, dtype=torch.float64), dist_reduce_fx="sum")
        self.to(centre.device)

    def update(self, chains: Sequence[int], values: Tensor) -> None:
        """Add one draw of some chains; ``values`` is ``[chain, variable]``."""
        x = values.to(self.total) - self.centre
        for row, chain in enumerate(chains):
            self.count[chain] += 1
            self.total[chain] += x[row]
            self.products[chain] += torch.outer(x[row], x[row])

    def compute(self) -> Tensor:
        """The covariance within chains; see :meth:`covariance`."""
        return self.covariance()

    def mean(self) -> Tensor:
        """Mean of each chain ``[chain, variable]``."""
        return self.centre + self.total / self.count[:, None]

    def covariance(self, *, pooled: bool = False) -> Tensor:
        r"""Covariance ``[variable, variable]``.

        Within chains, ``Σ_c Σ_t (x − x̄_c)(x − x̄_c)ᵀ / Σ_c (T_c − 1)``; pooled, around the grand mean with one degree
        of freedom lost.
        """
        if pooled:
            count, total = self.count.sum(), self.total.sum(0)
            return (self.products.sum(0) - torch.outer(total, total) / count) / (count - 1)
        seen = self.count > 0
        centred = (
            self.products[seen] - self.total[seen, :, None] * self.total[seen, None, :] / self.count[seen, None, None]
        )
        return centred.sum(0) / (self.count[seen] - 1).sum()


class CrossMoments(Metric):
    r"""Means and covariances of one scalar with each of many variables over draws, chain by chain.

    Keeps ``n``, ``Σ x``, ``Σ x²``, ``Σ y`` and ``Σ x y``, for values measured from the anchor's: as much memory as one
    draw of all chains, however many draws there are.

    Args:
        num_chains: Of the whole run.
        num_variables: Of y.
        device: Where to accumulate.

    >>> m = CrossMoments(1, 2)
    >>> for x, y in ((1.0, [1.0, 2.0]), (3.0, [5.0, 2.0])):
    ...     m.update((0,), torch.tensor([x]), torch.tensor([y]))
    >>> m.covariance(), m.variance()
    (tensor([[4., 0.]], dtype=torch.float64), tensor([2.], dtype=torch.float64))
    """

    full_state_update = False
    count: Tensor
    x: Tensor
    xx: Tensor
    y: Tensor
    xy: Tensor

    def __init__(self, num_chains: int, num_variables: int, *, device: torch.device | None = None) -> None:
        """Allocate the sums."""
        super().__init__(sync_on_compute=False)
        for name in ("count", "x", "xx"):
            self.add_state(name, torch.zeros(num_chains, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("y", "xy"):
            self.add_state(name, torch.zeros(num_chains, num_variables, dtype=torch.float64), dist_reduce_fx="sum")
        self.to(device or torch.device("cpu"))

    def update(self, chains: Sequence[int], x: Tensor, y: Tensor) -> None:
        """Add one draw of some chains; ``x`` is ``[chain]``, ``y`` is ``[chain, variable]``."""
        rows, x, y = list(chains), x.to(self.x), y.to(self.y)
        self.count[rows] += 1
        self.x[rows] += x
        self.xx[rows] += x * x
        self.y[rows] += y
        self.xy[rows] += x[:, None] * y

    def compute(self) -> Tensor:
        """The covariances; see :meth:`covariance`."""
        return self.covariance()

    def variance(self) -> Tensor:
        r"""``(Σ x² − (Σ x)²/n) / (n − 1)`` of each chain ``[chain]``."""
        return (self.xx - self.x * self.x / self.count) / (self.count - 1)

    def covariance(self) -> Tensor:
        r"""``(Σ x y − Σ x Σ y / n) / (n − 1)`` of each chain ``[chain, variable]``."""
        return (self.xy - self.x[:, None] * self.y / self.count[:, None]) / (self.count[:, None] - 1)
