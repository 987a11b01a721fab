"""Pruning: set weights of a trained model to zero, and keep them zero during fine-tuning.

Magnitude pruning, and optimal brain damage (LeCun, Denker & Solla 1990). A pruned model's file compresses
better; the engines that kdasr exports to still compute with dense matrices.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from kdasr.errors import ConfigError
from kdasr.interfaces import Batch
from kdasr.loader import Stream
from kdasr.losses import ctc
from kdasr.recording import Recorded

Saliency = Literal["magnitude", "optimal_brain_damage"]


class Pruning:
    """Which weights to prune. Biases and norms, which are few, are kept.

    Args:
        share: share of the weights of all matrices and convolutions together that become zero.
        saliency: "magnitude", |w|; or "optimal_brain_damage", ½ h w² with h the second derivative of the
            CTC loss: the rise in loss that removing the weight alone would cause.
        batches: labelled batches to estimate h on.

    Raises:
        ConfigError: a share or count out of range, or an unknown saliency.
    """

    def __init__(self, *, share: float, saliency: Saliency = "magnitude", batches: int = 8) -> None:
        if not 0.0 < share < 1.0 or saliency not in get_args(Saliency) or batches < 1:
            raise ConfigError(
                "invalid settings for pruning",
                where="prune",
                expected=f"0 < share < 1, saliency one of {', '.join(get_args(Saliency))}, batches >= 1",
                got=f"share {share}, saliency {saliency!r}, batches {batches}",
            )
        self.share, self.saliency, self.batches = share, saliency, batches
        self.config: dict[str, Any] = {"share": share, "saliency": saliency, "batches": batches}

    def apply(self, model: nn.Module, labelled: Stream) -> dict[str, Any]:
        """Set the least salient weights of `model` to zero, and keep them there.

        The gradient of a zeroed weight is masked, so AdamW keeps it at zero: its moments stay zero, and
        weight decay does not change a zero.

        Returns:
            Facts for the model card.
        """
        weights = prunable(model)
        scores: dict[tuple[nn.Module, str], Tensor]
        if self.saliency == "magnitude":
            scores = {(module, name): getattr(module, name).detach().abs() for module, name in weights}
        else:
            scores = brain_damage(model, (labelled.batch(position) for position in range(self.batches)))
        prune.global_unstructured(weights, prune.L1Unstructured, importance_scores=scores, amount=self.share)
        for module, name in weights:
            prune.remove(module, name)
            _hold(getattr(module, name))
        return {"pruned": {**self.config, "zeros": sum(int((getattr(*key) == 0).sum()) for key in weights)}}


def prunable(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """(module, parameter name) of every matrix and convolution."""
    return [
        (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() >= 2
    ]


def brain_damage(model: nn.Module, batches: Iterator[Batch]) -> dict[tuple[nn.Module, str], Tensor]:
    """½ h_kk w_k² of every prunable weight.

    For a negative log-likelihood, the diagonal of the Hessian without its terms in second derivatives of
    the network, as LeCun et al. take it, is in expectation the squared gradient. It is summed over
    utterances and divided by their output frames, as the loss is. (The squared gradient of a mean over
    frames would be too small by a further factor of their number, most of all for the longest utterances.)
    """
    weights = prunable(model)
    parameters = [getattr(module, name) for module, name in weights]
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    student, training, frames = Recorded(model), model.training, 0
    model.eval()
    for utterance in (one for batch in batches for one in _one_by_one(batch)):
        output = student(utterance.features_btf, utterance.feature_lengths_b)
        length = int(output.lengths_b.sum())
        surprise = length * ctc(output, utterance)
        for square, gradient in zip(squares, torch.autograd.grad(surprise, parameters), strict=True):
            square += gradient.square()
        frames += length
    student.close()
    model.train(training)
    return {
        key: 0.5 * square / frames * parameter.detach().square()
        for key, square, parameter in zip(weights, squares, parameters, strict=True)
    }


def _one_by_one(batch: Batch) -> Iterator[Batch]:
    assert batch.tokens_bu is not None and batch.token_lengths_b is not None
    for row, key in enumerate(batch.keys):
        one = slice(row, row + 1)
        frames, units = int(batch.feature_lengths_b[row]), int(batch.token_lengths_b[row])
        yield Batch(
            [key],
            batch.features_btf[one, :frames],
            batch.feature_lengths_b[one],
            batch.tokens_bu[one, : max(1, units)],
            batch.token_lengths_b[one],
        )


def _hold(weight: Tensor) -> None:
    kept = [weight.detach() != 0]

    def held(gradient: Tensor) -> Tensor:
        kept[0] = kept[0].to(gradient.device)  # copied only once, since each copy would be waited for
        return gradient * kept[0]

    weight.register_hook(held)
