"""An endless stream, cut into segments where the speaker pauses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from numpy.typing import ArrayLike

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.decoding import GreedyStream, StreamDecoder
from kdasr.errors import ConfigError
from kdasr.features import FRAME_SHIFT_MS
from kdasr.streaming.models import ChunkModel
from kdasr.streaming.session import StreamingSession
from kdasr.streaming.words import WORD_PAUSE_S, Word, split_words, words_of
from kdasr.text import Units


@dataclass(frozen=True)
class EndpointRules:
    """When a segment ends.

    Attributes:
        min_silence_s: seconds without a new unit after which a segment ends, and its last word with it:
            the next unit starts another word, since text cannot wait for what is said next.
        max_segment_s: seconds after which a segment is cut, before its last word.
    """

    min_silence_s: float = WORD_PAUSE_S
    max_segment_s: float = 20.0

    def __post_init__(self) -> None:
        for name in ("min_silence_s", "max_segment_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(
                    "an endpoint rule must be a positive time",
                    where=name,
                    expected="> 0",
                    got=getattr(self, name),
                )


@dataclass(frozen=True)
class Segment:
    """What was said between two pauses.

    Attributes:
        text: the words, joined by spaces.
        words: with times, in seconds from the start of the stream.
    """

    text: str
    words: list[Word]

    @property
    def start_s(self) -> float:
        return self.words[0].start_s

    @property
    def end_s(self) -> float:
        return self.words[-1].end_s


class EndpointingSession:
    """A `StreamingSession` that returns its text in segments, so that it can run for ever.

    The model's state continues across the cuts: with greedy decoding, all segments together have the units
    of one uninterrupted session, and its words except those split by a pause. A beam search restarts
    after each pause. If audio is missing, `gap` restarts the model too.

    Args:
        model: the model to run.
        units: its units.
        rules: when a segment ends; None never ends one before the stream does.
        where: what to name in errors about the audio.
        decoder: creates the decoder that turns output frames into tokens.
        rate_hz: sample rate of the audio.
    """

    def __init__(
        self,
        model: ChunkModel,
        units: Units,
        rules: EndpointRules | None = EndpointRules(),
        *,
        where: str = "audio stream",
        decoder: Callable[[], StreamDecoder] = GreedyStream,
        rate_hz: float = SAMPLE_RATE_HZ,
    ) -> None:
        self._session = StreamingSession(model, units, where=where, decoder=decoder, rate_hz=rate_hz)
        self._rules = rules
        self._frame_s = FRAME_SHIFT_MS * model.subsampling / 1000
        self._start_s = 0.0  # the session's start in the stream: the end of the last gap

    def reset(self) -> None:
        """Resets everything: the next sample is the first of a new stream."""
        self._session.reset()
        self._start_s = 0.0

    def gap(self, seconds: float = 0.0) -> list[Segment]:
        """Marks missing audio: returns the segments before it, as `finish` does, and restarts the model;
        times continue. Without a restart, the splice would not sound like speech, and the model's old state
        would make it mishear what follows.

        Args:
            seconds: how much is missing, as far as it is known.

        Raises:
            ConfigError: a negative or non-finite time.
        """
        if not 0 <= seconds < math.inf:
            raise ConfigError(
                "the length of a gap must be finite and not negative",
                where="gap",
                expected=">= 0 seconds",
                got=seconds,
            )
        segments = self.finish()
        self._start_s += self._session.num_samples / SAMPLE_RATE_HZ + seconds
        self._session.reset()
        return segments

    @property
    def partial(self) -> str:
        """The text of the segment that has not ended yet."""
        return self._session.text

    def accept(self, samples: ArrayLike) -> list[Segment]:
        """Takes the next samples and returns the segments that have ended; see
        `StreamingSession.accept` for the samples and the errors."""
        # Checked after every window, so that cuts do not depend on piece sizes.
        return [segment for _ in self._session.steps(samples) for segment in self._over()]

    def finish(self) -> list[Segment]:
        """Ends the stream and returns the remaining segments."""
        self._session.finish()
        return self._over() + self._segment(len(self._session.tokens))

    def _over(self) -> list[Segment]:
        segments = []
        while (count := self._tokens_of_segment()) > 0:
            if count == len(self._session.tokens) and self._is_silent():
                self._session.settle()  # may change the words
                count = len(self._session.tokens)
            segments += self._segment(count)
        return segments

    def _is_silent(self) -> bool:
        """Whether the last token was at least `min_silence_s` ago."""
        assert self._rules is not None
        frames = self._session.num_frames - self._session.tokens[-1].frame - 1
        return frames * self._frame_s >= self._rules.min_silence_s

    def _tokens_of_segment(self) -> int:
        """How many of the pending tokens make up a segment that has ended; 0 if none has.

        Pauses between tokens count too, since a window may contain a pause and what follows it.
        """
        tokens = self._session.tokens
        if self._rules is None or not tokens:
            return 0
        ends = [token.frame for token in tokens[1:]] + [self._session.num_frames]
        for count, (token, end) in enumerate(zip(tokens, ends, strict=True), start=1):
            if (token.frame + 1 - tokens[0].frame) * self._frame_s >= self._rules.max_segment_s:
                return self._before_last_word(count)
            paused = (end - token.frame - 1) * self._frame_s >= self._rules.min_silence_s
            if paused and (cut := self._session.cut(count)) > 0:
                return cut
        return 0

    def _before_last_word(self, count: int) -> int:
        """The last word boundary before `count` tokens; `count` if there is only one word."""
        words = split_words(self._session.tokens[:count], self._session.units)
        return self._session.tokens.index(words[-1][0]) if len(words) > 1 else count

    def _segment(self, count: int) -> list[Segment]:
        """Takes `count` tokens as a segment; returns none if they contain no word."""
        audio_s = self._session.num_samples / SAMPLE_RATE_HZ
        words = words_of(self._session.take(count), self._session.units, self._frame_s, audio_s)
        words = [self._in_stream(word) for word in words]
        return [Segment(" ".join(word.text for word in words), words)] if words else []

    def _in_stream(self, word: Word) -> Word:
        """A word of the session, with its times relative to the stream."""
        start_s, end_s = (round(self._start_s + time_s, 3) for time_s in (word.start_s, word.end_s))
        return word._replace(start_s=start_s, end_s=end_s)
