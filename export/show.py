"""What `kdasr transcribe` prints: transcripts of files, of a pipe, or of a microphone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from export.sources import microphone_pieces, pcm_pieces, pieces_of
from export.transcribe import DEFAULT_PIECE_MS, Recogniser, Transcript, open_recogniser
from kdasr.audio import SAMPLE_RATE_HZ, load_with_rate
from kdasr.decoding import DEFAULT_BEAM
from kdasr.errors import ConfigError
from kdasr.lexicon import Lexicon
from kdasr.streaming import EndpointRules

STANDARD_INPUT = "-"
MICROPHONE = "microphone"


@dataclass(frozen=True)
class Request:
    """What to transcribe, and how to show it.

    Attributes:
        model: see `export.transcribe.open_recogniser`.
        sources: audio files, `-` for raw 16-bit PCM on standard input.
        microphone: listen to the microphone instead.
        device: which microphone; None for the default.
        stream: decode files chunk by chunk and show partial text; live sources always do.
        json_lines: one JSON object a line, with word times.
        endpoint: cut at pauses into one transcript each; None does so for live sources only.
        min_silence_s, max_segment_s: see `kdasr.streaming.EndpointRules`.
        chunk_ms: audio in a chunk of the model; None for the model's own.
        lexicon: text files and folders of labelled shards with the words to hear; none for any.
        beam: prefixes of a search; None for the most probable class of each frame, or with a lexicon 16.
        rate_hz: sample rate of the PCM on standard input.
        piece_ms: how much audio is taken at a time.
    """

    model: Path
    sources: tuple[str, ...] = ()
    microphone: bool = False
    device: str | int | None = None
    stream: bool = False
    json_lines: bool = False
    endpoint: bool | None = None
    min_silence_s: float = 1.0
    max_segment_s: float = 20.0
    chunk_ms: int | None = None
    lexicon: tuple[str, ...] = ()
    beam: int | None = None
    rate_hz: int = SAMPLE_RATE_HZ
    piece_ms: int = DEFAULT_PIECE_MS


def show_transcripts(
    request: Request, *, stdin: BinaryIO | None = None, out: TextIO | None = None, err: TextIO | None = None
) -> None:
    """Prints `source<TAB>text` (or a JSON object) for each final transcript on `out` as it is
    ready, and partial text, where there is any, on `err` (with `json_lines` on `out` too).

    Raises:
        ConfigError: no source, or several live ones.
        AudioError: a source cannot be read.
        ModelError: the model cannot be used, or not in this way.
    """
    out, err = out or sys.stdout, err or sys.stderr
    _check(request)
    recogniser = open_recogniser(request.model, chunk_ms=request.chunk_ms)
    if request.lexicon or request.beam is not None:
        lexicon = Lexicon(units=recogniser.units, sources=request.lexicon) if request.lexicon else None
        recogniser = recogniser.searching(DEFAULT_BEAM if request.beam is None else request.beam, lexicon)
    stdin = stdin if stdin is not None else sys.stdin.buffer
    for heard in _all_transcripts(recogniser, request, stdin, err):
        if request.json_lines:
            print(json.dumps(as_json(heard), ensure_ascii=False), file=out, flush=True)
        elif heard.final:
            _clear_line(err)
            print(f"{heard.source}\t{heard.text}", file=out, flush=True)
        else:
            _show_partial(heard, err)


def as_json(heard: Transcript) -> dict[str, object]:
    """A transcript as the object of one JSON line."""
    line: dict[str, object] = {
        "source": heard.source,
        "type": "final" if heard.final else "partial",
        "text": heard.text,
    }
    if heard.final:
        line["words"] = [
            {"word": word.text, "start": word.start_s, "end": word.end_s, "confidence": word.confidence}
            for word in heard.words
        ]
    return line


def _check(request: Request) -> None:
    if request.beam is not None and request.beam < 1:
        raise ConfigError("a beam holds at least one prefix", where="--beam", got=request.beam)
    live = request.sources.count(STANDARD_INPUT) + request.microphone
    if not request.sources and not request.microphone:
        raise ConfigError(
            "nothing to transcribe",
            expected="audio files, - for PCM on standard input, or --microphone",
        )
    if live > 1 or (request.microphone and request.sources):
        raise ConfigError(
            "a live source is listened to alone",
            expected="either files, or -, or --microphone",
            got=" ".join([*request.sources, *(["--microphone"] if request.microphone else [])]),
        )


def _all_transcripts(
    recogniser: Recogniser, request: Request, stdin: BinaryIO, err: TextIO
) -> Iterator[Transcript]:
    rules = EndpointRules(request.min_silence_s, request.max_segment_s)
    if request.microphone:
        pieces = microphone_pieces(device=request.device, piece_ms=request.piece_ms)
        print("listening; Ctrl-C ends it", file=err, flush=True)
        yield from recogniser.listen(pieces, MICROPHONE, None if request.endpoint is False else rules)
        return
    for source in request.sources:
        if source == STANDARD_INPUT:
            pieces = pcm_pieces(stdin, rate_hz=request.rate_hz, piece_ms=request.piece_ms)
            yield from recogniser.listen(pieces, source, None if request.endpoint is False else rules)
        else:
            yield from _file_transcripts(recogniser, request, source, rules, err)


def _file_transcripts(
    recogniser: Recogniser, request: Request, source: str, rules: EndpointRules, err: TextIO
) -> Iterable[Transcript]:
    decoded = load_with_rate(Path(source))
    if decoded.source_rate_hz != SAMPLE_RATE_HZ:
        print(f"{source}: resampled from {decoded.source_rate_hz} Hz to {SAMPLE_RATE_HZ} Hz", file=err)
    if request.stream or request.endpoint:
        pieces = pieces_of(decoded.samples, request.piece_ms)
        return recogniser.listen(pieces, source, rules if request.endpoint else None)
    words = recogniser.words(recogniser.recognise(decoded.samples, source))
    return [Transcript(source, " ".join(word.text for word in words), words, True)]


def _show_partial(heard: Transcript, err: TextIO) -> None:
    """On a terminal the line is written over; in a log each partial is a line."""
    if err.isatty():
        width = shutil.get_terminal_size().columns - 1
        line = f"{heard.source}: {heard.text}"
        err.write("\r\x1b[K" + (line if len(line) <= width else "…" + line[1 - width :]))
    else:
        err.write(f"{heard.source}\t{heard.text} …\n")
    err.flush()


def _clear_line(err: TextIO) -> None:
    if err.isatty():
        err.write("\r\x1b[K")
        err.flush()
