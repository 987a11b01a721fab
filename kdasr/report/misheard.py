"""Which words of a test set a model mistakes for others, and its error rate for each speaker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdasr.error_rates import misheard_words

# One speaker's rate is that of the test set; of too many, each has too few words for a rate.
_FEWEST_SPEAKERS, _MOST_SPEAKERS = 2, 200


class WordErrors(NamedTuple):
    """The word errors in a test set, the most frequent first.

    Attributes:
        words: how many are in the references.
        substituted: (said, heard) and how often.
        deleted: words that were said but not heard.
        inserted: words that were heard but not said.
    """

    words: int
    substituted: list[tuple[tuple[str, str], int]]
    deleted: list[tuple[str, int]]
    inserted: list[tuple[str, int]]


class SpeakerRate(NamedTuple):
    """One speaker's number of words, and word error rate in percent."""

    speaker: str
    words: int
    wer: float


def word_errors(heard: Sequence[Mapping[str, Any]]) -> WordErrors:
    """The word errors in utterances as returned by `read_hypotheses`; `heard` is not empty."""
    said = [one["reference"] for one in heard]
    pairs = Counter(
        pair for wrong in misheard_words(said, [one["hypothesis"] for one in heard]) for pair in wrong
    )
    ordered = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
    return WordErrors(
        words=sum(len(text.split()) for text in said),
        substituted=[(pair, count) for pair, count in ordered if all(pair)],
        deleted=[(word, count) for (word, instead), count in ordered if not instead],
        inserted=[(instead, count) for (word, instead), count in ordered if not word],
    )


def errors_text(errors: WordErrors, most: int = 3) -> str:
    """A sentence with the number of word errors of each kind, and the most frequent substitutions."""
    kinds = ((errors.substituted, "substituted"), (errors.deleted, "deleted"), (errors.inserted, "inserted"))
    counts = ", ".join(f"{sum(count for _, count in of_kind):,} {name}" for of_kind, name in kinds)
    repeated = [(*pair, count) for pair, count in errors.substituted[:most] if count > 1]
    often = ", ".join(f"{said} → {heard} ({count})" for said, heard, count in repeated)
    return f"{counts} in {errors.words:,} words{f'; most often {often}' if often else ''}."


def speaker_rates(heard: Sequence[Mapping[str, Any]]) -> list[SpeakerRate]:
    """The speakers who said a word, the highest WER first; none if there are too few or too many."""
    words, errors = Counter[str](), Counter[str]()
    for one in heard:
        if (speaker := one.get("speaker")) not in (None, ""):  # a number in shards of other tools
            words[str(speaker)] += len(one["reference"].split())
            errors[str(speaker)] += one["errors"]
    rates = [SpeakerRate(who, count, 100.0 * errors[who] / count) for who, count in words.items() if count]
    if not _FEWEST_SPEAKERS <= len(rates) <= _MOST_SPEAKERS:
        return []
    return sorted(rates, key=lambda rate: (-rate.wer, rate.speaker))
