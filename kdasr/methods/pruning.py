"""A trained model in, the same model with most weights zero out, and kept zero while it is fine-tuned.

Magnitude pruning, and optimal brain damage (LeCun, Denker & Solla 1990). The file of a pruned model gets
smaller when it is compressed; the arithmetic of the engines that kdasr exports to stays dense.
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
    """What to prune. Biases and norms, which are few, stay.

    Args:
        share: of the weights of matrices and convolutions that become zero, over all layers together.
        saliency: "magnitude", |w|; or "optimal_brain_damage", ½ h w² with h the second derivative of the
            CTC loss, the rise that removing the weight alone would cause.
        batches: labelled batches to estimate h on.

    Raises:
        ConfigError: no share, or no such saliency.
    """

    def __init__(self, *, share: float, saliency: Saliency = "magnitude", batches: int = 8) -> None:
        if not 0.0 < share < 1.0 or saliency not in get_args(Saliency) or batches < 1:
            raise ConfigError(
                "pruning is set up wrongly",
                where="prune",
                expected=f"0 < share < 1, a saliency of {', '.join(get_args(Saliency))}, batches >= 1",
                got=f"share {share}, saliency {saliency!r}, batches {batches}",
            )
        self.share, self.saliency, self.batches = share, saliency, batches
        self.config: dict[str, Any] = {"share": share, "saliency": saliency, "batches": batches}

    def apply(self, model: nn.Module, labelled: Stream) -> dict[str, Any]:
        """Zero the least salient weights of `model`, and let them learn no more.

        The gradient of a zeroed weight is masked, so AdamW leaves it where it is: its moments stay zero,
        and weight decay of zero is zero.

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
    the network, as LeCun et al. take it, is in expectation the square of the gradient. That is summed over
    utterances and, as the loss is, divided by their output frames. (The square of the gradient of a mean
    over frames would be too small by their number once more, most so for the longest utterances.)
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
        kept[0] = kept[0].to(gradient.device)  # once: to fetch it each time is to wait for it
        return gradient * kept[0]

    weight.register_hook(held)
