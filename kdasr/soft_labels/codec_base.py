"""What all codecs have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdasr.errors import SoftLabelError
from kdasr.interfaces import SoftLabels
from kdasr.soft_labels.planes import Layout
from kdasr.soft_labels.runs import split_run

#: How far from 1 the mass of a frame may be before it is called "not a distribution".
NORMALISATION_TOLERANCE_NATS = 1e-2


class Codec:
    """What to keep of a posterior, and how finely: a frozen dataclass of its parameters.

    Attributes:
        name: how headers call it.
    """

    name: ClassVar[str]

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's keyword arguments, JSON-serialisable."""
        return asdict(self)  # type: ignore[call-overload]

    def layout(self, vocab_size: int) -> Layout:
        """How its frames are stored."""
        raise NotImplementedError

    def select(self, log_probs_tv: Tensor, utterances: Sequence[tuple[str, int]]) -> SoftLabels:
        """What is kept of a run of frames that joins `utterances` (key, frames)."""
        raise NotImplementedError

    def encode(self, log_probs_tv: NDArray[np.float32] | Tensor, key: str = "") -> SoftLabels:
        """Posteriors of one utterance, (T, V) natural-log probabilities, to what a reader gets back.

        Args:
            key: the utterance's name; random codecs draw their seed from it.

        Raises:
            SoftLabelError: NaN, or frames whose probabilities do not add up to 1.
        """
        result = self.encode_many([log_probs_tv], [key])[0]
        if isinstance(result, SoftLabelError):
            raise result
        return result

    def encode_many(
        self, log_probs: Sequence[NDArray[np.float32] | Tensor], keys: Sequence[str]
    ) -> list[SoftLabels | SoftLabelError]:
        """As `encode` for several utterances at once; an utterance's error takes its place."""
        utterances = [torch.as_tensor(item).detach().float() for item in log_probs]
        for item in utterances:
            if item.ndim != 2:
                raise SoftLabelError("log-probs must have axes (T, V)", got=tuple(item.shape))
        if not utterances:
            return []
        # One pass over the frames of all utterances: each alone would spend its time in overhead.
        run, lengths = torch.cat(utterances), [len(item) for item in utterances]
        log_mass = torch.logsumexp(run, dim=1).cpu()
        problems: list[SoftLabelError | None] = [None] * len(utterances)
        # NaN fails the comparison, so it is put the other way round.
        if not bool((log_mass.abs() <= NORMALISATION_TOLERANCE_NATS).all()):
            problems = [_posterior_problem(mass) for mass in log_mass.split(lengths)]
        good = [i for i, problem in enumerate(problems) if problem is None]
        if len(good) < len(utterances):
            run = torch.cat([run[:0], *(utterances[i] for i in good)])
        labels = self.layout(run.shape[1]).quantise(self.select(run, [(keys[i], lengths[i]) for i in good]))
        pieces = iter(split_run(labels, [lengths[i] for i in good]))
        return [problem if problem is not None else next(pieces) for problem in problems]


def _posterior_problem(log_mass_t: Tensor) -> SoftLabelError | None:
    """An error unless every frame, given the log-sum of its probabilities, is a distribution."""
    bad = torch.nonzero(~(log_mass_t.abs() <= NORMALISATION_TOLERANCE_NATS)).flatten()
    if not len(bad):
        return None
    first = int(bad[0])
    return SoftLabelError(
        f"the posteriors of {len(bad)} of {len(log_mass_t)} frames do not sum to 1"
        f" (the first is frame {first}: log-sum {float(log_mass_t[first]):.4g})",
        expected="log-probabilities of a distribution",
        fix="Check the teacher for NaN, and that it ends in log_softmax.",
    )
