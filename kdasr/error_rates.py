"""What was said and what was heard in; word and character errors out (Levenshtein alignment, by jiwer), and
how far a difference between two models may be chance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jiwer
import numpy as np

from kdasr.errors import ConfigError


class ErrorCounts(NamedTuple):
    """Word and character errors over a whole test set (Levenshtein alignment, by jiwer)."""

    words: int
    substitutions: int
    deletions: int
    insertions: int
    chars: int
    char_errors: int

    @property
    def wer(self) -> float:
        """Word error rate in percent."""
        return 100.0 * (self.substitutions + self.deletions + self.insertions) / self.words

    @property
    def cer(self) -> float:
        """Character error rate in percent, spaces counted as characters."""
        return 100.0 * self.char_errors / self.chars


def count_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Errors over all pairs together. An empty reference (silence) is one: every word heard there is
    an insertion.

    Raises:
        ConfigError: the references hold no word at all, so there is no rate.
    """
    assert len(references) == len(hypotheses), (len(references), len(hypotheses))
    if not any(reference.split() for reference in references):
        raise ConfigError(
            "the references hold no word, so there is no error rate",
            expected="transcripts",
            got=f"{len(references)} empty ones",
        )
    words = jiwer.process_words(list(references), list(hypotheses))
    chars = jiwer.process_characters(list(references), list(hypotheses))
    return ErrorCounts(
        words=words.hits + words.substitutions + words.deletions,
        substitutions=words.substitutions,
        deletions=words.deletions,
        insertions=words.insertions,
        chars=chars.hits + chars.substitutions + chars.deletions,
        char_errors=chars.substitutions + chars.deletions + chars.insertions,
    )


def error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> tuple[float, float]:
    """(WER, CER) in percent over all pairs together; see `count_errors`."""
    errors = count_errors(references, hypotheses)
    return errors.wer, errors.cer


def gain_interval(
    errors_before: Sequence[int], errors_after: Sequence[int], *, draws: int = 2000
) -> tuple[float, float]:
    """Between what values the relative gain in word errors lies, 100 * (before - after) / before, with 95 %
    probability, as far as the utterances tell: the percentile bootstrap of both models on the same utterances
    (Bisani & Ney, ICASSP 2004), always with the same draws. Utterances count as independent, which those of
    one speaker are not; and of another training it says nothing.

    Args:
        errors_before, errors_after: word errors of two models, utterance by utterance.
        draws: test sets drawn from the utterances, with replacement. Those without an error before are left
            out.

    Raises:
        ConfigError: there was no error before, so there is no relative gain.
    """
    before_n, after_n = np.asarray(errors_before), np.asarray(errors_after)
    assert before_n.shape == after_n.shape, (before_n.shape, after_n.shape)
    if not before_n.any():
        raise ConfigError(
            "without errors before there is no relative gain", got=f"{len(before_n)} utterances"
        )
    rng, gains = np.random.default_rng(0), []
    for _ in range(draws):
        drawn = rng.integers(len(before_n), size=len(before_n))
        if before := before_n[drawn].sum():
            gains.append(100.0 * (before - after_n[drawn].sum()) / before)
    low, high = np.percentile(gains, [2.5, 97.5])
    return float(low), float(high)
