"""ExecuTorch's lowering without what it does over and over: of a large graph, up to half of the time.

Each of the parts that a backend takes goes through some twenty passes, and most of them work out all of its
shapes anew, also where they found nothing to change. Which parts may be joined is asked of every two of
them by walking through all that depends on them, and where one is cut out, the whole graph is copied to put
it in order: the square of its size.
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
# What a pass may define and still change its graph before its shapes are worked out (the last is abc's).
# Whatever else of ExportPass it defines may change the graph meanwhile.
_HARMLESS = {"call", "requires", "ensures", "_abc_impl"}


@contextlib.contextmanager
def quick_lowering() -> Iterator[None]:
    """While this lasts, ExecuTorch works out a graph that did not change but once, and cuts it quickly. The
    program that comes of it is the same to the byte.

    It stands in for private parts of ExecuTorch, so with other versions than were tried it does nothing, and
    lowering takes longer.

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
    """A pass works out the shapes of what it has changed and of what comes after it until they are as they
    were, and no others."""
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
        # A pass with hooks changes the graph while it works out its shapes; others did so before.
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
            # What comes after it need not be worked out where this has the shape that it had.
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
    """Whether a class of passes defines more of ExportPass than what is harmless."""
    own = {name for base in kind.__mro__ if base not in export_pass.__mro__ for name in vars(base)}
    return any(hasattr(export_pass, name) and not name.startswith("__") for name in own - _HARMLESS)


def _has_inner_graphs(module: Any) -> bool:
    """Branches and loops, whose shapes are not looked at here."""
    return any(isinstance(inner, fx.GraphModule) for inner in module.children())


class _Known:
    """In place of what runs operations on shapes: the result is known."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def call_function(self, *_: Any) -> Any:
        return self.value


def _same(new: Any, old: Any, proxy: Any) -> bool:
    """Whether arguments of an operation, as a pass gives them, are those of a node."""
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
    """Whether two tensors without content cannot be told apart."""
    return (
        type(one) is type(other) is FakeTensor
        and one.constant is other.constant is None
        and (one.shape, one.stride(), one.storage_offset())
        == (other.shape, other.stride(), other.storage_offset())
        and (one.dtype, one.device, one.requires_grad) == (other.dtype, other.device, other.requires_grad)
    )


class _Written:
    """A graph as it stands, as far as its shapes depend on it."""

    def __init__(self, module: Any) -> None:
        self._nodes = self._of(module)
        # They are compared by their addresses, which others would get if these were gone.
        self._kept = [(node, node.meta.get("val")) for node in module.graph.nodes]

    def is_of(self, module: Any) -> bool:
        """Whether the graph of the module still is this one."""
        return self._nodes == self._of(module)

    @staticmethod
    def _of(module: Any) -> list[tuple[Any, ...]]:
        return [
            # As text 1, 1.0 and True differ.
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
    """Which parts may be joined, and a graph put in order where one was cut out, in time that does not grow
    with the square of the graph for each of them."""
    groups = require("executorch.exir.backend.canonical_partitioners.group_partitioner", _EXTRA)
    cutting = require("executorch.exir.lowered_backend_module", _EXTRA)
    with (
        _replaced(groups.GroupBasedPartitioner, "_can_merge_partitions", _can_merge),
        _replaced(cutting, "legalize_graph", _sort_in_place),
    ):
        yield


def _can_merge(partitioner: Any, one: int, other: int, partitions_by_id: Any) -> bool:
    """Whether no path leaves the two parts and comes back to them."""
    both = {*partitions_by_id[one].nodes, *partitions_by_id[other].nodes}
    users = {user for node in both for user in node.users if user not in both}
    downstreams_of = partitioner.dependency_viewer.downstreams_of
    return all(both.isdisjoint(downstreams_of(user)) for user in users) and validate_partition(list(both))


def _gets_item(node: fx.Node) -> bool:
    return node.target is operator.getitem


def _sort_in_place(module: Any) -> Any:
    """The nodes of a graph in the order of torch.fx's `legalize_graph`, which makes copies of them all. What
    it prefers to others, computations of shapes, is left to it."""
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
