"""What a loss learns from has no gradients into a teacher."""

from __future__ import annotations

import torch

from kdasr.interfaces import Batch, ModelOutput
from kdasr.targets import online


def test_what_an_online_teacher_gives_has_no_gradients_in_its_layers_either() -> None:
    layer_btd = 2 * torch.zeros(1, 2, 3, requires_grad=True)
    log_probs_btv = torch.zeros(1, 2, 5, requires_grad=True).log_softmax(-1)
    heard = ModelOutput(log_probs_btv, torch.tensor([2]), (layer_btd,))
    found = online(Batch(["a"], torch.zeros(1, 1, 80), torch.ones(1), teachers={"big": heard}), "big")
    assert not found.log_probs_btv.requires_grad and not found.layers_btd[0].requires_grad
    assert torch.equal(found.log_probs_btv, log_probs_btv) and torch.equal(found.layers_btd[0], layer_btd)
