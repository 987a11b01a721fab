"""Graphs that are not written down until they are run compute what others do."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, fx, nn

from export.light_graphs import light_graphs


class AddOne(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[fx.Graph]]:
    """The graphs that were turned into source code, each time."""
    graphs: list[fx.Graph] = []
    write = fx.Graph.python_code

    def count(graph: fx.Graph, *arguments: object, **named: object) -> object:
        graphs.append(graph)
        return write(graph, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(fx.Graph, "python_code", count)
    yield graphs


def multiply_instead(module: fx.GraphModule) -> None:
    (node,) = (node for node in module.graph.nodes if node.op == "call_function")
    node.target = torch.mul
    node.args = (node.args[0], 5)
    module.recompile()


def test_code_is_written_once_when_it_is_run(written: list[fx.Graph]) -> None:
    with light_graphs():
        module = fx.symbolic_trace(AddOne())
        for _ in range(3):
            multiply_instead(module)
        assert not written
        assert module(torch.tensor(3)) == 15 and module(torch.tensor(4)) == 20
    assert len(written) == 1


def test_code_that_is_read_is_that_of_the_graph() -> None:
    with light_graphs():
        module = fx.symbolic_trace(AddOne())
        assert "x + 1" in module.code
        multiply_instead(module)
        assert "torch.mul(x, 5)" in module.code
        assert module(torch.tensor(3)) == 15


def test_a_graph_runs_after_it_too(written: list[fx.Graph]) -> None:
    with light_graphs():
        old = fx.symbolic_trace(AddOne())
        multiply_instead(old)
    assert old(torch.tensor(3)) == 15
    written.clear()
    new = fx.symbolic_trace(AddOne())
    assert len(written) == 1 and new(torch.tensor(3)) == 4
    assert "x + 1" in str(new)


def test_inputs_are_nested_as_before() -> None:
    class Nested(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
            return {"sum": pair[0] + pair[1]}

    pair = (torch.tensor(1.0), torch.tensor(2.0))
    with light_graphs():
        module = torch.export.export(Nested(), (pair,)).module()
        assert module(pair)["sum"] == 3


def test_nodes_do_not_keep_those_they_came_from() -> None:
    module = fx.symbolic_trace(AddOne())

    def copied() -> list[str]:
        nodes = fx.Transformer(fx.Transformer(module).transform()).transform().graph.nodes
        (node,) = (node for node in nodes if node.op == "call_function")
        return [source.name for source in node.meta.get("from_node", [])]

    for node in module.graph.nodes:
        node.meta["custom"] = {}
    assert copied() == ["add"]
    with light_graphs():
        assert copied() == [""]
    assert copied() == ["add"]
