r"""Losses of a sharded module at other weights: written into its own shards, and put back in the end.

``functional_call`` cannot give an FSDP2 module other weights: its hooks gather the module's own. So each evaluation
overwrites the shards, drops what was gathered from the former ones, and runs the module itself; the backward pass is a
``backward()`` inside the one that asked for it, as ``torch.autograd.grad`` does not run FSDP's hooks. Everything here
that begins with an underscore at FSDP's side is its internal state, read to be put back, and to be cleared after a
forward pass that user code broke off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_slt.sharding.shards import Shards, is_distributed_tensor, local

_TRAINING_STATE = {
    "reduce_grads": True,
    "all_reduce_grads": True,
    "gradient_divide_factor": None,
    "_partial_reduce_output": None,
}
"""Of each group of parameters: what gradient accumulation and users set, and what a reading needs."""

Event = tuple[nn.Module, bool]
"""A sharded part that a forward pass enters (True) or leaves (False)."""


class InPlace:
    """Evaluates functions of a sharded module, every process at the same time and on the same batch.

    Call inside :func:`preserved_shards`.

    Args:
        module: The network.
        shards: Over which processes.
    """

    def __init__(self, module: nn.Module, shards: Shards) -> None:
        """Until a pass has shown another order, parts are expected to run in the order in which they are written."""
        self.module, self.shards = module, shards
        self._usual = list(_nested(module))

    def __call__(
        self, function: Callable[[], Tensor], weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> Tensor:
        """What a function of the module returns with these shards and buffers in the place of its own.

        Args:
            function: Runs the module.
            weights: Of every parameter, this process's shard.
            buffers: Of every buffer.

        Returns:
            The same tensor on all processes, differentiable with respect to the shards.

        Raises:
            PeerFailedError: If another process has failed.
            PeerInterruptedError: If another process was asked to end.
        """
        run = partial(self._run, function, weights, buffers)
        given = {name: w for name, w in weights.items() if w.requires_grad}
        if not (given and torch.is_grad_enabled()):
            with torch.no_grad():
                return run()[0]
        result: Tensor = _Evaluation.apply(run, tuple(given), *given.values())  # type: ignore[no-untyped-call]
        return result

    def _run(
        self, function: Callable[[], Tensor], weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The result, and the parameters that a backward pass leaves gradients of shards at."""
        self.shards.agree()
        rest(self.module)
        parameters: dict[str, Tensor] = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                if is_distributed_tensor(parameter):
                    local(parameter).copy_(weights[name])
            for name, buffer in self.module.named_buffers():
                buffer.copy_(buffers[name])
        passed: list[Event] = []
        try:
            with _noting(self.module, passed):
                result = function()
        except Exception:  # whatever user code raises here, the others wait for this process's shards
            self._catch_up(passed)
            forget(self.module)
            raise
        self._usual = passed
        self.shards.agree()
        self.shards.from_first(result.detach())
        return result, parameters

    def _catch_up(self, passed: Sequence[Event]) -> None:
        """Take part in what is left of the others' forward pass, who would wait for this process's shards."""
        for part, enters in self._usual[len(passed) :]:
            state = part._get_fsdp_state()  # type: ignore[operator]
            if enters:
                state._pre_forward(part, (), {})
            else:
                state._post_forward(part, (), None)


class _Evaluation(torch.autograd.Function):
    """A pass of the module as one operation on the shards that it was given."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[], Any], names: Sequence[str], *_: Tensor) -> Tensor:
        with torch.enable_grad():
            ctx.losses, ctx.parameters = run()
        ctx.names = names
        losses: Tensor = ctx.losses.detach()
        if not ctx.losses.requires_grad:
            ctx.mark_non_differentiable(losses)
        return losses

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        ctx.losses.backward(*upstream)
        del ctx.losses
        gradients = [ctx.parameters[name].grad for name in ctx.names]
        for parameter in ctx.parameters.values():
            parameter.grad = None
        return None, None, *(None if g is None else local(g) for g in gradients)


@contextmanager
def preserved_shards(module: nn.Module) -> Iterator[None]:
    """Put the shards of a module and FSDP's state back in the end, also after an exception; free where not sharded.

    Gradients of parameters are not among it: see :func:`lightning_slt.isolation.isolated`.
    """
    if not sharded_parts(module):
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(at_rest(module))
        spread = [p for p in module.parameters() if is_distributed_tensor(p)]
        saved = [local(p).clone() for p in spread]
        for part in sharded_parts(module):
            for put_back in _set_training_aside(part):
                stack.callback(put_back)
        try:
            yield
        finally:
            forget(module)
            with torch.no_grad():
                for parameter, shard in zip(spread, saved, strict=True):
                    local(parameter).copy_(shard)


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Look at a module's shards; parts that were gathered are so again in the end, but not after an exception.

    Then other processes may not come here, and gathering would wait for them.
    """
    gathered = [part for part in sharded_parts(module) if any(group.is_unsharded for group in _groups(part))]
    rest(module)
    yield
    for part in gathered:
        part.unshard()  # type: ignore[operator]


def rest(module: nn.Module) -> None:
    """Drop gathered weights, so that the module's parameters are its shards and are gathered anew when they are used.

    The outermost part keeps what it gathered after a forward pass, and a gather may have been begun ahead of its use.
    """
    for part in sharded_parts(module):
        for group in _groups(part):
            group.wait_for_unshard()
        part.reshard()  # type: ignore[operator]


def forget(module: nn.Module) -> None:
    """Bring FSDP to where no pass is under way, whatever was broken off."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    for part in sharded_parts(module):
        state: Any = part._get_fsdp_state()  # type: ignore[operator]
        state._state_ctx.iter_forward_root = None
        state._training_state = type(state._training_state).IDLE
        getattr(state, "_modules_to_run_forward", set()).clear()
        for group in _groups(part):
            group._training_state = type(group._training_state).IDLE
            group._post_forward_indices.clear()
            getattr(group.comm_ctx, "post_forward_order", []).clear()  # there is none before the first pass
            if getattr(group.comm_ctx, "all_gather_state", None) is not None:
                group.comm_ctx.all_gather_state = None
            for parameter in group.fsdp_params:
                parameter.unsharded_accumulated_grad = None
                if hasattr(parameter, "_unsharded_param"):
                    parameter._unsharded_param.grad = None
    rest(module)


def sharded_parts(module: nn.Module) -> list[nn.Module]:
    """The sub-modules that ``fully_shard`` was applied to."""
    if not (dist.is_available() and dist.is_initialized()):
        return []
    from torch.distributed.fsdp import FSDPModule

    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def casts_of(module: nn.Module) -> set[torch.dtype]:
    """What sharded parts cast their weights to where they are gathered; empty where they leave them as they are."""
    dtypes = {part._get_fsdp_state()._mp_policy.param_dtype for part in sharded_parts(module)}  # type: ignore[operator]
    return dtypes - {None}


def _groups(part: Any) -> list[Any]:
    """Groups of parameters that are gathered together; one at most in older versions."""
    state = part._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)
    return list(groups) if groups is not None else [g for g in (state._fsdp_param_group,) if g is not None]


def _nested(module: nn.Module) -> Iterator[Event]:
    own = module in sharded_parts(module)
    if own:
        yield module, True
    for child in module.children():
        yield from _nested(child)
    if own:
        yield module, False


@contextmanager
def _noting(module: nn.Module, passed: list[Event]) -> Iterator[None]:
    """Note which parts a forward pass enters and leaves, after FSDP's own hooks have run."""
    with ExitStack() as stack:
        for part in sharded_parts(module):
            entering = part.register_forward_pre_hook(lambda part, inputs: passed.append((part, True)))
            leaving = part.register_forward_hook(lambda part, inputs, output: passed.append((part, False)))
            stack.callback(entering.remove)
            stack.callback(leaving.remove)
        yield


def _set_training_aside(part: Any) -> Iterator[Callable[[], None]]:
    """Let a part reduce gradients and follow its own passes as at the start of training; gives how to undo that."""
    yield _set(part._get_fsdp_state()._state_ctx, {"is_last_backward": True})
    for group in _groups(part):
        yield _set(group, {**_TRAINING_STATE, "_post_forward_indices": []})
        yield _set(group.comm_ctx, {"post_forward_order": []})
        for parameter in group.fsdp_params:
            yield _set(parameter, {"unsharded_accumulated_grad": None})
            yield _set(getattr(parameter, "_unsharded_param", None), {"grad": None})


def _set(owner: Any, values: Mapping[str, Any]) -> Callable[[], None]:
    before = {name: getattr(owner, name) for name in values if hasattr(owner, name)}

    def write(all_of: Mapping[str, Any]) -> None:
        for name in before:
            setattr(owner, name, all_of[name])

    write(values)
    return partial(write, before)
