"""A streaming student run chunk by chunk, as on a device: takes PCM, gives partial text.

`StreamingSession` turns pieces of audio of any size into feature windows, steps a `ChunkModel` over them,
and decodes as it goes. At the end it appends a tail of silence (`kdasr.streaming.tail`) to the audio, pads
the features with `LOG_MEL_FLOOR` rows to whole windows, and keeps only the output frames of audio and
tail. `StreamingModel.offline` computes exactly the same from `with_tail(samples)`, so the streamed text
equals the offline text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdasr.audio import SAMPLE_RATE_HZ, check_scale
from kdasr.decoding import GreedyStream, StreamDecoder, Token
from kdasr.errors import AudioError, ModelError
from kdasr.features import FRAME_SHIFT_MS
from kdasr.streaming.models import ChunkModel
from kdasr.streaming.resampler import StreamingResampler
from kdasr.streaming.tail import tail_after, within_audio
from kdasr.streaming.words import text_of
from kdasr.text import WORD_START, Units


def check_samples(samples: ArrayLike, where: str = "audio stream") -> NDArray[np.float32]:
    """Samples as (N,) float32, or an error that says what is wrong with them.

    Args:
        samples: (N,) or (N, 1) mono floating point samples in [-1, 1]; may be empty.
        where: what to name in an error.

    Raises:
        AudioError: more than one channel, integers, NaN or infinite values, or a scale that is
            plainly that of integer PCM.
    """
    array = np.asarray(samples)
    if array.ndim == 2 and array.shape[1] == 1:  # how audio libraries return one channel
        array = array[:, 0]
    if array.ndim != 1:
        raise AudioError(
            "the samples are not mono",
            where=where,
            expected="(N,) or (N, 1)",
            got=f"shape {array.shape}",
            fix="Of (N, channels), take piece[:, 0] or piece.mean(1), or read a file with kdasr.audio.load.",
        )
    if not np.issubdtype(array.dtype, np.floating):
        raise AudioError(
            "the samples are not floating point",
            where=where,
            expected="float32 in [-1, 1]",
            got=array.dtype,
            fix="Divide 16-bit samples by 32768.",
        )
    array = np.require(array, np.float32, ["W"])  # torch needs writable memory; data from pipes is not
    if not np.isfinite(array).all():
        first = int(np.flatnonzero(~np.isfinite(array))[0])
        raise AudioError(
            "the samples contain NaN or infinity", where=where, got=f"{array[first]} at index {first}"
        )
    check_scale(array, where)
    return array


class StreamingSession:
    """One stream of audio: feed pieces of any size, read the text so far.

    Args:
        model: the model to run.
        units: the model's units.
        keep_log_probs: keep every output frame (needed for tests and alignments, not for text).
        where: what to name in errors about the audio.
        decoder: creates the decoder that turns output frames into tokens.
        rate_hz: sample rate of the audio, a whole number.

    Raises:
        ConfigError, AudioError: see `kdasr.streaming.StreamingResampler`.
        ModelError: the model's classes and the units do not fit each other.

    Attributes:
        num_samples: samples at 16 kHz so far.
        num_frames: output frames so far, including those of the tail once the stream is finished.
    """

    def __init__(
        self,
        model: ChunkModel,
        units: Units,
        *,
        keep_log_probs: bool = False,
        where: str = "audio stream",
        decoder: Callable[[], StreamDecoder] = GreedyStream,
        rate_hz: float = SAMPLE_RATE_HZ,
    ) -> None:
        if model.vocab_size != units.vocab_size:
            raise ModelError(
                "the model and its units do not match",
                where=where,
                expected=f"{model.vocab_size} classes",
                got=f"{units.vocab_size} units",
                fix="Use the units that are saved with the model.",
            )
        self.model, self.units, self.where = model, units, where
        self._keep_log_probs, self._make_decoder = keep_log_probs, decoder
        self._frame_s = FRAME_SHIFT_MS * model.subsampling / 1000
        self._resampler = StreamingResampler(rate_hz)
        self.reset()

    def reset(self) -> None:
        """Resets everything: the next sample is the first of a new stream."""
        self.num_samples = self.num_frames = 0
        self._state = self.model.initial_state(1)
        self._resampler.reset()
        self._front_end = self.model.front_end()
        self._decoder = self._make_decoder()
        self._log_probs: list[NDArray[np.float32]] = []
        self._text = ""
        self._known: tuple[int, str] = (0, "")
        self._finished = False

    @property
    def tokens(self) -> list[Token]:
        """The tokens so far; `Token.frame` counts output frames from the start of the stream. Tokens emitted
        in the tail are given the last frame of the audio."""
        tokens = self._decoder.tokens
        return within_audio(tokens, self.num_samples, self.model.subsampling) if self._finished else tokens

    @property
    def text(self) -> str:
        """The text so far."""
        return self._text

    @property
    def log_probs_tv(self) -> NDArray[np.float32]:
        """(num_frames, V) log-probs of all output frames so far; needs `keep_log_probs=True`."""
        if not self._keep_log_probs:
            raise ModelError("log-probs were not kept", fix="Create the session with keep_log_probs=True.")
        empty = np.zeros((0, self.model.vocab_size), np.float32)
        return np.concatenate([empty, *self._log_probs])

    def accept(self, samples: ArrayLike) -> str:
        """Takes the next samples, runs every complete window, and returns the text so far.

        Args:
            samples: (n,) or (n, 1) float32 in [-1, 1] at the session's sample rate; n may be 0.

        Raises:
            AudioError: bad samples (see `check_samples`), or the stream is finished. A refused piece is
                ignored as a whole: the session can continue with the next one.
        """
        for _ in self.steps(samples):
            pass
        return self._text

    def steps(self, samples: ArrayLike) -> Iterator[None]:
        """As `accept`, but yields after every window, so that the caller can act on it."""
        if self._finished:
            raise AudioError("the stream is finished", where=self.where, fix="Call reset() first.")
        yield from self._run(self._resampler.accept(check_samples(samples, self.where)))

    def finish(self) -> str:
        """Ends the stream: runs the rest of the audio and its tail, and returns the whole text."""
        if self._finished:
            return self._text
        for _ in self._run(self._resampler.flush()):
            pass
        for window in self._front_end.accept(tail_after(self.num_samples)):
            self._step(window, self.model.shift // self.model.subsampling)
        for window in self._front_end.finish():
            num_frames = -(-self._front_end.num_features // self.model.subsampling)
            self._step(window, num_frames - self.num_frames)
        self._finished = True
        self._decoder.finish()
        self._decode()
        return self._text

    def _run(self, samples: NDArray[np.float32]) -> Iterator[None]:
        self.num_samples += len(samples)
        for window in self._front_end.accept(samples):
            self._step(window, self.model.shift // self.model.subsampling)
            yield

    def hear(self, samples: ArrayLike) -> str:
        """Runs a whole utterance, or the rest of one, chunk by chunk to its end, and returns the whole text.
        Raises AudioError as `accept` does."""
        self.accept(samples)
        return self.finish()

    def cut(self, count: int) -> int:
        """The largest number of tokens, at most `count`, after which the decoder allows a cut."""
        return self._decoder.cut(count)

    def settle(self) -> None:
        """Tells the decoder that there is a pause."""
        self._decoder.settle()
        self._decode()

    def take(self, count: int | None = None) -> list[Token]:
        """Removes and returns the first `count` tokens (all by default); the text continues without them.
        Neither the model's state nor the frame count changes."""
        taken = self.tokens[:count]
        self._decoder.take(len(taken))
        self._known = (0, "")
        self._decode()
        return taken

    def _decode(self) -> None:
        """Updates the text; of the tokens that are final, only those of the last word are decoded again."""
        tokens, (count, text) = self.tokens, self._known
        last = self._decoder.num_fixed - 1
        while last > count and not self.units.symbols[tokens[last].id].startswith(WORD_START):
            last -= 1
        if last > count:  # from now on the text before the last word is known
            count, text = self._known = last, self._joined(text, tokens[count:last])
        self._text = self._joined(text, tokens[count:])

    def _joined(self, text: str, tokens: list[Token]) -> str:
        more = text_of(tokens, self.units, self._frame_s)
        return f"{text} {more}" if text and more else text or more

    def _step(self, window: Any, max_frames: int) -> None:
        """Steps the model over one window, and uses at most `max_frames` of its output frames."""
        log_probs_btv, self._state = self.model.step(window, self._state)
        expected = (1, self.model.shift // self.model.subsampling, self.model.vocab_size)
        if tuple(log_probs_btv.shape) != expected:  # all later times, or classes, would be wrong
            raise ModelError(
                "a step of the model gives output of another shape",
                where=self.where,
                expected=f"{expected}: (1, shift / subsampling, vocab_size)",
                got=tuple(log_probs_btv.shape),
            )
        log_probs_tv = log_probs_btv[0, :max_frames]
        self.num_frames += len(log_probs_tv)
        if self._keep_log_probs:
            self._log_probs.append(log_probs_tv)
        if self._decoder.feed(log_probs_tv):
            self._decode()
