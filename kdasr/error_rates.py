"""What was said and what was heard in; word and character errors out (Levenshtein alignment, by jiwer)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jiwer

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
