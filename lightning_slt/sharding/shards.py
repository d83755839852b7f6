r"""How rows of coordinates are spread over processes, and sums over all of them.

Under ``fully_shard`` (FSDP2) each process holds a part of every parameter. Chains then move each process's own
coordinates: positions, noise and the states of samplers are those of its shards, and whatever sums over coordinates,
such as ``‖w − w*‖²``, is summed over processes too. All processes run all chains in step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_slt.seeding import derive_seed
from lightning_slt.standing import Standing


@dataclass(frozen=True)
class Shards:
    """This process's part of every row; the defaults are those of a network that lies on one process.

    Every method that communicates does so after an agreement that all processes are well: one that has failed takes
    part in that agreement alone, and the others need not wait for it.

    Attributes:
        group: The processes that hold one copy of the weights between them; None where each holds all.
        rank: This one's place among them.
        size: How many they are.
        device: Of the weights.

    >>> rows = torch.tensor([[3.0, 4.0]])
    >>> WHOLE.norm(rows), WHOLE.add(rows.sum(1)), WHOLE.own_seed(7)
    (tensor([5.]), tensor([7.]), 7)
    """

    group: Any = None
    rank: int = 0
    size: int = 1
    device: torch.device | None = None

    @property
    def spread(self) -> bool:
        """Whether rows hold only a part of the coordinates."""
        return self.group is not None

    def add(self, parts: Tensor) -> Tensor:
        """What processes found on their own coordinates, added up ``[chain]``."""
        if not self.spread:
            return parts
        self.agree()
        total = parts.clone()
        dist.all_reduce(total, group=self.group)
        return total

    def count(self, number: int) -> int:
        """Numbers of coordinates, added up."""
        if not self.spread:
            return number
        return int(self.add(torch.tensor(number, device=self.device)))

    def norm(self, rows: Tensor) -> Tensor:
        """``‖row‖`` over all coordinates ``[chain]``."""
        norm = rows.norm(dim=1)
        return self.add(norm.square()).sqrt() if self.spread else norm

    def least(self, number: int) -> int:
        """The smallest of all processes' numbers: of chains that fit the memory, say."""
        if not self.spread:
            return number
        self.agree()
        smallest = torch.tensor(number, device=self.device)
        dist.all_reduce(smallest, op=dist.ReduceOp.MIN)
        return int(smallest)

    def from_first(self, values: Tensor) -> Tensor:
        """Rank 0's values on all processes, which decide by them; call after :meth:`agree`."""
        if self.spread:
            dist.broadcast(values, src=0)
        return values

    def own_seed(self, seed: int) -> int:
        """Of the noise: another for each shard, the same for copies of one."""
        return derive_seed(seed, "shard", self.rank) if self.spread else seed

    def cut(self, whole: Tensor, dim: int | None) -> Tensor:
        """This process's part of a tensor of a parameter's full shape, cut along an axis; it may be empty."""
        if dim is None:
            return whole
        pieces = whole.chunk(self.size, dim)
        return pieces[self.rank] if self.rank < len(pieces) else whole.narrow(dim, 0, 0)

    def agree(self) -> None:
        """Go on together.

        Raises:
            PeerFailedError: If another process has failed.
            PeerInterruptedError: If another process was asked to end.
        """
        self.least_standing(Standing.WELL).go_on()

    def least_standing(self, own: Standing) -> Standing:
        """How all processes stand together; all have to ask."""
        if not self.spread:
            return own
        least = torch.tensor(int(own), device=self.device)
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        return Standing(int(least))


WHOLE = Shards()
"""Of a network that is not sharded."""


def is_distributed_tensor(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes; there is none without a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, sharing its memory; the tensor itself where it is not spread."""
    if not is_distributed_tensor(tensor):
        return tensor
    spread: Any = tensor.detach()
    part: Tensor = spread.to_local()
    return part


def shard_axis(parameter: Tensor) -> int | None:
    """Along which axis a parameter is cut; None where it is not, or along several."""
    cuts = [p.dim for p in getattr(parameter, "placements", ()) if p.is_shard() and type(p).__name__ == "Shard"]
    cut_otherwise = [p for p in getattr(parameter, "placements", ()) if not (p.is_shard() or p.is_replicate())]
    return cuts[0] if len(cuts) == 1 and not cut_otherwise else None


def shards_of(module: nn.Module) -> Shards:
    """How the weights of a module are spread; call while none of them is gathered.

    Args:
        module: With every trainable parameter sharded by ``fully_shard``, or none.

    Raises:
        ValueError: For weights that are spread in a way that chains cannot move in.
    """
    _refuse_wrapped(module)
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    spread = {name: p for name, p in trainable.items() if is_distributed_tensor(p)}
    if not spread:
        return WHOLE
    from torch.distributed.fsdp import FSDPModule

    if not any(isinstance(part, FSDPModule) for part in module.modules()):
        raise ValueError(
            f"{next(iter(spread))!r} is split by tensor parallelism (parallelize_module), in which chains cannot move: "
            "shard the network with fully_shard alone: ModelParallelStrategy(data_parallel_size=…, "
            "tensor_parallel_size=1)"
        )
    if whole := [name for name in trainable if name not in spread]:
        raise ValueError(
            f"{whole[0]!r} is not sharded while {next(iter(spread))!r} is: apply fully_shard to the whole network, or "
            "freeze it with requires_grad_(False)"
        )
    for name, parameter in spread.items():
        _check(name, parameter, next(iter(spread.values())))
    return _describe(next(iter(spread.values())))


def _describe(parameter: Any) -> Shards:
    mesh = parameter.device_mesh
    dim = next(i for i, p in enumerate(parameter.placements) if p.is_shard())
    group = mesh.get_group(dim)
    return Shards(
        group=group, rank=mesh.get_local_rank(dim), size=mesh.size(dim), device=parameter.detach().to_local().device
    )


def _refuse_wrapped(module: nn.Module) -> None:
    if not (dist.is_available() and dist.is_initialized()):
        return
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(isinstance(part, FullyShardedDataParallel) for part in module.modules()):
        raise ValueError(
            "the network is wrapped in FullyShardedDataParallel, which hides its weights in flat buffers: use "
            "fully_shard (FSDP2), under Lightning strategy=ModelParallelStrategy(), or DDP"
        )


def _check(name: str, parameter: Any, first: Any) -> None:
    """Refuse a parameter that is spread otherwise than along one axis, over all processes, as all are."""
    mesh = parameter.device_mesh
    if shard_axis(parameter) is None or mesh != first.device_mesh:
        raise ValueError(
            f"{name!r} is spread as {parameter.placements} over {mesh}: chains move in weights that fully_shard cuts "
            "along one axis, all over the same processes; tensor parallelism beside it is not supported: "
            "ModelParallelStrategy(data_parallel_size=…, tensor_parallel_size=1)"
        )
    if mesh.size() != dist.get_world_size():
        raise ValueError(
            f"the network is sharded over {mesh.size()} of {dist.get_world_size()} processes; expected all of them, as "
            "all make a reading together"
        )
    shard = parameter.detach().to_local()
    if shard.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"the shards of {name!r} are {shard.dtype}, in which a sampler's steps would be lost (1 + 1e-3 == 1): keep "
            "them in float32 and write precision='bf16-mixed', or MixedPrecisionPolicy(param_dtype=torch.bfloat16)"
        )
    if shard.device.type != mesh.device_type:
        raise ValueError(
            f"the shards of {name!r} lie on {shard.device.type} and are used on {mesh.device_type}: "
            "CPUOffloadPolicy is not supported; leave offload_policy out of fully_shard"
        )
