"""Transcribe audio with a model folder or an exported model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from export.load import exported_file, load_exported
from export.sources import Gap
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.decoding import DEFAULT_BEAM, BeamStream, Grammar, GreedyStream, StreamDecoder, Token, decode_whole
from kdasr.errors import AudioError, ConfigError, ModelError
from kdasr.features import FRAME_SHIFT_MS, log_mel
from kdasr.interfaces import AcousticModel, StreamingModel
from kdasr.lexicon import Lexicon
from kdasr.models import CARD_FILE, WEIGHTS_FILE, load_model
from kdasr.streaming import (
    ChunkModel,
    EndpointingSession,
    EndpointRules,
    Segment,
    StreamingSession,
    TorchChunkModel,
    Word,
    check_samples,
    set_chunk_ms,
    silence_controls,
    with_tail,
    within_audio,
    words_of,
)
from kdasr.text import Units

# Longer audio runs chunk by chunk if the model can, since attention over all of it at once needs memory
# quadratic in its length.
LONGEST_AT_ONCE_S = 60


@dataclass(frozen=True)
class Transcript:
    """The text of a source or of a segment.

    Attributes:
        source: the file, or a name for a live source.
        text: the text so far (partial), or of a whole segment.
        words: its words with times in seconds; empty if partial.
        final: False if the text may still grow or change.
    """

    source: str
    text: str
    words: list[Word]
    final: bool


@dataclass(frozen=True)
class Recogniser:
    """A model that is ready to transcribe.

    Attributes:
        path: the file or folder it came from.
        units: its units.
        offline_model: the torch model for whole utterances, or None for an exported model.
        chunk_model: the same chunk by chunk, or None for a full-context model.
        decoder: creates the decoder that turns its output frames into tokens.
    """

    path: Path
    units: Units
    offline_model: AcousticModel | None
    chunk_model: ChunkModel | None
    decoder: Callable[[], StreamDecoder] = GreedyStream

    def searching(self, beam: int = DEFAULT_BEAM, grammar: Grammar | None = None) -> Recogniser:
        """A copy that decodes by prefix beam search, restricted to transcripts of `grammar` if given."""
        return replace(self, decoder=partial(BeamStream, beam, grammar))

    def with_lexicon(
        self,
        *sources: Path | str,
        other_word_nats: float | None = None,
        beam: int = DEFAULT_BEAM,
    ) -> Recogniser:
        """A copy that only recognises the words in text files and in folders of labelled shards. See
        `kdasr.lexicon.Lexicon` for `other_word_nats` and the errors."""
        paths, without = [str(source) for source in sources], "Without a lexicon, any word can be recognised."
        lexicon = Lexicon(units=self.units, sources=paths, other_word_nats=other_word_nats, without=without)
        lexicon.next_costs(())  # reads the words now, so that errors do not wait for the first chunk
        return self.searching(beam, lexicon)

    def streaming_model(self) -> ChunkModel:
        """The model for running chunk by chunk.

        Raises:
            ModelError: the model needs the whole utterance.
        """
        if self.chunk_model is None:
            student = isinstance(self.offline_model, StreamingModel)
            raise ModelError(
                "this model cannot run chunk by chunk",
                where=self.path,
                expected="a streaming student or an exported model",
                got="a student with full context (a chunk of 0 ms)"
                if student
                else type(self.offline_model).__name__,
                fix="Give audio files, without --stream and --endpoint, or choose "
                + ("another --chunk-ms." if student else "a student."),
            )
        return self.chunk_model

    def session(
        self, *, rate_hz: float = SAMPLE_RATE_HZ, keep_log_probs: bool = False, where: str = "audio stream"
    ) -> StreamingSession:
        """A new stream of audio at this sample rate. Raises ModelError as `streaming_model` does."""
        return StreamingSession(
            self.streaming_model(),
            self.units,
            keep_log_probs=keep_log_probs,
            where=where,
            decoder=self.decoder,
            rate_hz=rate_hz,
        )

    def recognise(self, samples: NDArray[np.float32], where: str = "audio") -> list[Token]:
        """The tokens of a whole utterance. A torch model processes all of it in one pass. An exported one,
        which cannot, runs chunk by chunk, and so does a torch student on more than `LONGEST_AT_ONCE_S`: the
        result is the same, since the tail of `StreamingSession` is added in one pass, too.

        Raises:
            AudioError: bad samples (see `kdasr.streaming.check_samples`), or more of them than a
                full-context model has memory for.
        """
        samples = check_samples(samples, where)
        seconds = len(samples) / SAMPLE_RATE_HZ
        if self.offline_model is None or (self.chunk_model is not None and seconds > LONGEST_AT_ONCE_S):
            session = self.session(where=where)
            session.hear(samples)
            return session.tokens
        features_btf = log_mel(samples if self.chunk_model is None else with_tail(samples))[None]
        lengths_b = torch.tensor([features_btf.shape[1]])
        if not int(lengths_b):
            return []
        try:
            with torch.inference_mode():
                log_probs_btv, frames_b = self.offline_model.offline(features_btf, lengths_b)
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            raise AudioError(
                "the audio is too long for a full-context model on this machine",
                where=where,
                got=f"{seconds:.0f} s of audio, and too little memory to process it at once",
                fix="Cut it into shorter files, or use a student, which runs chunk by chunk.",
            ) from error
        tokens = decode_whole(self.decoder(), log_probs_btv[0, : int(frames_b[0])])
        if self.chunk_model is None:
            return tokens
        return within_audio(tokens, len(samples), self.chunk_model.subsampling)

    def transcribe(self, samples: NDArray[np.float32], where: str = "audio") -> str:
        """The text of a whole utterance."""
        return " ".join(word.text for word in self.words(self.recognise(samples, where)))

    def words(self, tokens: Iterable[Token], audio_s: float = math.inf) -> list[Word]:
        """Words with times from this model's tokens; see `kdasr.streaming.words_of`."""
        model = self.offline_model or self.streaming_model()
        return words_of(tokens, self.units, FRAME_SHIFT_MS * model.subsampling / 1000, audio_s)

    def listen(
        self,
        pieces: Iterable[NDArray[np.float32] | Gap],
        source: str,
        rules: EndpointRules | None = None,
        *,
        rate_hz: float = SAMPLE_RATE_HZ,
    ) -> Iterator[Transcript]:
        """Partial and final transcripts of audio as it arrives.

        Args:
            pieces: samples, any number at a time; a gap ends a segment.
            source: the name of the audio.
            rules: cut it into segments at pauses; None gives one final transcript at the end, and one at
                each gap, or a single empty one if there was no speech at all.
            rate_hz: sample rate of the pieces.

        Raises:
            AudioError: bad samples (see `kdasr.streaming.check_samples`). This, and anything that `pieces`
                raises, comes after the final transcript of the audio before it.
        """
        session = EndpointingSession(
            self.streaming_model(),
            self.units,
            rules,
            where=source,
            decoder=self.decoder,
            rate_hz=rate_hz,
        )
        before, heard = "", False
        try:
            for piece in pieces:
                segments = session.gap(piece.seconds) if isinstance(piece, Gap) else session.accept(piece)
                heard = heard or bool(segments)
                yield from _finals(source, segments)
                before = "" if segments else before  # a segment replaces the partial text shown
                if session.partial != before:
                    before = session.partial
                    yield Transcript(source, before, [], False)
        except Exception:
            yield from _finals(source, _rest(session))
            raise
        segments = session.finish()
        yield from _finals(source, segments)
        if rules is None and not heard and not segments:
            yield Transcript(source, "", [], True)


def _rest(session: EndpointingSession) -> list[Segment]:
    """The segments before an error; none if the model itself caused it and fails again."""
    with suppress(Exception):
        return session.finish()
    return []


def _finals(source: str, segments: Iterable[Segment]) -> Iterator[Transcript]:
    return (Transcript(source, segment.text, segment.words, True) for segment in segments)


def open_recogniser(path: Path | str, chunk_ms: int | None = None) -> Recogniser:
    """Opens the model at `path`: a model folder, an export folder, or an `.onnx` or `.pte` file in one.

    Args:
        chunk_ms: audio in a chunk; None for the model's own, 0 for full context, which cannot stream.
            An exported file has a fixed chunk size.

    Raises:
        ModelError: there is no model, or it cannot be used.
        ConfigError: the model cannot have such chunks.
        MissingDependencyError: the package that runs an exported file is not installed.
    """
    path = Path(path)
    if (file := exported_file(path)) is not None:
        model, units = load_exported(file)
        _check_chunk_ms(chunk_ms, model, path)
        return Recogniser(path, units, None, model)
    if path.is_dir() and ((path / WEIGHTS_FILE).exists() or (path / CARD_FILE).exists()):
        loaded = load_model(path)
        if not isinstance(loaded.model, StreamingModel):
            if chunk_ms:
                raise ConfigError(
                    "a full-context model has no chunks",
                    where=path,
                    expected=f"no --chunk-ms for a {type(loaded.model).__name__}",
                    got=chunk_ms,
                )
            return Recogniser(path, loaded.units, loaded.model, None)
        if chunk_ms is not None:
            set_chunk_ms(loaded.model, chunk_ms, or_whole=True)
        student = silence_controls(loaded.model, loaded.units)
        chunk_model = TorchChunkModel(student) if student.shift else None
        return Recogniser(path, loaded.units, student, chunk_model)
    raise ModelError(
        "there is no model here",
        where=path,
        expected=f"a folder with {WEIGHTS_FILE} or an exported model, or an .onnx or .pte file",
        got="a folder without them" if path.is_dir() else "a file" if path.exists() else "nothing",
        fix="Give a model folder that `kdasr train` or `kdasr export` wrote.",
    )


def _check_chunk_ms(chunk_ms: int | None, model: ChunkModel, path: Path) -> None:
    fixed_ms = model.shift * FRAME_SHIFT_MS
    if chunk_ms is not None and chunk_ms != fixed_ms:
        raise ConfigError(
            "the chunk size of an exported model is fixed",
            where=path,
            expected=f"--chunk-ms {fixed_ms}",
            got=chunk_ms,
            fix="Export the student again with this chunk size, or use its torch folder.",
        )
