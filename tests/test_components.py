"""Components: what a user may write, and their algebra as sets of weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lightning_slt.components import FULL, Component, resolve_components
from lightning_slt.posterior import LocalPosterior

NAMES = ("0.weight", "0.bias", "1.weight")


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 3, bias=False))


class Tied(nn.Module):
    """One parameter under two names, ``first.weight`` and ``last.weight``, and a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.frozen = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)
        self.last.weight = self.first.weight
        self.frozen.requires_grad_(False)


def elements(component: Component, module: nn.Module) -> Tensor:
    """A mask over all elements of a module's parameters in a row."""
    rows = []
    for name, parameter in module.named_parameters():
        whole = torch.full(parameter.shape, name in component.parameters)
        rows.append(component.masks.get(name, whole).flatten())
    return torch.cat(rows)


def random_component(seed: int) -> Component | None:
    """Each parameter out, in, or in part; None where everything is out."""
    g = torch.Generator().manual_seed(seed)
    parts = {}
    for name, parameter in net().named_parameters():
        kind = int(torch.randint(0, 4, (1,), generator=g))
        mask = torch.rand(parameter.shape, generator=g) < 0.5
        if kind == 1:
            parts[name] = None
        elif kind > 1 and mask.any():
            parts[name] = mask
    return Component(tuple(parts), {n: m for n, m in parts.items() if m is not None}) if parts else None


PAIRS = [(a, b) for a in range(8) for b in range(8) if random_component(a) and random_component(b + 100)]
RULES: dict[str, tuple[Callable[[Component, Component], Component], Callable[[Tensor, Tensor], Tensor]]] = {
    "union": (lambda a, b: a | b, torch.logical_or),
    "intersection": (lambda a, b: a & b, torch.logical_and),
    "difference": (lambda a, b: a - b, lambda a, b: a & ~b),
}


@pytest.mark.parametrize("rule", RULES)
def test_components_combine_as_sets(rule: str) -> None:
    of_components, of_sets = RULES[rule]
    empty = 0
    for seeds in PAIRS:
        a, b = random_component(seeds[0]), random_component(seeds[1] + 100)
        assert a is not None
        assert b is not None
        expected = of_sets(elements(a, net()), elements(b, net()))
        if not expected.any():
            empty += 1
            with pytest.raises(ValueError, match=f"the {rule} of these components holds no weight"):
                of_components(a, b)
            continue
        found = of_components(a, b)
        assert torch.equal(elements(found, net()), expected)
        assert all(mask.any() and not mask.all() for mask in found.masks.values())
        resolve_components(net(), found)
    assert len(PAIRS) - empty > 20


@pytest.mark.parametrize("seed", range(12))
def test_a_complement_is_the_rest(seed: int) -> None:
    component = random_component(seed)
    if component is None or elements(component, net()).all():
        return
    rest = component.complement(net())
    assert torch.equal(elements(rest, net()), ~elements(component, net()))
    assert torch.equal(elements(rest.complement(net()), net()), elements(component, net()))


def test_the_complement_of_everything_is_empty() -> None:
    with pytest.raises(ValueError, match="holds no weight"):
        Component(NAMES).complement(net())


def test_a_complement_knows_tied_and_frozen_parameters() -> None:
    mask = torch.eye(3, dtype=torch.bool)
    for name in ("first.weight", "last.weight"):
        rest = Component((name,), {name: mask}).complement(Tied())
        assert set(rest.parameters) == {"first.weight", "first.bias", "last.bias"}
        assert torch.equal(rest.masks["first.weight"], ~mask)
        resolve_components(Tied(), rest)
    both = Component(("first.weight", "last.weight"), {"first.weight": mask, "last.weight": ~mask})
    assert set(both.complement(Tied()).parameters) == {"first.bias", "last.bias"}


def test_a_complement_refuses_strange_names() -> None:
    with pytest.raises(ValueError, match=r"no parameter of the module is called 'x'"):
        Component(("x",)).complement(net())


def test_masks_of_different_shapes_do_not_combine() -> None:
    a, b = (Component(("w",), {"w": torch.eye(n, dtype=torch.bool)}) for n in (2, 3))
    with pytest.raises(ValueError, match=r"shapes \(2, 2\) and \(3, 3\)"):
        a | b


def test_combining_changes_neither() -> None:
    mask = torch.eye(2, 3, dtype=torch.bool)
    a, b = Component(("0.weight",), {"0.weight": mask}), Component(("0.weight",), {"0.weight": ~mask})
    assert (a | b).masks == {}
    assert torch.equal(a.masks["0.weight"], torch.eye(2, 3, dtype=torch.bool))
    assert torch.equal(b.masks["0.weight"], ~torch.eye(2, 3, dtype=torch.bool))


def test_unselected_weights_have_no_coordinates() -> None:
    component = Component(("0.weight", "0.bias"), {"0.weight": torch.eye(2, 3, dtype=torch.bool)})
    anchor = {name: p for name, p in net().named_parameters() if name in component.parameters}
    posterior = LocalPosterior(
        loss=lambda w, b: w["0.weight"].sum(), anchor=anchor, nbeta=1.0, localization=1.0, masks=component.masks
    )
    assert posterior.dimension == 4
    assert [leaf.name for leaf in posterior.leaves] == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, {FULL: NAMES}),
        ("layers", {"0": ("0.weight", "0.bias"), "1": ("1.weight",)}),
        ("0.*", {"0.*": ("0.weight", "0.bias")}),
        ("0", {"0": ("0.weight", "0.bias")}),
        ("*.weight", {"*.weight": ("0.weight", "1.weight")}),
        (Component(("1.weight",)), {"component": ("1.weight",)}),
        ({"mine": Component(("0.bias",))}, {"mine": ("0.bias",)}),
    ],
)
def test_what_a_user_may_write(given: object, expected: dict[str, tuple[str, ...]]) -> None:
    found = resolve_components(net(), given)  # type: ignore[arg-type]
    assert {name: component.parameters for name, component in found.items()} == expected


@pytest.mark.parametrize(
    ("given", "error", "match"),
    [
        ("0.wieght", ValueError, r"no trainable parameter matches '0\.wieght'.*nearest of its 3 names: 0\.weight"),
        (Component(("1.bias",)), ValueError, r"no trainable parameter is called '1\.bias'.*0\.bias"),
        ({}, ValueError, "empty mapping"),
        (3, TypeError, r"components must be None, 'heads', 'layers'.*got 3"),
        ({"a": "0.*"}, TypeError, "Component"),
        (
            Component(("0.bias",), {"0.bias": torch.ones(3, dtype=torch.bool)}),
            ValueError,
            r"shape \(3,\), the parameter \(2,\)",
        ),
    ],
)
def test_what_a_user_may_not_write(given: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        resolve_components(net(), given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "match"), [("last.weight", "same parameter as 'first.weight'"), ("frozen.bias", "is frozen")]
)
def test_why_a_parameter_that_exists_does_not_match(name: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        resolve_components(Tied(), name)


def test_components_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="at least one parameter name"):
        Component(())
    with pytest.raises(ValueError, match="not among the component's parameters"):
        Component(("a",), {"b": torch.ones(1, dtype=torch.bool)})
    with pytest.raises(TypeError, match=r"write mask\.bool\(\)"):
        Component(("a",), {"a": torch.ones(1)})
    with pytest.raises(TypeError, match=r"write Component\(\('a',\)\)"):
        Component("a")  # type: ignore[arg-type]


def test_what_the_page_on_components_shows_works_as_written() -> None:
    page = (Path(__file__).parents[1] / "docs" / "components.md").read_text()
    exec(compile("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), "components.md", "exec"), {})
