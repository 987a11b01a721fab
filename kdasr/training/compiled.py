"""A model's layers through torch.compile and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def compiled(model: Any, wanted: bool) -> Iterator[None]:
    """Inside, the layers of `model` are compiled if that is wanted (those without `layers`, whole).

    Layer by layer, since they share one graph, which is compiled in a fraction of the time of a whole
    model and survives what a model decides in Python; hooks on the layers stay outside. Lengths are
    dynamic, or each new one would be compiled anew.
    """
    places = [(layer, "forward") for layer in getattr(model, "layers", ())] or [(model, "offline")]
    if not wanted:
        yield
        return
    for place, name in places:
        setattr(place, name, torch.compile(getattr(place, name), dynamic=True))
    try:
        yield
    finally:
        for place, name in places:
            delattr(place, name)
