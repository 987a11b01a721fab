"""What a model heard of a test set in; which words it takes for others, and whom it hears worst, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kdasr.error_rates import misheard_words

# Of one speaker the rate is that of all; of so many that each has a few words, a rate says nothing.
_FEWEST_SPEAKERS, _MOST_SPEAKERS = 2, 200


class WordErrors(NamedTuple):
    """The word errors in a test set, the most frequent first.

    Attributes:
        words: in the references.
        substituted: (said, heard) and how often.
        deleted: words that were said and not heard.
        inserted: words that were heard and not said.
    """

    words: int
    substituted: list[tuple[tuple[str, str], int]]
    deleted: list[tuple[str, int]]
    inserted: list[tuple[str, int]]


class SpeakerRate(NamedTuple):
    """How well one speaker is heard: words said, and the word error rate in percent."""

    speaker: str
    words: int
    wer: float


def word_errors(heard: Sequence[Mapping[str, Any]]) -> WordErrors:
    """The word errors in utterances as `read_hypotheses` gives them; there are some."""
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
    """How many word errors there are of each kind, and the most frequent ones, in a sentence."""
    kinds = ((errors.substituted, "substituted"), (errors.deleted, "deleted"), (errors.inserted, "inserted"))
    counts = ", ".join(f"{sum(count for _, count in of_kind):,} {name}" for of_kind, name in kinds)
    repeated = [(*pair, count) for pair, count in errors.substituted[:most] if count > 1]
    often = ", ".join(f"{said} → {heard} ({count})" for said, heard, count in repeated)
    return f"{counts} in {errors.words:,} words{f'; most often {often}' if often else ''}."


def speaker_rates(heard: Sequence[Mapping[str, Any]]) -> list[SpeakerRate]:
    """The speakers who said a word, the worst heard first; none where they are too few or too many."""
    words, errors = Counter[str](), Counter[str]()
    for one in heard:
        if speaker := one.get("speaker"):
            words[speaker] += len(one["reference"].split())
            errors[speaker] += one["errors"]
    rates = [SpeakerRate(who, count, 100.0 * errors[who] / count) for who, count in words.items() if count]
    if not _FEWEST_SPEAKERS <= len(rates) <= _MOST_SPEAKERS:
        return []
    return sorted(rates, key=lambda rate: (-rate.wer, rate.speaker))
