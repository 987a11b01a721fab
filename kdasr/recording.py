"""Record the outputs of a model's layers, which feature losses compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdasr.interfaces import ModelOutput

Key = TypeVar("Key", str, int)


class WhenAsked(dict[Key, ModelOutput]):
    """Outputs that are computed on first access."""

    def __init__(self, make: Callable[[Key], ModelOutput]) -> None:
        super().__init__()
        self._make: Callable[[Key], ModelOutput] = make

    def __missing__(self, key: Key) -> ModelOutput:
        self[key] = self._make(key)
        return self[key]


class Recorded(nn.Module):
    """A model whose `forward` is `offline` and also returns the outputs of its layers.

    Args:
        model: an acoustic model; the outputs of its `layers`, if it has any, are recorded by forward
            hooks and cut to the output frames.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self._outputs: list[Tensor] = []
        self._hooks: list[RemovableHandle] = [
            layer.register_forward_hook(self._record) for layer in getattr(model, "layers", ())
        ]

    def forward(self, features_btf: Tensor, lengths_b: Tensor) -> ModelOutput:
        """(B, T, 80) raw log-mel and (B,) feature frames to log-probs, output frames and layers."""
        self._outputs.clear()
        log_probs_btv, lengths_out_b = self.model.offline(features_btf, lengths_b)
        frames = log_probs_btv.shape[1]
        layers_btd = tuple(layer_btd[:, :frames] for layer_btd in self._outputs)
        self._outputs.clear()
        return ModelOutput(log_probs_btv, lengths_out_b, layers_btd)

    def close(self) -> None:
        """Remove the hooks from the model."""
        for hook in self._hooks:
            hook.remove()

    def _record(self, layer: nn.Module, inputs: Any, output: Any) -> None:
        self._outputs.append(output[0] if isinstance(output, tuple) else output)
