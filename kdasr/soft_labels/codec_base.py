"""The base class of all codecs."""

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

#: Largest deviation of a frame's log-mass from 0 at which it still counts as a distribution.
NORMALISATION_TOLERANCE_NATS = 1e-2


class Codec:
    """What to keep of a posterior, and how precisely; subclasses are frozen dataclasses of their parameters.

    Attributes:
        name: its name in headers.
    """

    name: ClassVar[str]

    @property
    def params(self) -> dict[str, Any]:
        """The constructor's keyword arguments, JSON-serialisable."""
        return asdict(self)  # type: ignore[call-overload]

    def layout(self, vocab_size: int) -> Layout:
        """How this codec's frames are stored."""
        raise NotImplementedError

    def select(self, log_probs_tv: Tensor, utterances: Sequence[tuple[str, int]]) -> SoftLabels:
        """The classes kept for a run of frames, which joins `utterances` (key, frames)."""
        raise NotImplementedError

    def encode(self, log_probs_tv: NDArray[np.float32] | Tensor, key: str = "") -> SoftLabels:
        """Encode an utterance's posteriors, (T, V) natural-log probabilities, to what readers will get back.

        Args:
            key: the utterance's name, from which random codecs derive their seed.

        Raises:
            SoftLabelError: the posteriors contain NaN, or frames that do not add up to 1.
        """
        result = self.encode_many([log_probs_tv], [key])[0]
        if isinstance(result, SoftLabelError):
            raise result
        return result

    def encode_many(
        self, log_probs: Sequence[NDArray[np.float32] | Tensor], keys: Sequence[str]
    ) -> list[SoftLabels | SoftLabelError]:
        """`encode` for several utterances at once; for one that fails, the list has its error."""
        utterances = [torch.as_tensor(item).detach().float() for item in log_probs]
        for item in utterances:
            if item.ndim != 2:
                raise SoftLabelError("log-probs must have axes (T, V)", got=tuple(item.shape))
        if not utterances:
            return []
        sizes = {item.shape[1] for item in utterances}
        if len(sizes) > 1 or len(keys) != len(utterances):
            raise SoftLabelError(
                "these are not the posteriors of one teacher, each with its key",
                expected="one number of classes, and as many keys as utterances",
                got=f"{sorted(sizes)} classes, {len(utterances)} utterances and {len(keys)} keys",
            )
        # One pass over the frames of all utterances: separate passes would be mostly overhead.
        run, lengths = torch.cat(utterances), [len(item) for item in utterances]
        log_mass = torch.logsumexp(run, dim=1).cpu()
        problems: list[SoftLabelError | None] = [None] * len(utterances)
        # Not `> tolerance`, because comparisons with NaN are false.
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
