"""Operations whose rule for many chains is our own: the values of each chain alone, and no copies of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_slt.batching import ChainRules

CHAINS, SAMPLES, LENGTH, WIDTH = 3, 10, 7, 32


class Largest(TorchDispatchMode):
    """Remembers the most numbers that a tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [t.untyped_storage().nbytes() // t.element_size() for t in pytree.tree_leaves(result) if _is_plain(t)]
        self.numbers = max([self.numbers, *made])
        return result


def _is_plain(leaf: Any) -> bool:
    return isinstance(leaf, Tensor)


class Attends(nn.Module):
    """The attention of torch's own encoder layers, which turns samples and tokens round inside."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, 2, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.full((LENGTH, LENGTH), -torch.inf, dtype=x.dtype).triu(1)
        output: Tensor = self.inner(x, x, x, attn_mask=mask, need_weights=False)[0]
        return output


class Maps(nn.Module):
    """A linear map of inputs that do not lie in order, by one of its names."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.product, self.matrix = product, nn.Parameter(torch.randn(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.transpose(0, 1), self.matrix)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "attention": Attends,
    "attention of other inputs": lambda: Attends(kdim=WIDTH, vdim=WIDTH, add_bias_kv=True),
    "linear": lambda: Maps(F.linear),
    "@": lambda: Maps(lambda x, w: x @ w),
    "matmul": lambda: Maps(torch.matmul),
    "matmul of a tensor": lambda: Maps(lambda x, w: x.matmul(w)),
    "encoder layer": lambda: nn.TransformerEncoderLayer(WIDTH, 2, WIDTH, dropout=0.0, batch_first=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_linear_maps_keep_one_copy_of_the_weights(name: str) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().double().eval()
    weights = {
        n: torch.stack([p.detach() + k for k in range(CHAINS)]).requires_grad_() for n, p in module.named_parameters()
    }
    inputs = torch.randn(CHAINS, SAMPLES, LENGTH, WIDTH, dtype=torch.float64)

    def losses(weights: Any, inputs: Tensor) -> Tensor:
        return vmap(lambda w, x: functional_call(module, w, x).sin().mean())(weights, inputs)

    with ChainRules(), Largest() as largest:
        together = torch.autograd.grad(losses(weights, inputs).sum(), list(weights.values()))
    for chain in range(CHAINS):
        own = {n: w[chain].detach().requires_grad_() for n, w in weights.items()}
        alone = torch.autograd.grad(functional_call(module, own, inputs[chain]).sin().mean(), list(own.values()))
        torch.testing.assert_close([g[chain] for g in together], list(alone), rtol=1e-9, atol=1e-12)
    activations, longest = 3 * inputs.numel(), max(w.numel() for w in weights.values())
    assert largest.numbers <= max(activations, longest)
    assert activations < LENGTH * longest  # so that a copy for each place would show


def test_the_mode_does_not_outlive_an_error_inside_attention() -> None:
    x = torch.randn(2, 3, 5)
    with ChainRules(), pytest.raises((AssertionError, RuntimeError)):
        nn.MultiheadAttention(4, 2, batch_first=True)(x, x, x)
    assert not torch.overrides._is_torch_function_mode_enabled()
