r"""A function of tensors, run once and kept as a flat list of operations.

Small networks cost less than the Python around them: ``vmap``, the module's own code and autograd run anew at every
step and do the same each time. Recorded once they are a list of operations, forward and backward, that gives the same
bits at less than half the cost. Functions that decide by the values they see cannot be recorded; those that draw random
numbers, write to what they are given, or make tensors whose shape depends on values are not.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_slt.types import Product

aten = torch.ops.aten
Function = Callable[..., Sequence[Tensor | None]]
Replay = Callable[..., Sequence[Tensor | Product | None]]

FACTORED_FROM = 2**14
"""Entries of a matrix from which it pays to hand on its factors: adding it across its order would cost more."""

REFUSALS = (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError, IndexError, KeyError)
"""What torch raises where it cannot record a function, or run what it recorded."""

_BATCH_NORMS = {aten.native_batch_norm.default: (3, 5), aten.cudnn_batch_norm.default: (3, 5)}
_WITHOUT_EFFECT = {aten.detach.default, aten.alias.default}
_READINGS = {Tensor.numpy, Tensor.__array__, Tensor.tolist, Tensor.__dlpack__, Tensor.data_ptr}
_PACKINGS = {aten._pack_padded_sequence.default, aten._pad_packed_sequence.default}
_SAME_SHAPE = {aten.view.default, aten._unsafe_view.default, aten.expand.default, aten.reshape.default}


def record(function: Function, inputs: Sequence[Tensor], *, moved: int = 0) -> Replay | None:
    """The operations of ``function(*inputs)``, as a function of other inputs of the same shapes.

    Args:
        function: Of tensors, giving tensors; run once.
        inputs: To run it on.
        moved: How many inputs, from the first on, may be moved in place before the results are used.

    Returns:
        A function that gives what ``function`` gives, or None where it cannot be recorded. Large results that are
        transposed batched products of matrices come as their factors.

    >>> double = record(lambda x: [2 * x], [torch.ones(2)])
    >>> double(torch.tensor([3.0, 4.0]))
    [tensor([6., 8.])]
    """

    def watched(*tensors: Tensor) -> Sequence[Tensor | None]:
        with _NoReading(), _NoShapeByValue():  # type: ignore[no-untyped-call]
            return function(*tensors)

    try:
        recorded = make_fx(watched)(*inputs)
    except REFUSALS:
        return None
    graph = recorded.graph
    if any(_draws(node) or _writes_outside(node) for node in graph.nodes):
        return None
    if not any(_writes(node) for node in graph.nodes):
        _simplify(graph)
        _factor(graph, moved)
    if any(_origin(output).op in ("placeholder", "get_attr") for output in _outputs(graph)):
        return None
    graph.eliminate_dead_code()
    recorded.recompile()
    replay: Replay = torch.no_grad()(recorded.forward)
    return replay


class _NoReading(TorchFunctionMode):
    """Refuses what reads values past the dispatcher: they would be kept as constants."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _READINGS:
            raise RuntimeError(f"{func.__name__} reads the values of a tensor")
        return func(*args, **(kwargs or {}))


class _NoShapeByValue(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations whose result has a shape that depends on values: it would be kept for all that follows."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is aten.index.Tensor:
            unknown = any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        else:
            unknown = torch.Tag.dynamic_output_shape in func.tags or func.namespace != "aten" or func in _PACKINGS
        if unknown:
            raise RuntimeError(f"the shape of what {func} gives may depend on values")
        return func(*args, **(kwargs or {}))


def _draws(node: fx.Node) -> bool:
    """Whether an operation draws random numbers; fused attention is tagged so, and does with dropout only."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    return bool(_argument(node, "dropout_p") != 0)


def _argument(node: fx.Node, name: str) -> Any:
    """What an operation is given under this name, None where it has no such argument."""
    for place, argument in enumerate(node.target._schema.arguments):  # type: ignore[union-attr]
        if argument.name == name:
            return node.args[place] if place < len(node.args) else node.kwargs.get(name, argument.default_value)
    return None


def _writes(node: fx.Node) -> bool:
    """Whether an operation changes one of its arguments; old batch norms do without saying so."""
    if node.op != "call_function":
        return False
    statistics, training = _BATCH_NORMS.get(node.target, (None, None))  # type: ignore[call-overload]
    if statistics is not None:
        return node.args[statistics] is not None and bool(node.args[training])
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _writes_outside(node: fx.Node) -> bool:
    """Whether it changes something that the function was given or holds."""
    return _writes(node) and any(_origin(a).op in ("placeholder", "get_attr") for a in _written(node))


def _written(node: fx.Node) -> Iterator[fx.Node]:
    schema = node.target._schema  # type: ignore[union-attr]
    for place, argument in enumerate(schema.arguments):
        value = node.args[place] if place < len(node.args) else node.kwargs.get(argument.name)
        alias = argument.alias_info is not None and argument.alias_info.is_write
        if alias or node.target in _BATCH_NORMS:
            yield from (v for v in (value if isinstance(value, list | tuple) else [value]) if isinstance(v, fx.Node))


def _origin(node: fx.Node) -> fx.Node:
    """What a view looks at; parts of a split tensor are views too."""
    while node.op == "call_function":
        schema = getattr(node.target, "_schema", None)
        looks = node.target is operator.getitem or any(
            a.alias_info is not None for a in getattr(schema, "arguments", ())
        )
        if not looks or not isinstance(node.args[0], fx.Node):
            return node
        node = node.args[0]
    return node


def _simplify(graph: fx.Graph) -> None:
    """Leave out what has no effect, and run softmaxes over few classes in the order that vectorizes."""
    for node in list(graph.nodes):
        if _idle(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.target in _SHORT and _few_classes(node):
            function, arity = _SHORT[node.target]
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_function(function, node.args[:arity]))
            graph.erase_node(node)


def _factor(graph: fx.Graph, moved: int) -> None:
    """Hand on the factors of large transposed products, such as weight gradients of linear layers on a CPU.

    ``bmm`` gives them in the order of the transposed weight. In the order of the weight itself its last bit depends
    on the number of matrices, and adding across the order costs as much as the product. A factor that looks at a
    moved input would change before the product is made.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"][:moved]
    for node in _outputs(graph):
        factors = _factors(node)
        if not factors or any(_origin(factor) in inputs for factor in factors):
            continue
        with graph.inserting_before(node):
            left, right = (graph.call_function(aten.transpose.int, (f, 1, 2)) for f in reversed(factors))
            node.replace_all_uses_with(graph.call_function(Product, (left, right)))


def _factors(node: fx.Node) -> list[fx.Node]:
    """Both factors of a large transposed product on the CPU that is a result and nothing else; empty for others."""
    value, product = node.meta.get("val"), node.args[0] if node.args else None
    if node.target is not aten.transpose.int or value is None or value.ndim != 3 or value.device.type != "cpu":
        return []
    if not isinstance(product, fx.Node) or product.target is not aten.bmm.default or {*node.args[1:]} != {1, 2}:
        return []
    alone = len(product.users) == 1 and all(user.op == "output" for user in node.users)
    return product.all_input_nodes if alone and value[0].numel() >= FACTORED_FROM else []


def _outputs(graph: fx.Graph) -> list[fx.Node]:
    (output,) = (node for node in graph.nodes if node.op == "output")
    return list(output.all_input_nodes)


def _idle(node: fx.Node) -> bool:
    if node.target in _WITHOUT_EFFECT:
        return True
    if node.target is not aten.mul.Scalar and node.target not in _SAME_SHAPE:
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")  # type: ignore[union-attr]
    if before is None or after is None or before.shape != after.shape or before.dtype != after.dtype:
        return False
    return node.target is not aten.mul.Scalar or bool(node.args[1] == 1)


def _few_classes(node: fx.Node) -> bool:
    """A CPU softmax over the last axis that is shorter than a vector register, which is then filled one by one."""
    value = node.meta.get("val")
    if value is None or value.device.type != "cpu" or value.dtype != torch.float32 or value.ndim < 2:
        return False
    axis = node.args[1] if node.target is aten._log_softmax.default else node.args[2]
    lanes = 16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 8
    return bool(axis in (-1, value.ndim - 1) and value.shape[-1] < lanes)


def _log_softmax(x: Tensor) -> Tensor:
    """The same bits as over the last axis, many samples at a time."""
    turned: Tensor = aten._log_softmax.default(_turned(x), x.ndim - 2, False)
    return _turned(turned)


def _log_softmax_backward(grad: Tensor, output: Tensor) -> Tensor:
    turned: Tensor = aten._log_softmax_backward_data.default(_turned(grad), _turned(output), grad.ndim - 2, grad.dtype)
    return _turned(turned)


def _turned(x: Tensor) -> Tensor:
    return x.transpose(-1, -2).contiguous()


_SHORT: dict[Any, tuple[Callable[..., Tensor], int]] = {
    aten._log_softmax.default: (_log_softmax, 1),
    aten._log_softmax_backward_data.default: (_log_softmax_backward, 2),
}
"""What runs in the place of an operation, and how many of its arguments it takes."""
