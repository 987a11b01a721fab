"""ExecuTorch's lowering without repeated work, which takes up to half of the time for a large graph.

Each part that a backend takes goes through some twenty passes, and most of them recompute all of its
shapes, even if they changed nothing. Whether two parts may be merged is determined, for every pair, by
walking through all nodes that depend on them, and whenever a part is cut out, the whole graph is copied to
sort it, which takes time quadratic in its size.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from torch import fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.passes.infra.pass_base import PassResult
from torch.fx.passes.tools_common import legalize_graph
from torch.fx.passes.utils.fuser_utils import validate_partition

from export import require

_EXTRA = "executorch"
_TRIED = "1.5."
# A pass that overrides only these changes its graph before it computes shapes (the last one is from abc).
# Other overridden methods of ExportPass may change the graph during that computation.
_HARMLESS = {"call", "requires", "ensures", "_abc_impl"}


@contextlib.contextmanager
def quick_lowering() -> Iterator[None]:
    """Within the context, ExecuTorch computes the shapes of an unchanged graph only once, and cuts out parts
    quickly. The resulting program is identical to the byte.

    It replaces private parts of ExecuTorch, so with untested versions it does nothing.

    Raises:
        MissingDependencyError: executorch is not installed.
    """
    if not require("executorch.version", _EXTRA).__version__.startswith(_TRIED):
        yield
        return
    with _shapes_once(), _quick_cuts():
        yield


@contextlib.contextmanager
def _shapes_once() -> Iterator[None]:
    """A pass computes only the shapes of nodes that it changed, and of those after them until shapes are as
    before."""
    passes: Any = require("executorch.exir.pass_base", _EXTRA)
    export_pass, interpreter, proxy = (
        passes.ExportPass,
        passes.ExportPass.ExportInterpreter,
        passes.ProxyValue,
    )
    work_out, run_node, work_out_one = export_pass.call, interpreter.run_node, export_pass._fx
    worked_out: weakref.WeakKeyDictionary[Any, _Written] = weakref.WeakKeyDictionary()

    def call(one_pass: Any, module: Any) -> Any:
        known = module in worked_out and worked_out[module].is_of(module) and not _has_inner_graphs(module)
        # A pass with hooks changes the graph while it computes shapes; others have done so before.
        if known and not _has_hooks(type(one_pass), export_pass):
            return PassResult(module, True)
        one_pass._all_known, one_pass._node = known, None
        result = work_out(one_pass, module)
        worked_out[result.graph_module] = _Written(result.graph_module)
        return result

    def remember_node(running: Any, node: fx.Node) -> Any:
        running.callback._node = node if getattr(running.callback, "_all_known", False) else None
        return run_node(running, node)

    def look_up(one_pass: Any, kind: str, target: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        node = getattr(one_pass, "_node", None)
        if node is None or kind != "call_function":
            return work_out_one(one_pass, kind, target, args, kwargs, meta)
        value = node.meta.get("val")
        unchanged = target == node.target and _same((args, kwargs), (node.args, node.kwargs), proxy)
        if value is None or not unchanged:
            result = work_out_one(one_pass, kind, target, args, kwargs, meta)
            # If the shape has not changed, the nodes after this one need no recomputation.
            if not _alike(result.data, value):
                return result
            result.proxy.node.meta["val"] = value
            return proxy(value, result.proxy)
        before, one_pass.interpreter = one_pass.interpreter, _Known(value)
        try:
            return work_out_one(one_pass, kind, target, args, kwargs, meta)
        finally:
            one_pass.interpreter = before

    with (
        _replaced(export_pass, "call", call),
        _replaced(interpreter, "run_node", remember_node),
        _replaced(export_pass, "_fx", look_up),
    ):
        yield


def _has_hooks(kind: type, export_pass: type) -> bool:
    """Whether a class of passes overrides more of ExportPass than `_HARMLESS`."""
    own = {name for base in kind.__mro__ if base not in export_pass.__mro__ for name in vars(base)}
    return any(hasattr(export_pass, name) and not name.startswith("__") for name in own - _HARMLESS)


def _has_inner_graphs(module: Any) -> bool:
    """Whether it has branches or loops, which are not tracked."""
    return any(isinstance(inner, fx.GraphModule) for inner in module.children())


class _Known:
    """Replaces the interpreter of operations on shapes when the result is known."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def call_function(self, *_: Any) -> Any:
        return self.value


def _same(new: Any, old: Any, proxy: Any) -> bool:
    """Whether an operation's arguments in a pass equal those of a node."""
    if isinstance(old, fx.Node):
        return old.op != "get_attr" and isinstance(new, proxy) and new.data is old.meta.get("val")
    if isinstance(old, list | tuple):
        return (
            isinstance(new, list | tuple)
            and len(new) == len(old)
            and all(map(_same, new, old, itertools.repeat(proxy)))
        )
    if isinstance(old, dict):
        return (
            isinstance(new, dict)
            and new.keys() == old.keys()
            and all(_same(new[key], old[key], proxy) for key in old)
        )
    return new is old or (type(new) is type(old) and new == old)


def _alike(one: Any, other: Any) -> bool:
    """Whether two fake tensors, which have no data, are indistinguishable."""
    return (
        type(one) is type(other) is FakeTensor
        and one.constant is other.constant is None
        and (one.shape, one.stride(), one.storage_offset())
        == (other.shape, other.stride(), other.storage_offset())
        and (one.dtype, one.device, one.requires_grad) == (other.dtype, other.device, other.requires_grad)
    )


class _Written:
    """A snapshot of all that a graph's shapes depend on."""

    def __init__(self, module: Any) -> None:
        self._nodes = self._of(module)
        # Keeps the objects alive: they are compared by id, which a new object could reuse.
        self._kept = [(node, node.meta.get("val")) for node in module.graph.nodes]

    def is_of(self, module: Any) -> bool:
        """Whether the module's graph still equals this snapshot."""
        return self._nodes == self._of(module)

    @staticmethod
    def _of(module: Any) -> list[tuple[Any, ...]]:
        return [
            # repr, since 1, 1.0 and True would compare equal.
            (
                id(node),
                node.name,
                node.op,
                node.target,
                repr((node.args, node.kwargs)),
                id(node.meta.get("val")),
            )
            for node in module.graph.nodes
        ]


@contextlib.contextmanager
def _quick_cuts() -> Iterator[None]:
    """Checks whether parts may be merged, and sorts a graph from which one was cut out, without the cost that
    is quadratic in the size of the graph."""
    groups = require("executorch.exir.backend.canonical_partitioners.group_partitioner", _EXTRA)
    cutting = require("executorch.exir.lowered_backend_module", _EXTRA)
    with (
        _replaced(groups.GroupBasedPartitioner, "_can_merge_partitions", _can_merge),
        _replaced(cutting, "legalize_graph", _sort_in_place),
    ):
        yield


def _can_merge(partitioner: Any, one: int, other: int, partitions_by_id: Any) -> bool:
    """Whether two parts may be merged: no path leaves them and comes back."""
    both = {*partitions_by_id[one].nodes, *partitions_by_id[other].nodes}
    users = {user for node in both for user in node.users if user not in both}
    downstreams_of = partitioner.dependency_viewer.downstreams_of
    return all(both.isdisjoint(downstreams_of(user)) for user in users) and validate_partition(list(both))


def _gets_item(node: fx.Node) -> bool:
    return node.target is operator.getitem


def _sort_in_place(module: Any) -> Any:
    """Sorts the nodes of a graph as torch.fx's `legalize_graph` does, but without copying them all. Graphs
    with computations of shapes, which it puts first, are left to it."""
    graph = module.graph
    if any(
        getattr(node.target, "__module__", "") == "_operator" for node in graph.nodes if not _gets_item(node)
    ):
        return legalize_graph(module)
    missing = {node: len(node.all_input_nodes) for node in graph.nodes}
    ready = deque(node for node, count in missing.items() if count == 0)
    last = None
    while ready:
        node = ready.popleft()
        if last is None:
            next(iter(graph.nodes)).prepend(node)
        else:
            last.append(node)
        last = node
        for user in node.users:
            missing[user] -= 1
            if missing[user] == 0:
                ready.append(user)
    if any(missing.values()):
        raise RuntimeError("the graph has a cycle")
    return module


@contextlib.contextmanager
def _replaced(owner: Any, name: str, by: Callable[..., Any]) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, by)
    try:
        yield
    finally:
        setattr(owner, name, before)
