"""torch.fx without its debugging aids, which take most of the time of lowering a large graph.

A graph goes through some twenty passes, and each part that a backend takes goes through twenty more.
After each pass, torch.fx generates source code for the graph, which is hardly ever run, and copies for
each node the list of all nodes that it came from, which grows with the passes. Worse, whenever a part is
cut out of a graph, code for the whole graph is generated anew, which takes time quadratic in its size.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import fx


@contextlib.contextmanager
def light_graphs() -> Iterator[None]:
    """Within the context, a graph's code is generated only when it is run or read, and nodes do not record
    their origins. The passes compute the same."""
    with _code_on_demand(), _no_origins():
        yield


@contextlib.contextmanager
def _code_on_demand() -> Iterator[None]:
    # torch.fx._lazy_graph_module does this too, but only for graphs that are created as lazy, unlike
    # those of ExecuTorch's passes.
    graph_module: Any = fx.GraphModule
    recompile, code, text = graph_module.recompile, graph_module.code, graph_module.__str__

    def compile_and_run(module: Any, *arguments: Any, **named: Any) -> Any:
        recompile(module)
        return module.forward(*arguments, **named)

    def put_off(module: Any) -> Any:
        # Other code generators also record how inputs are nested, which is read without running the code.
        if type(module.graph._codegen) is not fx.graph.CodeGen:
            return recompile(module)
        type(module).forward = compile_and_run  # each graph has a class of its own
        return None

    def up_to_date_code(module: Any) -> str:
        if type(module).forward is compile_and_run:
            recompile(module)
        return str(code.fget(module))

    graph_module.recompile, graph_module.code = put_off, property(up_to_date_code)
    # ExecuTorch formats whole graphs for log messages even when logging is off.
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
