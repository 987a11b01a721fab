"""Tokens with frames in, words with times out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

from kdasr.decoding import Token
from kdasr.text import WORD_START, Units

# Seconds without a new unit after which a word is over, whatever comes next: a student may have forgotten it,
# and not know whether "▁" is due.
WORD_PAUSE_S = 1.0


class Word(NamedTuple):
    """One word of a stream.

    Attributes:
        text: as in the transcript.
        start_s, end_s: seconds from the start of the stream, from the first unit's spike to the
            end of the last unit's. A CTC model spikes where it is sure of a unit, which is some
            tens of milliseconds after its sound began.
        confidence: geometric mean of the probabilities of its units.
    """

    text: str
    start_s: float
    end_s: float
    confidence: float


def split_words(tokens: Iterable[Token], units: Units, pause_frames: float = math.inf) -> list[list[Token]]:
    """The tokens of each word, which ends where nothing is said in `pause_frames` output frames; a unit that
    is the mark of a word start alone belongs to none."""
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
    """What tokens say: the words of `words_of`, joined by spaces."""
    return " ".join(word.text for word in words_of(tokens, units, frame_s))


def words_of(
    tokens: Iterable[Token], units: Units, frame_s: float = 0.04, audio_s: float = math.inf
) -> list[Word]:
    """Words with times; joined by spaces they are `units.decode` of the tokens, but for words that a pause of
    `WORD_PAUSE_S` parts.

    Args:
        frame_s: seconds of an output frame.
        audio_s: seconds of the audio, where its last frame is to end with it.
    """
    return [
        Word(
            text,
            round(word[0].frame * frame_s, 3),
            round(min((word[-1].frame + 1) * frame_s, audio_s), 3),
            round(_mean_probability(word), 4),
        )
        for word in split_words(tokens, units, round(WORD_PAUSE_S / frame_s, 6))
        if (text := units.decode([token.id for token in word]))  # some classes stand for no text
    ]


def _mean_probability(tokens: list[Token]) -> float:
    return math.exp(sum(token.log_prob for token in tokens) / len(tokens))
