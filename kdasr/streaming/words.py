"""Convert tokens with frames to words with times."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from kdasr.decoding import Token
from kdasr.text import WORD_START, Units

# Seconds without a new unit after which a word ends, whatever follows: after a pause a student may no longer
# know whether a "▁" is due.
WORD_PAUSE_S = 1.0


class Word(NamedTuple):
    """One word of a stream.

    Attributes:
        text: as in the transcript.
        start_s, end_s: seconds from the start of the stream, from the first unit's spike to the
            end of the last unit's. A CTC model spikes where it is sure of a unit, some tens of
            milliseconds after the start of its sound.
        confidence: geometric mean of the probabilities of its units.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float


def split_words(tokens: Iterable[Token], units: Units, pause_frames: float = math.inf) -> list[list[Token]]:
    """The tokens of each word; a pause of `pause_frames` output frames also ends a word. A unit that is only
    the word start mark belongs to no word."""
    words: list[list[Token]] = [[]]
    last = math.inf
    for token in tokens:
        symbol = units.symbols[token.id]
        if symbol.startswith(WORD_START) or token.frame - last - 1 >= pause_frames:
            words.append([])
        last = token.frame
        if symbol != WORD_START:
            words[-1].append(token)
    return [word for word in words if word]


def text_of(tokens: Iterable[Token], units: Units, frame_s: float) -> str:
    """The text of tokens: the words of `words_of`, joined by spaces."""
    return " ".join(word.text for word in words_of(tokens, units, frame_s))


def words_of(
    tokens: Iterable[Token], units: Units, frame_s: float = 0.04, audio_s: float = math.inf
) -> list[Word]:
    """Words with times; joined by spaces they equal `units.decode` of the tokens, except for words split by a
    pause of `WORD_PAUSE_S`.

    Args:
        frame_s: seconds per output frame.
        audio_s: seconds of audio, to which end times are limited.
    """
    return [
        Word(
            text,
            round(word[0].frame * frame_s, 3),
            round(min((word[-1].frame + 1) * frame_s, audio_s), 3),
            round(_mean_probability(word), 4),
        )
        for word in split_words(tokens, units, round(WORD_PAUSE_S / frame_s, 6))
        if (text := units.decode([token.id for token in word]))  # some classes have no text
    ]


def _mean_probability(tokens: list[Token]) -> float:
    return math.exp(sum(token.log_prob for token in tokens) / len(tokens))
