"""Tensors that are not needed for a while wait in the host's memory, and stay the same objects.

The storage of a tensor is emptied and filled again, so that everything that refers to it (an optimizer's state, views
of a gradient bucket) finds the same bits where it left them. Meanwhile the tensors look at the host's copy.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from lightning_slt.sharding import is_distributed_tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class Waiting:
    """Some tensors whose content is in the host's memory until it is asked back; there it can be read and written.

    Args:
        tensors: On any device; those that share a storage wait together, other views of it must not be looked at.

    >>> moments = torch.arange(3.0)
    >>> storage = moments.untyped_storage()
    >>> waiting = Waiting([moments])
    >>> moments, storage.nbytes(), waiting.nbytes
    (tensor([0., 1., 2.]), 0, 12)
    >>> waiting.back()
    >>> moments, storage.nbytes()
    (tensor([0., 1., 2.]), 12)
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Copy every storage to the host, then empty it."""
        self._contents: list[tuple[torch.UntypedStorage, Tensor]] = []
        self._moved: list[tuple[Tensor, Tensor]] = []
        together: dict[int, list[Tensor]] = {}
        for tensor in {id(t): t for t in map(_part, tensors) if t.untyped_storage().nbytes()}.values():
            together.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
        try:
            for sharing in together.values():
                self._send(sharing[0].untyped_storage(), sharing)
        except BaseException:
            self.back()
            raise

    @property
    def nbytes(self) -> int:
        """How much waits."""
        return sum(len(content) for _, content in self._contents)

    def _send(self, storage: torch.UntypedStorage, sharing: Iterable[Tensor]) -> None:
        content = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=storage.device.type == "cuda")
        content.copy_(_bytes(storage))
        self._contents.append((storage, content))
        for tensor in sharing:
            self._moved.append((tensor, tensor.data))
            here = torch.empty(0, dtype=tensor.dtype)
            tensor.data = here.set_(content.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())
        storage.resize_(0)

    def back(self) -> None:
        """Fill the storages again; once is enough."""
        if any(storage.device.type == "cuda" for storage, _ in self._contents):
            free_what_is_left()  # what the chains had must not stand in the way
        for storage, content in self._contents:
            if not storage.nbytes():
                storage.resize_(len(content))
            _bytes(storage).copy_(content)
        for tensor, data in self._moved:
            tensor.data = data
        self._contents, self._moved = [], []


@contextmanager
def on_host(tensors: Iterable[Tensor]) -> Iterator[None]:
    """The content of tensors waits in the host's memory meanwhile, and is back in the end whatever happens."""
    waiting = Waiting(tensors)
    try:
        yield
    finally:
        waiting.back()


def has_memory_of_its_own(device: torch.device) -> bool:
    """Whether a device's memory is another one than the host's."""
    return device.type not in ("cpu", "mps", "meta")


def free_what_is_left() -> None:
    """Give memory back that nothing refers to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def training_state(module: nn.Module, optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """What training keeps on devices beside weights and buffers: gradients, and the states of optimizers.

    Storages that a weight or a buffer lies in are left out: a reading needs those.
    """
    needed = {_place(t) for t in (*module.parameters(), *module.buffers())}
    states = pytree.tree_leaves([list(optimizer.state.values()) for optimizer in optimizers])
    found = [*(p.grad for p in module.parameters()), *states]
    there = [t for t in found if isinstance(t, Tensor) and has_memory_of_its_own(t.device)]
    return [t for t in there if _place(t) not in needed]


def _place(tensor: Tensor) -> int:
    return _part(tensor).untyped_storage().data_ptr()


def _part(tensor: Tensor) -> Tensor:
    """The tensor itself, or that which holds this process's shard of it."""
    with torch.no_grad():
        return cast("DTensor", tensor).to_local() if is_distributed_tensor(tensor) else tensor


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
