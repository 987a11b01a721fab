"""Peers that are trained together and teach each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, ModelOutput, TrainableModel
from kdasr.losses import check_frames, ctc
from kdasr.methods.pairing import frame_mean
from kdasr.recording import Recorded
from kdasr.targets import check_posteriors, heard_by


class Peer(nn.Module):
    """A second model, trained together with the student on the same augmented features.

    Args:
        model: creates the peer, given `vocab_size`.
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()
        self.make = model
        name = getattr(getattr(model, "func", model), "__qualname__", str(model))
        self.config: dict[str, Any] = {"model": name, "settings": {**getattr(model, "keywords", {})}}

    def attach(self, student: TrainableModel, *, units_hash: str, statistics: tuple[Tensor, Tensor]) -> None:
        """Create the peer, with the student's classes.

        Raises:
            ConfigError: the peer has another output frame rate than the student.
        """
        peer = self.make(vocab_size=student.vocab_size)
        if peer.subsampling != student.subsampling:
            raise ConfigError(
                "a peer and the student need the same number of feature frames per output frame",
                expected=student.subsampling,
                got=peer.subsampling,
            )
        peer.set_statistics(*statistics)
        self.recorded = Recorded(peer)

    def forward(self, batch: Batch, student_features_btf: Tensor) -> ModelOutput:
        """The peer's output for the batch, with gradients."""
        output: ModelOutput = self.recorded(student_features_btf, batch.feature_lengths_b)
        return output

    def after_step(self, student: TrainableModel) -> None:
        """Do nothing: the optimiser updates the peer."""


def mutual_learning(
    output: ModelOutput, batch: Batch, *, teacher: str, supervised_weight: float = 1.0
) -> Tensor:
    """D_KL(p_2 || p_1) + D_KL(p_1 || p_2) + the peer's own CTC loss (Deep Mutual Learning, Zhang et al. 2018,
    arXiv 1706.00384): the first term trains the student with p_2 fixed, the others train the peer with
    p_1 fixed. The student's CTC loss is a separate term.

    Args:
        output: of the student.
        batch: with `teachers`, and with transcripts if it is labelled.
        teacher: the name of a `Peer`.
        supervised_weight: of the peer's CTC loss on labelled audio.

    Returns:
        The loss in nats per frame.

    Raises:
        ConfigError: there is no such teacher, or its classes are not the student's.
    """
    peer = heard_by(batch, teacher)
    check_posteriors(peer, teacher)
    check_frames(output.lengths_b, peer.lengths_b, batch.keys)
    loss = _divergence(peer.log_probs_btv.detach(), output) + _divergence(output.log_probs_btv.detach(), peer)
    if batch.tokens_bu is not None:
        loss = loss + supervised_weight * ctc(peer, batch)
    return loss


def _divergence(target_btv: Tensor, output: ModelOutput) -> Tensor:
    """D_KL(target || output), averaged over the frames."""
    divergence_btv = functional.kl_div(
        output.log_probs_btv.float(), target_btv.float(), reduction="none", log_target=True
    )
    return frame_mean(divergence_btv.sum(-1), output.lengths_b)
