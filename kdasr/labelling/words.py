"""Posteriors over anything that can be spelled in, posteriors over words that exist out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdasr.alignment import ctc_occupancy
from kdasr.decoding import Hypothesis, prefix_beam
from kdasr.errors import ConfigError
from kdasr.lexicon import Lexicon

# What the classes that none of the transcripts has in a frame share there, about, so that none is impossible.
_REST = 1e-4


@dataclass(frozen=True)
class Words:
    """A teacher's posteriors as far as they speak of words of a lexicon.

    A CTC teacher in doubt mixes the letters of two words, and its best path is neither. Here its n best
    transcripts are searched among words that exist, and each frame gets the probability of its classes
    given that one of these was said: with w_h = p(h)^scale / sum over the n best, and γ_t^h the
    probability that transcript h has a class in frame t (the forward-backward algorithm, Graves et al.
    2006, eq. 14),

        p_t(k) = sum over h of w_h γ_t^h(k)

    Misspellings go; doubt about times stays, and with more than one transcript doubt between words. A model
    that spells each unit by itself may learn that as doubt between letters: try one first. The labels are
    posteriors like any others.

    Attributes:
        lexicon: the words.
        nbest: transcripts for each utterance.
        beam: prefixes kept by the search.
        scale: below 1 the transcripts are more equal.
    """

    lexicon: Lexicon
    nbest: int = 1
    beam: int = 16
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.nbest <= self.beam or self.scale < 0:
            raise ConfigError(
                "no n-best list",
                where="words",
                expected="1 <= nbest <= beam, scale >= 0",
                got=f"nbest {self.nbest}, beam {self.beam}, scale {self.scale}",
            )

    @property
    def params(self) -> dict[str, Any]:
        """What decides the labels."""
        return {"lexicon": self.lexicon.config, "nbest": self.nbest, "beam": self.beam, "scale": self.scale}

    def __call__(self, log_probs_tv: Tensor) -> Tensor:
        """(T, V) log-probs of a teacher to as many; as they are where no words are found in them."""
        log_probs_tv = log_probs_tv.detach().cpu().clone()
        if not log_probs_tv.isfinite().all():
            return log_probs_tv  # the codec refuses them, and says so
        found = prefix_beam(log_probs_tv, self.beam, self.nbest, self.lexicon)
        return self._given(log_probs_tv, found) if found else log_probs_tv

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
        return (probs_tv / probs_tv.sum(1, keepdim=True)).log()
