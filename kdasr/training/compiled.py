"""torch.compile for a model's layers, during training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_MOST_GRAPHS = 64
_FOR_FIXED_SHAPES = ("triton.coalesce_tiling_analysis", "triton.mix_order_reduction")


@contextmanager
def compiled(model: Any, wanted: bool) -> Iterator[None]:
    """Compile the layers of `model` within the context if `wanted` (the whole model if it has no `layers`).

    Layers are compiled one by one because they share one graph: it compiles in a fraction of the time of
    the whole model and allows Python control flow in the model; hooks on the layers stay outside.
    Lengths are dynamic, or each new one would be compiled anew. Only training is compiled: evaluation
    would need as many graphs again.
    """
    places = [(layer, "forward") for layer in getattr(model, "layers", ())] or [(model, "offline")]
    if not wanted:
        yield
        return
    import torch._inductor.config  # takes a second, so only if it is needed

    for place, name in places:
        setattr(place, name, _in_training(place, getattr(place, name)))
    try:
        # Two mask shapes, batches of one or several utterances, and a Zipformer's stacks and chunk sizes
        # each need graphs: after eight, torch would run the rest uncompiled. The passes switched off are
        # for fixed shapes only: with varying lengths, torch 2.11 fails in both on a GPU.
        known = torch._inductor.config.get_config_copy()
        fixed_shapes_only = {name: False for name in _FOR_FIXED_SHAPES if name in known}
        with (
            torch._dynamo.config.patch(recompile_limit=_MOST_GRAPHS),
            torch._inductor.config.patch(fixed_shapes_only),
        ):
            yield
    finally:
        for place, name in places:
            delattr(place, name)


def _in_training(place: Any, plain: Callable[..., Any]) -> Callable[..., Any]:
    fast = torch.compile(plain, dynamic=True)

    def run(x: Tensor, *others: Any) -> Any:
        if not place.training:
            return plain(x, *others)
        # The first layer's input is transposed in memory, which would need another graph.
        return fast(x.contiguous(), *others)

    return run
