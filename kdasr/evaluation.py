"""Measure error rates, hypotheses and speed of a recogniser on labelled shards.

A recogniser is either an acoustic model, which is run in padded batches (`evaluate`), or any function
from an utterance to its text (`evaluate_transcriber`), such as a stream or an exported model.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.progress import track

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.decoding import BeamStream, Grammar, Token, decode_whole, greedy
from kdasr.devices import one_torch_thread
from kdasr.error_rates import ErrorCounts, count_errors, counts_by_kind, misheard_words
from kdasr.errors import ConfigError, ShardError
from kdasr.features import FRAME_SHIFT_MS
from kdasr.interfaces import AcousticModel, Utterance
from kdasr.shards import Placed, open_shard, read_shard, read_texts
from kdasr.storage import commit_bytes
from kdasr.streaming import hears_tail, text_of, with_tail, within_audio
from kdasr.teachers.base import LOG_MEL, FrontEnd
from kdasr.text import Units, letters_in, normalise_by_word, not_normal_text

DECODERS = ("greedy", "beam")

Transcriber = Callable[[Utterance], str]


class Heard(NamedTuple):
    """The result for one utterance of a test set.

    Attributes:
        key, reference, hypothesis: the utterance, its transcript, and what was recognised.
        tokens: the spikes of the best path, whatever the decoder, including those in the tail; None
            from `evaluate_transcriber`.
        speaker: who spoke, if known.
        source, offset_s: the recording's name in its corpus, and the seconds in it before the utterance; as
            in `kdasr.shards.Placed`, None if unknown.
        duration_s: length of the audio in seconds.
        channel: the channel of the recording, as in `kdasr.shards.Placed`; None: all channels, averaged.
    """

    key: str
    reference: str
    hypothesis: str
    tokens: list[Token] | None = None
    speaker: str | None = None
    source: str | None = None
    offset_s: float | None = None
    duration_s: float | None = None
    channel: int | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """A recogniser's results on a test set.

    Attributes:
        errors: counts over all utterances.
        heard: every utterance, in the order of the shards.
        without_transcript: utterances skipped because they have no transcript.
        not_normal: hypotheses with words that could not be normalised; these words count as errors.
    """

    errors: ErrorCounts
    heard: list[Heard]
    without_transcript: int
    not_normal: int = 0

    @property
    def wer(self) -> float:
        return self.errors.wer

    @property
    def cer(self) -> float:
        return self.errors.cer


def evaluate(
    model: AcousticModel,
    units: Units,
    shards: Sequence[Path],
    *,
    decoder: str = "greedy",
    lexicon: Grammar | None = None,
    batch_utterances: int = 16,
    device: torch.device | str = "cpu",
    front_end: FrontEnd = LOG_MEL,
    spells_as_we_do: bool = True,
) -> Result:
    """Error rates of an acoustic model over whole utterances, in padded batches. A streaming model is fed the
    tail after each (`kdasr.streaming.tail`), as when it runs chunk by chunk.

    Args:
        shards: tars of labelled audio shards.
        decoder: "greedy" or "beam" (prefix beam search).
        lexicon: the words that the beam search may find (`kdasr.lexicon.Lexicon`).
        batch_utterances: utterances in one forward pass.
        device: the device that the model is on.
        front_end: computes the model's input from audio.
        spells_as_we_do: whether the model's texts are normalised as transcripts are; if not, they are
            normalised here, and a line on stderr says how many have words that cannot be.

    Raises:
        ConfigError: an unknown decoder, or transcripts without words.
        ShardError: a damaged shard, or no transcripts.
    """
    check_decoder(decoder, lexicon)
    not_normal = 0
    letters = (
        ""
        if spells_as_we_do
        else letters_in(text for path in shards for text in read_texts(open_shard(path)))
    )

    def hear(utterances: Sequence[Utterance]) -> list[tuple[str, list[Token] | None]]:
        log_probs_btv, lengths_b = _run_batch(model, utterances, device, front_end)
        tokens = greedy(log_probs_btv, lengths_b)
        if decoder == "greedy":
            return list(zip(map(said, tokens, utterances), tokens, strict=True))
        frames = zip(log_probs_btv.cpu().numpy(), lengths_b.tolist(), strict=True)
        found = [decode_whole(BeamStream(grammar=lexicon), row[:length]) for row, length in frames]
        return list(zip(map(said, found, utterances), tokens, strict=True))

    frame_s = FRAME_SHIFT_MS * model.subsampling / 1000

    def said(tokens: Sequence[Token], utterance: Utterance) -> str:
        nonlocal not_normal
        if hears_tail(model):  # as in a session: times in the tail could make a pause that splits a word
            tokens = within_audio(tokens, len(utterance.samples), model.subsampling)
        text = text_of(tokens, units, frame_s)
        if not spells_as_we_do:
            text, is_normal = normalise_by_word(text, letters)
            not_normal += not is_normal
        return text

    result = _score(shards, hear, batch_utterances)
    if not_normal:
        print(not_normal_text(not_normal), file=sys.stderr)
    return replace(result, not_normal=not_normal)


def check_decoder(decoder: str, lexicon: object) -> None:
    """Raise ConfigError if the decoder is unknown, or cannot use the lexicon (None for none)."""
    if decoder not in DECODERS:
        raise ConfigError(
            "unknown decoder", where="decoder", expected=" or ".join(DECODERS), got=repr(decoder)
        )
    if lexicon is not None and decoder != "beam":
        raise ConfigError(
            "a lexicon can be used only with beam search", where="decoder", expected="beam", got=decoder
        )


def evaluate_transcriber(transcribe: Transcriber, shards: Sequence[Path]) -> Result:
    """Error rates of any function from an utterance to its text, one utterance at a time.

    Raises:
        ShardError: a damaged shard, or no transcripts.
    """
    return _score(shards, lambda utterances: [(transcribe(one), None) for one in utterances], 1)


def measure_rtf(work: Callable[[], object], audio_seconds: float, *, repeats: int = 3) -> float:
    """Real-time factor on one core: seconds of computation per second of audio.

    Runs `work` once to warm up, then `repeats` times, and takes the median. `work` must do all that a
    user waits for: features, model and decoding of `audio_seconds` of audio.
    """
    assert audio_seconds > 0 and repeats >= 1, (audio_seconds, repeats)
    seconds = []
    with one_torch_thread():
        work()
        for _ in range(repeats):
            began = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) / audio_seconds


def write_hypotheses(path: Path, result: Result) -> None:
    """Write one JSON line for each utterance: key; speaker, source, offset_s, duration_s and channel (if
    known, see `Heard`); reference, hypothesis, and word errors, in total and by kind."""
    heard_all = result.heard
    misheard = misheard_words([one.reference for one in heard_all], [one.hypothesis for one in heard_all])
    lines = []
    for heard, wrong in zip(heard_all, misheard, strict=True):
        names = ("speaker", "source", "offset_s", "duration_s", "channel")
        known = {name: getattr(heard, name) for name in names}
        row = {
            "key": heard.key,
            **{name: value for name, value in known.items() if value is not None},
            "reference": heard.reference,
            "hypothesis": heard.hypothesis,
            "errors": len(wrong),
            **counts_by_kind(wrong),
        }
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    commit_bytes(path, "".join(lines).encode())


def _run_batch(
    model: AcousticModel, utterances: Sequence[Utterance], device: torch.device | str, front_end: FrontEnd
) -> tuple[torch.Tensor, torch.Tensor]:
    samples = [utterance.samples for utterance in utterances]
    if hears_tail(model):
        samples = [with_tail(one) for one in samples]
    heard = [front_end.compute(one) for one in samples]
    lengths_b = torch.tensor([len(one) for one in heard], device=device)
    if not lengths_b.any():  # all are shorter than a frame
        return torch.zeros(len(heard), 0, model.vocab_size), lengths_b
    padded = torch.nn.utils.rnn.pad_sequence(heard, batch_first=True, padding_value=front_end.padding)
    with torch.inference_mode():
        return model.offline(padded.to(device), lengths_b)


def _score(
    shards: Sequence[Path],
    hear: Callable[[Sequence[Utterance]], list[tuple[str, list[Token] | None]]],
    batch_utterances: int,
) -> Result:
    heard: list[Heard] = []
    without = 0
    for utterances in _batches(shards, batch_utterances):
        known = [utterance for utterance in utterances if utterance.text is not None]
        without += len(utterances) - len(known)
        texts = hear(known) if known else []
        heard += [_heard(one, text, tokens) for one, (text, tokens) in zip(known, texts, strict=True)]
    if not heard:
        raise ShardError(
            "no utterance has a transcript to score against",
            where=", ".join(map(str, shards)) or "no shards",
            fix="Give the folder of a labelled split.",
        )
    errors = count_errors([one.reference for one in heard], [one.hypothesis for one in heard])
    return Result(errors, heard, without)


def _heard(one: Placed, text: str, tokens: list[Token] | None) -> Heard:
    place = (one.source, one.offset, len(one.samples) / SAMPLE_RATE_HZ, one.channel)
    return Heard(one.key, one.text or "", text, tokens, one.speaker, *place)


def _batches(shards: Sequence[Path], size: int) -> Iterator[list[Placed]]:
    total = sum(open_shard(path).count for path in shards)
    utterances = (utterance for path in shards for utterance in read_shard(path))
    console = Console(stderr=True)
    quiet = not console.is_terminal  # a log file gets no progress bar
    shown = iter(track(utterances, "evaluating", total, console=console, transient=True, disable=quiet))
    while batch := list(islice(shown, size)):
        yield batch
