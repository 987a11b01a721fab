"""The output of `kdasr transcribe`: transcripts of files, of a pipe, or of a microphone."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from rich.cells import cell_len

from export.sources import microphone_pieces, pcm_pieces, pieces_of
from export.transcribe import Recogniser, Transcript, open_recogniser
from kdasr.audio import SAMPLE_RATE_HZ, load_with_rate
from kdasr.decoding import DEFAULT_BEAM
from kdasr.errors import AudioError, ConfigError, printable
from kdasr.storage import StorageError
from kdasr.streaming import EndpointRules

STANDARD_INPUT = "-"
MICROPHONE = "microphone"
# How much of a partial text a log shows, since each one repeats those before it.
_LOG_COLUMNS = 100


@dataclass(frozen=True)
class Request:
    """What to transcribe, and how to show it.

    Attributes:
        model: see `export.transcribe.open_recogniser`.
        sources: audio files, `-` for raw 16-bit PCM on standard input.
        microphone: listen to the microphone instead.
        device: which microphone; None for the default.
        stream: decode files chunk by chunk and show partial text; live sources always do.
        json_lines: one JSON object per line, with word times.
        endpoint: cut at pauses into separate transcripts; None does so for live sources only.
        min_silence_s: see `kdasr.streaming.EndpointRules`; None for its default.
        chunk_ms: audio in a chunk of the model; None for the model's own.
        lexicon: text files and folders of labelled shards with the allowed words; empty for any word.
        other_word_nats: cost of each unit of a word that is not in the lexicon; None to allow no such word.
        beam: prefixes of a beam search; None for greedy decoding, or 16 with a lexicon.
        rate_hz: sample rate of the PCM on standard input; None for 16 kHz.
    """

    model: Path
    sources: tuple[str, ...] = ()
    microphone: bool = False
    device: str | int | None = None
    stream: bool = False
    json_lines: bool = False
    endpoint: bool | None = None
    min_silence_s: float | None = None
    chunk_ms: int | None = None
    lexicon: tuple[str, ...] = ()
    other_word_nats: float | None = None
    beam: int | None = None
    rate_hz: int | None = None

    @property
    def live(self) -> bool:
        """Whether the audio is transcribed as it arrives."""
        return self.microphone or STANDARD_INPUT in self.sources

    @property
    def rules(self) -> EndpointRules | None:
        """The rules by which to cut; None for no cuts."""
        if not (self.live if self.endpoint is None else self.endpoint):
            return None
        return EndpointRules() if self.min_silence_s is None else EndpointRules(self.min_silence_s)


def show_transcripts(
    request: Request, *, stdin: BinaryIO | None = None, out: TextIO | None = None, err: TextIO | None = None
) -> None:
    """Prints `source<TAB>text` (or a JSON object) for each final transcript to `out` as soon as it is
    ready, and partial text, if there is any, to `err` (with `json_lines` to `out`).

    If one of several files cannot be read, the error goes to `err`, and the others are still transcribed.

    Raises:
        ConfigError: no source, several live ones, a setting of another kind of source, or `-` while
            standard input is closed.
        AudioError: a source cannot be read; for several files, how many.
        ModelError: the model cannot be used, or not in this way.
    """
    out, err = out or sys.stdout, err or sys.stderr
    _check(request)
    try:
        recogniser = open_recogniser(request.model, chunk_ms=request.chunk_ms)
    except ConfigError as error:
        if error.where != "chunk_ms":
            raise
        raise error.told_of("--chunk-ms") from error
    recogniser = _searching(recogniser, request)
    for heard in _all_transcripts(recogniser, request, stdin, err):
        if request.json_lines:
            _tell(json.dumps(as_json(heard), ensure_ascii=False), out)
        elif heard.final:
            _clear_line(err)
            _tell(f"{heard.source}\t{heard.text}", out)
        else:
            _show_partial(heard, err)


def as_json(heard: Transcript) -> dict[str, object]:
    """A transcript as the object for one JSON line."""
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
        raise ConfigError("the beam must hold at least one prefix", where="--beam", got=request.beam)
    if request.min_silence_s is not None and not request.min_silence_s > 0:
        raise ConfigError(
            "the pause must be positive", where="--pause", expected="> 0", got=request.min_silence_s
        )
    live = request.sources.count(STANDARD_INPUT) + request.microphone
    if not request.sources and not request.microphone:
        raise ConfigError(
            "nothing to transcribe",
            expected="audio files, - for PCM on standard input, or --microphone",
        )
    if live > 1 or (request.microphone and request.sources):
        raise ConfigError(
            "a live source cannot be combined with other sources",
            expected="only files, only -, or only --microphone",
            got=" ".join([*request.sources, *(["--microphone"] if request.microphone else [])]),
        )
    for name, value, used, what in (
        ("--device", request.device, request.microphone, "--microphone"),
        ("--rate", request.rate_hz, STANDARD_INPUT in request.sources, "- for PCM on standard input"),
        ("--other-words", request.other_word_nats, bool(request.lexicon), "--lexicon"),
        ("--pause", request.min_silence_s, request.rules is not None, "live audio or --endpoint"),
    ):
        if value is not None and not used:
            raise ConfigError("this option has no effect here", where=name, expected=f"{what} as well")


def _searching(recogniser: Recogniser, request: Request) -> Recogniser:
    beam = DEFAULT_BEAM if request.beam is None else request.beam
    if request.lexicon:
        return recogniser.with_lexicon(*request.lexicon, other_word_nats=request.other_word_nats, beam=beam)
    return recogniser if request.beam is None else recogniser.searching(beam)


def _all_transcripts(
    recogniser: Recogniser, request: Request, stdin: BinaryIO | None, err: TextIO
) -> Iterator[Transcript]:
    if request.microphone:
        pieces = microphone_pieces(
            device=request.device,
            on_open=lambda: print("listening (Ctrl-C to stop)", file=err, flush=True),
        )
        yield from recogniser.listen(pieces, MICROPHONE, request.rules)
        return
    failed = 0
    for source in request.sources:
        try:
            if source == STANDARD_INPUT:
                rate_hz = SAMPLE_RATE_HZ if request.rate_hz is None else request.rate_hz
                pieces = pcm_pieces(stdin or _standard_input(), rate_hz=rate_hz)
                yield from recogniser.listen(pieces, source, request.rules, rate_hz=rate_hz)
            else:
                yield from _file_transcripts(recogniser, request, source, err)
        except (AudioError, StorageError) as error:
            if len(request.sources) == 1:
                raise
            failed += 1
            _clear_line(err)
            _tell(f"kdasr: {error}", err)
    if failed:
        raise AudioError(f"{failed} of {len(request.sources)} sources could not be transcribed")


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise ConfigError(
            "standard input is closed",
            where=STANDARD_INPUT,
            expected="raw 16-bit mono PCM on it",
            fix="Give a file, or pipe samples into the command.",
        )
    return sys.stdin.buffer


def _file_transcripts(
    recogniser: Recogniser, request: Request, source: str, err: TextIO
) -> Iterable[Transcript]:
    decoded = load_with_rate(Path(source))
    if decoded.source_rate_hz != SAMPLE_RATE_HZ:
        _tell(f"{source}: resampled from {decoded.source_rate_hz} Hz to {SAMPLE_RATE_HZ} Hz", err)
    if decoded.source_channels > 1:
        _tell(f"{source}: {decoded.source_channels} channels averaged", err)
    if request.stream or request.endpoint:
        rules = request.rules if request.endpoint else None
        found = recogniser.listen(pieces_of(decoded.samples), source, rules)
        return (heard for heard in found if heard.final or request.stream)
    audio_s = len(decoded.samples) / SAMPLE_RATE_HZ
    words = recogniser.words(recogniser.recognise(decoded.samples, source), audio_s)
    return [Transcript(source, " ".join(word.text for word in words), words, True)]


def _show_partial(heard: Transcript, err: TextIO) -> None:
    """Overwrites the line on a terminal, prints a line in a log; of a long text either shows the end."""
    if err.isatty():
        width = shutil.get_terminal_size().columns - 1
        err.write("\r\x1b[K" + _within(printable(f"{heard.source}: {heard.text}"), width))
    else:
        _tell(f"{heard.source}\t{_end_of(heard.text, _LOG_COLUMNS)} …", err)
    err.flush()


def _tell(line: str, stream: TextIO) -> None:
    print(printable(line), file=stream, flush=True)


def _end_of(line: str, width: int) -> str:
    return line if len(line) <= width else "…" + line[1 - width :]


def _within(line: str, columns: int) -> str:
    """The end of `line` that takes no more than so many columns: Korean letters take two each, marks none."""
    if cell_len(line) <= columns:
        return line
    start, left = len(line), columns - 1
    while (left := left - cell_len(line[start - 1])) >= 0:
        start -= 1
    return "…" + line[start:]


def _clear_line(err: TextIO) -> None:
    if err.isatty():
        err.write("\r\x1b[K")
        err.flush()
