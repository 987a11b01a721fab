"""Posteriors over arbitrary spellings in, posteriors over words of a lexicon out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdasr.alignment import best_alignment, ctc_occupancy
from kdasr.decoding import Hypothesis, check_nbest, prefix_beam
from kdasr.lexicon import Lexicon

# Approximate mass shared by the classes that no transcript has in a frame, so that none is impossible.
_REST = 1e-4
# Smallest ratio of the probability of the best alignment's class to that of any other.
_LEAD = 1.0001


@dataclass(frozen=True)
class Words:
    """A teacher's posteriors, restricted to words of a lexicon.

    An uncertain CTC teacher mixes the letters of two words, and its best path is neither. Here a search finds
    the n best transcripts made of words in the lexicon, and each frame gets the probabilities of its classes
    given that one of these was said: with w_h = p(h)^scale / sum over the n best, and γ_t^h(k) the
    probability that transcript h has class k in frame t (the forward-backward algorithm, Graves et al.
    2006, eq. 14),

        p_t(k) = sum over h of w_h γ_t^h(k)

    This removes misspellings and keeps uncertainty about times and, with more than one transcript, between
    words. A model that spells each unit independently may learn the latter as uncertainty between letters:
    try one transcript first. The labels are ordinary posteriors.

    If the teacher is unsure in which frame a unit belongs, the unit may not be the likeliest class of any
    frame; the best path of p_t, which `best_path_ctc` students learn, is then no sentence. So the best
    alignment of the best transcript is made the best path, with the smallest changes needed.

    Attributes:
        lexicon: the words.
        nbest: transcripts for each utterance.
        beam: prefixes kept by the search.
        scale: values below 1 make the transcripts' weights more equal.
    """

    lexicon: Lexicon
    nbest: int = 1
    beam: int = 16
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_nbest(self.nbest, self.beam, self.scale, where="words")

    @property
    def params(self) -> dict[str, Any]:
        """The parameters on which the labels depend."""
        return {"lexicon": self.lexicon.config, "nbest": self.nbest, "beam": self.beam, "scale": self.scale}

    def __call__(self, log_probs_tv: Tensor) -> Tensor | None:
        """Restrict a teacher's (T, V) log-probs to words; returns (T, V), or None if no words are found."""
        log_probs_tv = log_probs_tv.detach().cpu().clone()
        if not log_probs_tv.isfinite().all():
            return log_probs_tv  # the codec refuses them with an error
        found = prefix_beam(log_probs_tv, self.beam, self.nbest, self.lexicon)
        return self._given(log_probs_tv, found) if found else None

    def _given(self, log_probs_tv: Tensor, found: list[Hypothesis]) -> Tensor:
        longest = max(len(one.ids) for one in found)
        tokens_hu = torch.tensor([[*one.ids, *[0] * (longest - len(one.ids))] for one in found])
        counts_h = torch.tensor([len(one.ids) for one in found])
        frames_h = torch.full_like(counts_h, len(log_probs_tv))
        nll_h, occupancy_htv = ctc_occupancy(
            log_probs_tv.expand(len(found), -1, -1), tokens_hu, frames_h, counts_h
        )
        weight_h = (-self.scale * nll_h.double()).softmax(0).to(log_probs_tv)
        probs_tv = (weight_h[:, None, None] * occupancy_htv).sum(0).clamp_min(_REST / log_probs_tv.shape[1])
        best_t = best_alignment(log_probs_tv, found[0].ids)
        return _led_by(best_t, probs_tv / probs_tv.sum(1, keepdim=True)).log()


def _led_by(classes_t: Tensor, probs_tv: Tensor) -> Tensor:
    """(T, V) probabilities, mixed with the one-hot (T,) classes just enough to make these the likeliest."""
    chosen_tv = torch.nn.functional.one_hot(classes_t, probs_tv.shape[1]).to(probs_tv)
    own_t = (probs_tv * chosen_tv).sum(1)
    wanted_t = _LEAD * (probs_tv * (1 - chosen_tv)).amax(1)
    share_t = ((wanted_t - own_t) / (1 + wanted_t - own_t)).clamp_min(0.0)
    return torch.lerp(probs_tv, chosen_tv, share_t[:, None])
