"""Losses at an intermediate layer, through a head of its own that is discarded after training."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from kdasr.arguments import described
from kdasr.interfaces import Batch, Loss, ModelOutput
from kdasr.methods.pairing import WidthAdapter, layer_of
from kdasr.recording import WhenAsked

LAST_LAYER = "last_layer"


class IntermediateHead(nn.Module):
    """Any loss on the output of a linear head on a hidden layer.

    With CTC it is intermediate CTC (Lee & Watanabe 2021, arXiv 2102.03216); with soft labels, their
    distillation into the lower layers; with `last_layer` as the online teacher, self-distillation from
    the deepest layer into a shallower one (Zhang et al. 2019, arXiv 1905.08094).

    Args:
        layer: the hidden layer, counted from 0.
        loss: a loss without parameters of its own.
    """

    def __init__(self, *, layer: int, loss: Loss) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"layer": layer, "loss": described(loss)}
        self.layer, self.loss = layer, loss
        self.head = WidthAdapter()

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        """The loss on the head's log-probabilities."""
        last = ModelOutput(output.log_probs_btv.detach(), output.lengths_b)
        heard = replace(
            batch,
            teachers=ChainMap({LAST_LAYER: last}, batch.teachers),  # type: ignore[arg-type]
            views=WhenAsked[int](lambda view: self._headed(batch.views[view])),
        )
        return self.loss(self._headed(output), heard)

    def _headed(self, output: ModelOutput) -> ModelOutput:
        """The output with the head's log-probabilities instead of the model's."""
        hidden_btd = layer_of(output, self.layer, "the student")
        log_probs_btv = self.head(hidden_btd, output.log_probs_btv.shape[-1]).log_softmax(-1)
        return replace(output, log_probs_btv=log_probs_btv)
