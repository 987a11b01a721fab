"""Word and character errors of hypotheses (Levenshtein alignment, by jiwer), and how far a difference
between two models may be chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
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
    def errors(self) -> int:
        """Substitutions, deletions and insertions of words."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def wer(self) -> float:
        """Word error rate in percent."""
        return 100.0 * self.errors / self.words

    @property
    def cer(self) -> float:
        """Character error rate in percent, spaces counted as characters."""
        return 100.0 * self.char_errors / self.chars


def count_errors(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorCounts:
    """Errors over all pairs together. An empty reference (silence) is valid: every word recognised there
    is an insertion.

    Raises:
        ConfigError: the references contain no words, so there is no error rate; or these are no two lists of
            as many texts.
    """
    one_text = isinstance(references, str) or isinstance(hypotheses, str)  # whose letters would be texts
    if one_text or len(references) != len(hypotheses):
        raise ConfigError(
            "every reference needs its hypothesis",
            expected="two lists of as many texts",
            got="a text, not a list" if one_text else f"{len(references)} and {len(hypotheses)}",
        )
    if not any(reference.split() for reference in references):
        raise ConfigError(
            "the references contain no words, so there is no error rate",
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


def misheard_words(references: Sequence[str], hypotheses: Sequence[str]) -> list[list[tuple[str, str]]]:
    """For each utterance, its word errors in order, as (said, heard), with "" for heard in a deletion and for
    said in an insertion."""
    aligned = jiwer.process_words(list(references), list(hypotheses))
    return [
        [
            pair
            for chunk in chunks
            if chunk.type != "equal"
            for pair in zip_longest(
                said[chunk.ref_start_idx : chunk.ref_end_idx],
                heard[chunk.hyp_start_idx : chunk.hyp_end_idx],
                fillvalue="",
            )
        ]
        for said, heard, chunks in zip(
            aligned.references, aligned.hypotheses, aligned.alignments, strict=True
        )
    ]


def counts_by_kind(misheard: Iterable[tuple[str, str]]) -> dict[str, int]:
    """How many of these word errors are substitutions, deletions and insertions."""
    counts = {"substitutions": 0, "deletions": 0, "insertions": 0}
    for said, heard in misheard:
        counts["insertions" if not said else "deletions" if not heard else "substitutions"] += 1
    return counts


def gain_interval(
    errors_before: Sequence[int], errors_after: Sequence[int], words: Sequence[int], *, draws: int = 2000
) -> tuple[float, float]:
    """The 95 % confidence interval of the gain in WER, in percentage points (more is better): the percentile
    bootstrap of two models on the same utterances (Bisani & Ney, ICASSP 2004), always with the same draws.
    Utterances are assumed to be independent, although those of one speaker are not, and the variation
    between training runs is not included.

    Args:
        errors_before, errors_after: word errors of the two models in each utterance.
        words: reference words in each utterance; not all 0.
        draws: number of test sets drawn from the utterances, with replacement.
    """
    counts_3n = np.asarray([errors_before, errors_after, words])
    assert counts_3n.ndim == 2 and counts_3n[2].any(), counts_3n.shape
    rng, size = np.random.default_rng(0), counts_3n.shape[1]
    before_d, after_d, words_d = np.array(
        [counts_3n[:, rng.integers(size, size=size)].sum(1) for _ in range(draws)]
    ).T
    low, high = np.percentile(100.0 * (before_d - after_d) / np.maximum(words_d, 1), [2.5, 97.5])
    return float(low), float(high)
