"""torch.fx without what it does for debugging: most of what lowering a large graph would take.

A graph goes through some twenty passes, and each of its parts that a backend takes through twenty more.
After each of them torch.fx writes the graph down as source code, which is run for next to none of them,
and copies for each node the list of all nodes that it came from, which grows with the passes. Worse, when
a part is cut out of a graph, all of the graph is written down anew: the square of its size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import fx


@contextlib.contextmanager
def light_graphs() -> Iterator[None]:
    """While this lasts, graphs become code when they are run or looked at, and nodes forget where they
    came from. What passes compute is the same."""
    with _code_on_demand(), _no_origins():
        yield


@contextlib.contextmanager
def _code_on_demand() -> Iterator[None]:
    # torch.fx._lazy_graph_module does this too, but for graphs that are asked for as such: not
    # for those of ExecuTorch's passes.
    graph_module: Any = fx.GraphModule
    recompile, code, text = graph_module.recompile, graph_module.code, graph_module.__str__

    def compile_and_run(module: Any, *arguments: Any, **named: Any) -> Any:
        recompile(module)
        return module.forward(*arguments, **named)

    def put_off(module: Any) -> Any:
        # Other generators also say how inputs are nested, which is asked for without running the code.
        if type(module.graph._codegen) is not fx.graph.CodeGen:
            return recompile(module)
        type(module).forward = compile_and_run  # each graph has a class of its own
        return None

    def up_to_date_code(module: Any) -> str:
        if type(module).forward is compile_and_run:
            recompile(module)
        return str(code.fget(module))

    graph_module.recompile, graph_module.code = put_off, property(up_to_date_code)
    # ExecuTorch writes whole graphs into messages for a log that is off.
    graph_module.__str__ = object.__repr__
    try:
        yield
    finally:
        graph_module.recompile, graph_module.code, graph_module.__str__ = recompile, code, text


@contextlib.contextmanager
def _no_origins() -> Iterator[None]:
    traceback: Any = fx.traceback
    full = traceback.NodeSource

    class Nothing(full):  # type: ignore[misc, valid-type]
        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(None)

    traceback.NodeSource = Nothing
    try:
        yield
    finally:
        traceback.NodeSource = full
