"""What stands in for ExecuTorch's and torch.fx's own gives what they give."""

from __future__ import annotations

import itertools
import operator
import random
from abc import ABCMeta
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import fx
from torch.fx.passes.tools_common import legalize_graph
from torch.fx.passes.utils.fuser_utils import validate_partition

from export import quick_lowering
from export.quick_lowering import _can_merge, _has_hooks, _same, _sort_in_place, _Written


def random_module(seed: int, size: int = 30) -> fx.GraphModule:
    """A graph whose nodes stand in another order than they can run in."""
    draw, graph = random.Random(seed), fx.Graph()
    nodes = [graph.placeholder(f"x{number}") for number in range(3)]
    for _ in range(size):
        nodes.append(graph.call_function(torch.add, tuple(draw.choices(nodes, k=2))))
    graph.output(nodes[-1])
    for _ in range(size):
        one, other = draw.sample(nodes[3:], 2)
        one.append(other)
    return fx.GraphModule(torch.nn.Module(), graph)


def names(module: fx.GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes]


@pytest.mark.parametrize("seed", range(10))
def test_nodes_are_put_in_the_order_of_torch(seed: int) -> None:
    module, theirs = random_module(seed), random_module(seed)
    before, nodes = names(module), set(module.graph.nodes)
    _sort_in_place(module)
    assert names(module) == names(legalize_graph(theirs)) != before
    assert set(module.graph.nodes) == nodes
    module.graph.lint()


def test_a_graph_that_cannot_be_put_in_order_is_refused() -> None:
    module = random_module(1)
    one, other = [node for node in module.graph.nodes if node.op == "call_function"][:2]
    one.args, other.args = (other, other), (one, one)
    with pytest.raises(RuntimeError, match="cycle"):
        _sort_in_place(module)


def test_parts_are_joined_where_no_path_leaves_them_and_comes_back() -> None:
    graph = legalize_graph(random_module(3)).graph
    downstream: dict[fx.Node, set[fx.Node]] = {}
    for node in reversed(graph.nodes):
        downstream[node] = set(node.users).union(*(downstream[user] for user in node.users))
    viewer = SimpleNamespace(downstreams_of=lambda node: downstream[node])
    partitioner = SimpleNamespace(dependency_viewer=viewer)
    calls = [node for node in graph.nodes if node.op == "call_function"]
    parts = {number: SimpleNamespace(nodes=dict.fromkeys([node])) for number, node in enumerate(calls)}
    answers = set()
    for one, other in itertools.combinations(parts, 2):
        nodes = [*parts[one].nodes, *parts[other].nodes]
        answer = _can_merge(partitioner, one, other, parts)
        assert answer == validate_partition(nodes)
        answers.add(answer)
    assert answers == {True, False}


def test_a_graph_is_another_one_once_an_argument_or_a_shape_changes() -> None:
    module = random_module(4)
    call = next(node for node in module.graph.nodes if node.op == "call_function")
    first = _Written(module)
    assert first.is_of(module)
    call.meta["val"] = object()
    assert not first.is_of(module)
    second = _Written(module)
    assert second.is_of(module)
    call.args = (call.args[0], 1.0)
    assert not second.is_of(module)


@pytest.mark.parametrize("other", [1.0, True])
def test_numbers_of_another_type_are_other_arguments(other: float) -> None:
    module = random_module(4)
    call = next(node for node in module.graph.nodes if node.op == "call_function")
    call.args = (call.args[0], 1)
    written = _Written(module)
    call.args = (call.args[0], other)
    assert not written.is_of(module)


def test_what_is_computed_of_shapes_comes_first_as_in_torch() -> None:
    def build() -> fx.GraphModule:
        graph = fx.Graph()
        a, b = graph.placeholder("a"), graph.placeholder("b")
        first = graph.call_function(torch.neg, (a,))
        graph.output((first, graph.call_function(operator.add, (a, b))))
        return fx.GraphModule(torch.nn.Module(), graph)

    module = build()
    _sort_in_place(module)
    assert names(module) == names(legalize_graph(build())) == ["a", "b", "add", "neg", "output"]


def test_a_pass_has_hooks_where_it_defines_more_than_call() -> None:
    # Made by abc, as ExportPass is, which leaves an attribute in every class of passes.
    base = ABCMeta("Base", (), {"call": None, "call_anything": None})

    plain = ABCMeta("Plain", (base,), {"call": None, "requires": None, "own": None})
    assert not _has_hooks(plain, base)
    assert _has_hooks(ABCMeta("Hooked", (plain,), {"call_anything": None}), base)


def test_a_value_is_not_taken_for_one_that_came_to_its_address() -> None:
    module = random_module(4)
    call = next(node for node in module.graph.nodes if node.op == "call_function")
    call.meta["val"] = object()
    written = _Written(module)
    for _ in range(1000):
        del call.meta["val"]
        call.meta["val"] = object()
        assert not written.is_of(module)


def test_arguments_are_the_same_where_their_values_are_the_very_same() -> None:
    class Proxy(NamedTuple):
        data: object

    graph, value = fx.Graph(), object()
    node = graph.placeholder("x")
    node.meta["val"] = value
    old = ((node, [1, node], None), {"dim": 2})
    new = ((Proxy(value), [1, Proxy(value)], None), {"dim": 2})
    assert _same(new, old, Proxy)
    for other in (
        ((Proxy(object()), [1, Proxy(value)], None), new[1]),
        ((value, [1, Proxy(value)], None), new[1]),
        ((Proxy(value), [1], None), new[1]),
        ((Proxy(value), 1, None), new[1]),
        ((Proxy(value), [1.0, Proxy(value)], None), new[1]),
        (new[0], {"dim": 3}),
        (new[0], {}),
        (new[0], []),
    ):
        assert not _same(other, old, Proxy)


def test_what_is_replaced_is_put_back_whatever_happens() -> None:
    owner = SimpleNamespace(name=1)
    with pytest.raises(ValueError), quick_lowering._replaced(owner, "name", lambda: 2):
        assert owner.name() == 2
        raise ValueError
    assert owner.name == 1


def test_a_release_that_was_not_tried_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def require(name: str, extra: str) -> SimpleNamespace:
        asked.append(name)
        return SimpleNamespace(__version__="1.6.0")

    monkeypatch.setattr(quick_lowering, "require", require)
    with quick_lowering.quick_lowering():
        assert asked == ["executorch.version"]
