r"""Forward and backward passes of many chains: together under ``torch.vmap``, or one after another.

Both routes see the same positions and give the same numbers up to float32 rounding. The backward pass runs once, on
the sum of the chains' losses, outside ``vmap``: the gradient of that sum with respect to the stacked weights holds
every chain's own gradient, and the backward of batched operations is cheaper than a transformed backward.

The vectorized route gives a chain the same bits whatever the number of chains beside it, from two on, with one
exception: a matrix times a vector that all chains have in common (spectral norm; a frozen layer with one output) is
folded into one product, whose last bit depends on the chain's place in it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.func import vmap

from lightning_slt.batches import ChainBatch
from lightning_slt.batching import ChainRules
from lightning_slt.posterior import Gradient, Leaf, LocalPosterior, Part
from lightning_slt.precision import in_precision, kernels
from lightning_slt.tracing import REFUSALS, Function, Replay, record
from lightning_slt.types import Batch, FunctionalLoss, Params, Product

RECORDED_AT_MOST = 2**24
"""Coordinates that run together, above which the Python around a pass does not count beside the pass."""

KINDS_AT_MOST = 4
"""Shapes of minibatches that are recorded."""

CHECKS = 2
"""Minibatches on which a recording is compared with what it was made of."""

Results = Sequence[Tensor | Product | None]
_LOSS_ALONE, _WITH_GRADIENT = "loss", "loss and gradient"


class Passes(ABC):
    """Losses and gradients of some chains at their positions.

    Args:
        posterior: Gives the loss and the layout.
        position: Free coordinates ``[chain, coordinate]``; moved in place by the sampler and read anew at each pass.
    """

    def __init__(self, posterior: LocalPosterior, position: Tensor) -> None:
        """Let leaves view the position, so that a sampler's step needs no copying."""
        self.posterior, self.position = posterior, position
        self._loss = in_precision(posterior.loss, posterior.precision)
        self.leaves: Params = {}
        for leaf in posterior.leaves:
            if leaf.moving is None:
                view = position.detach()[:, leaf.start : leaf.stop].view(len(position), *leaf.shape)
            else:
                view = posterior.anchor[leaf.name].detach().repeat(len(position), *([1] * len(leaf.shape)))
            self.leaves[leaf.name] = view.requires_grad_()

    def loss_and_gradient(self, batch: ChainBatch) -> tuple[Tensor, Gradient]:
        """Mean minibatch loss of each chain ``[chain]`` in nats, and its gradient."""
        with torch.enable_grad(), kernels(self.posterior.precision):
            self._fill_masked()
            return self._loss_and_gradient(batch)

    def loss(self, batch: ChainBatch) -> Tensor:
        """Mean minibatch loss ``[chain]``, in nats."""
        with torch.no_grad(), kernels(self.posterior.precision):
            self._fill_masked()
            return self._mean_losses(batch)

    def losses(self, batch: ChainBatch, loss: FunctionalLoss | None = None) -> Tensor:
        """Losses of each sample ``[chain, sample]`` or ``[chain, sample, token]``, in nats."""
        with torch.no_grad(), kernels(self.posterior.precision):
            self._fill_masked()
            return self._losses(in_precision(loss, self.posterior.precision) if loss else self._loss, batch)

    def _fill_masked(self) -> None:
        for leaf in self.posterior.leaves:
            if leaf.moving is not None:
                with torch.no_grad():
                    rows = self.leaves[leaf.name].view(len(self.position), -1)
                    rows[:, leaf.moving] = self.position[:, leaf.start : leaf.stop]

    def _parts(self, chains: slice, gradients: Results) -> tuple[Part, ...]:
        pairs = zip(self.posterior.leaves, gradients, strict=True)
        return tuple(Part(chains, leaf, g) for leaf, g in pairs if g is not None)

    @abstractmethod
    def _loss_and_gradient(self, batch: ChainBatch) -> tuple[Tensor, Gradient]: ...

    @abstractmethod
    def _mean_losses(self, batch: ChainBatch) -> Tensor: ...

    @abstractmethod
    def _losses(self, loss: FunctionalLoss, batch: ChainBatch) -> Tensor: ...


class VectorizedPasses(Passes):
    """All chains at once.

    Args:
        posterior: Gives the loss and the layout.
        position: Free coordinates ``[chain, coordinate]``.
        record: Run the loss's own code once, and then the operations that it came to, where that gives the same.
    """

    def __init__(self, posterior: LocalPosterior, position: Tensor, *, record: bool = False) -> None:
        """Record only what is small enough for the Python around it to count."""
        super().__init__(posterior, position)
        self._recorder = Recorder() if record and position.numel() <= RECORDED_AT_MOST else None

    def _loss_and_gradient(self, batch: ChainBatch) -> tuple[Tensor, Gradient]:
        loss, *gradients = self._run(_WITH_GRADIENT, batch)
        assert isinstance(loss, Tensor)
        return loss, Gradient(self._parts(slice(None), gradients), self.position)

    def _mean_losses(self, batch: ChainBatch) -> Tensor:
        (loss,) = self._run(_LOSS_ALONE, batch)
        assert isinstance(loss, Tensor)
        return loss

    def _run(self, purpose: str, batch: ChainBatch) -> Results:
        tensors = (*self.leaves.values(), *batch.leaves)
        count = len(self.leaves)

        def run(*tensors: Tensor) -> Sequence[Tensor | None]:
            given = batch._replace(leaves=tensors[count:])
            loss = partial(self._vectorized, self._loss, batch=given, mean=True)
            return _evaluate(purpose, loss, tensors[:count])

        if self._recorder is None or batch.ragged:
            return run(*tensors)
        return self._recorder.run(purpose, run, tensors, batch, moved=count)

    def _losses(self, loss: FunctionalLoss, batch: ChainBatch) -> Tensor:
        return self._vectorized(loss, tuple(self.leaves.values()), batch, mean=False)

    def _vectorized(self, loss: FunctionalLoss, weights: Sequence[Tensor], batch: ChainBatch, *, mean: bool) -> Tensor:
        if batch.ragged:
            raise RuntimeError("minibatches of different chains differ in shape, or in entries that are no tensors")
        names = tuple(self.leaves)

        def one_chain(weights: Sequence[Tensor], leaves: Sequence[Tensor]) -> Tensor:
            losses = loss(dict(zip(names, weights, strict=True)), batch.form.join(leaves))
            return losses.mean() if mean else losses

        with ChainRules():
            run = vmap(one_chain, in_dims=(0, None if batch.shared else 0), randomness="same")
            return run(tuple(weights), batch.leaves)


def _evaluate(
    purpose: str, function: Callable[[Sequence[Tensor]], Tensor], weights: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """The loss of these weights, or each chain's, and its gradient if that is the purpose."""
    weights = [w.detach().requires_grad_(purpose == _WITH_GRADIENT) for w in weights]
    loss = function(weights)
    if purpose == _LOSS_ALONE:
        return [loss]
    return [loss.detach(), *torch.autograd.grad(loss.sum(), weights, allow_unused=True)]


class Recorder:
    """Recorded passes by purpose and kind of minibatch, each compared with the passes themselves a few times.

    Args:
        checks: How often.
    """

    def __init__(self, checks: int = CHECKS) -> None:
        """Nothing recorded yet."""
        self._checks = checks
        self._known: dict[str, list[_Recording]] = {}

    def run(
        self, purpose: str, passes: Function, tensors: Sequence[Tensor], batch: ChainBatch, *, moved: int = 0
    ) -> Results:
        """What ``passes(*tensors)`` gives, whose first ``moved`` tensors a sampler moves in place."""
        known = self._known.setdefault(purpose, [])
        recording = next((r for r in known if r.batch.like(batch)), None)
        if recording is None:
            if len(known) == KINDS_AT_MOST:  # padded to ever other lengths: recording would cost more than it saves
                return passes(*tensors)
            recording = _Recording(record(passes, tensors, moved=moved), batch)
            known.append(recording)
        if recording.replay is None:
            return passes(*tensors)
        if recording.checks == self._checks:
            return recording.replay(*tensors)
        recording.checks += 1
        plain = passes(*tensors)
        replayed = _tried(recording.replay, tensors)
        if replayed is None or not all(_agree(a, b) for a, b in zip(replayed, plain, strict=True)):
            recording.replay = None
            return plain
        return replayed


@dataclass
class _Recording:
    replay: Replay | None
    batch: ChainBatch
    checks: int = 0


def _tried(replay: Replay, tensors: Sequence[Tensor]) -> Results | None:
    """What a recording gives; None where it cannot run: some kernels take tensors that Python cannot name."""
    try:
        return replay(*tensors)
    except REFUSALS:
        return None


def _agree(replayed: Tensor | Product | None, plain: Tensor | None) -> bool:
    """Whether two results are equal up to rounding, or wherever the plain one is finite."""
    replayed = replayed.dense if isinstance(replayed, Product) else replayed
    if replayed is None or plain is None:
        return replayed is plain
    if replayed.shape != plain.shape or replayed.dtype != plain.dtype:
        return False
    finite = torch.isfinite(plain)
    scale = plain[finite].norm()
    tolerance = 1e-10 if plain.dtype == torch.float64 else 1e-4
    return bool((replayed[finite] - plain[finite]).norm() <= tolerance * scale)


class SequentialPasses(Passes):
    """One chain after another, for modules that ``vmap`` refuses and for large passes on a CPU.

    Args:
        posterior: Gives the loss and the layout.
        position: Free coordinates ``[chain, coordinate]``.
        record: As for :class:`VectorizedPasses`; the pass of one chain is recorded, and gives the same bits.
    """

    def __init__(self, posterior: LocalPosterior, position: Tensor, *, record: bool = False) -> None:
        """Let each chain's weights view its row."""
        super().__init__(posterior, position)
        self._weights = list(zip(*(leaf.detach().unbind() for leaf in self.leaves.values()), strict=True))
        self._long = position.shape[1] > RECORDED_AT_MOST
        may = record and not self._long and not posterior.shards.spread  # gathering cannot be recorded
        self._recorder = Recorder(checks=CHECKS * len(position)) if may else None

    def has_gradient(self, batch: ChainBatch) -> bool:
        """Whether the loss of the first chain hangs on its weights by a graph."""
        with torch.enable_grad():
            self._fill_masked()
            weights = {name: leaf[0].detach().requires_grad_() for name, leaf in self.leaves.items()}
            return self._loss(weights, batch.of_chain(0)).requires_grad

    def _loss_and_gradient(self, batch: ChainBatch) -> tuple[Tensor, Gradient]:
        losses: list[Tensor] = []
        parts: list[Part] = []
        count = self.position.shape[1]
        whole = Leaf("all", torch.Size([count]), 0, count, None)
        for index, (loss, *gradients) in enumerate(self._run(_WITH_GRADIENT, batch)):
            assert isinstance(loss, Tensor)
            losses.append(loss)
            chain = slice(index, index + 1)
            values = [None if g is None else cast("Tensor", g)[None] for g in gradients]  # no products: nothing batched
            parts += self._parts(chain, values) if self._long else [Part(chain, whole, cast("Tensor", values[0]))]
        return torch.stack(losses), Gradient(tuple(parts), self.position)

    def _mean_losses(self, batch: ChainBatch) -> Tensor:
        return torch.stack([cast("Tensor", loss) for (loss,) in self._run(_LOSS_ALONE, batch)])

    def _run(self, purpose: str, batch: ChainBatch) -> Iterator[Results]:
        """Loss of one chain after another, and its gradient if that is the purpose.

        The gradient is one row, which costs less to add than leaf by leaf; a long one is left as it is, not copied.
        """
        count = len(self.leaves)

        def one_chain(weights: Sequence[Tensor], given: Batch) -> Sequence[Tensor | None]:
            def mean(weights: Sequence[Tensor]) -> Tensor:
                return self._loss(dict(zip(self.leaves, weights, strict=True)), given).mean()

            loss, *gradients = _evaluate(purpose, mean, weights)
            return [loss, *gradients] if self._long or purpose == _LOSS_ALONE else [loss, self._row(gradients)]

        def run(*tensors: Tensor) -> Sequence[Tensor | None]:
            return one_chain(tensors[:count], batch.form.join(tensors[count:]))

        for chain, weights in enumerate(self._weights):
            if self._recorder is None or batch.ragged:
                yield one_chain(weights, batch.of_chain(chain))
            else:
                leaves = batch.leaves if batch.shared else [leaf[chain] for leaf in batch.leaves]
                yield self._recorder.run(purpose, run, (*weights, *leaves), batch)

    def _row(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """The gradient of one chain as a row, which costs less to add than leaf by leaf."""
        pieces = []
        for leaf, gradient in zip(self.posterior.leaves, gradients, strict=True):
            piece = self.position.new_zeros(leaf.stop - leaf.start) if gradient is None else gradient.flatten()
            pieces.append(piece if leaf.moving is None or gradient is None else piece[leaf.moving])
        return torch.cat(pieces)

    def _losses(self, loss: FunctionalLoss, batch: ChainBatch) -> Tensor:
        rows = ({name: leaf[chain] for name, leaf in self.leaves.items()} for chain in range(len(self.position)))
        return torch.stack([loss(weights, batch.of_chain(chain)) for chain, weights in enumerate(rows)])
