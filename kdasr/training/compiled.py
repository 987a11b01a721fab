"""A model's layers through torch.compile and back."""

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
    """Inside, the layers of `model` are compiled if that is wanted (of a model without `layers`, the whole).

    Layer by layer, since they share one graph, which is compiled in a fraction of the time of a whole
    model and survives what a model decides in Python; hooks on the layers stay outside. Lengths are
    dynamic, or each new one would be compiled anew. In training alone: a look at the dev set would cost
    as many graphs again.
    """
    places = [(layer, "forward") for layer in getattr(model, "layers", ())] or [(model, "offline")]
    if not wanted:
        yield
        return
    import torch._inductor.config  # takes a second, which only those should wait who compile

    for place, name in places:
        setattr(place, name, _in_training(place, getattr(place, name)))
    try:
        # Masks of two shapes, batches of one utterance or more, and for a Zipformer its stacks and chunk
        # sizes: after eight graphs torch would run everything else uncompiled. What is switched off is for
        # fixed shapes only: with lengths that vary, torch 2.11 fails in both on a GPU.
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
        # To the first layer frames come transposed, which would be another graph.
        return fast(x.contiguous(), *others)

    return run
