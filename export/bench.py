"""`kdasr bench device`: a student in, its speed, memory and delays on this machine out.

Each engine runs in a process of its own on one core. Delays are measured on labelled shards against
a forced alignment by a full-context model, the teacher as a rule.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from export.formats import FORMATS, available_formats
from export.parity import probe_sound
from export.sources import pieces_of
from export.transcribe import Recogniser, open_recogniser
from kdasr.alignment import align
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.decoding import Token
from kdasr.error_rates import error_rates
from kdasr.errors import ExportError, ModelError, UnitsError
from kdasr.features import FRAME_SHIFT_MS, log_mel
from kdasr.interfaces import Utterance
from kdasr.models import load_model
from kdasr.shards import read_shard
from kdasr.spikes import spike_offsets
from kdasr.streaming import StreamingSession, algorithmic_latency_ms

MAX_UTTERANCES = 200
_TIMED_SECONDS = 30
_PIECE_MS = 10


@dataclass(frozen=True)
class Delays:
    """How late a student speaks, in milliseconds of audio (computing comes on top).

    Attributes:
        utterances: how many were measured.
        wer_offline, wer_streaming: in percent; they must be equal.
        texts_differ: utterances whose streamed text is not the offline text.
        emission_p50_ms, emission_p90_ms: spike of a unit minus its aligned start; None without an
            aligner.
        first_token_p50_ms, first_token_p90_ms: from the aligned start of the first unit to the
            audio that had to arrive before any text was shown; None without an aligner.
        not_aligned: utterances that the aligner's frames could not hold.
    """

    utterances: int
    wer_offline: float
    wer_streaming: float
    texts_differ: int
    emission_p50_ms: float | None
    emission_p90_ms: float | None
    first_token_p50_ms: float | None
    first_token_p90_ms: float | None
    not_aligned: int


def bench_device(
    model: Path,
    *,
    shards: Sequence[Path] = (),
    aligner: Path | None = None,
    formats: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measures a student in every engine that is installed.

    Args:
        model: folder of a trained student; it is exported to a temporary folder first.
        shards: labelled test shards, for the delays; without them there are none.
        aligner: folder of a full-context model with the same units.
        formats: which of `export.formats.FORMATS` to measure; None for all that are installed.

    Returns:
        `{"latency_ms", "parameters", "engines": {name: {"bytes", "rtf", "p50_ms", …}}, "delays"}`.

    Raises:
        ModelError: the model cannot be used or cannot run chunk by chunk.
        ExportError: an export misses parity, or an engine dies.
    """
    loaded = load_model(model)
    recogniser = open_recogniser(model)
    latency_ms = algorithmic_latency_ms(recogniser.streaming_model())
    utterances = list(islice(_labelled(shards), MAX_UTTERANCES))
    aligning = open_aligner(aligner, recogniser) if aligner is not None else None
    engines: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        audio = Path(folder) / "timed.wav"
        soundfile.write(audio, _timed_samples(utterances), SAMPLE_RATE_HZ, subtype="FLOAT")
        engines["torch"] = {"bytes": _size(model / "model.safetensors"), **_measure(model, audio)}
        for name in available_formats() if formats is None else formats:
            exported = FORMATS[name](loaded.model, loaded.units, Path(folder) / name)
            for kind, path in (("float32", exported.float_path), ("int8", exported.int8_path)):
                if path is not None:
                    engines[f"{name} {kind}"] = {"bytes": _size(path), **_measure(path, audio)}
    delays = measure_delays(recogniser, utterances, aligning) if utterances else None
    return {
        "model": str(model),
        "parameters": loaded.card.get("parameters"),
        "latency_ms": latency_ms,
        "engines": engines,
        "delays": asdict(delays) if delays else None,
    }


def measure_delays(
    recogniser: Recogniser, utterances: Sequence[Utterance], aligner: Recogniser | None = None
) -> Delays:
    """Streams every utterance in pieces of 10 ms and compares with what was said when, as
    `aligner`, a torch model with the same units, has it."""
    frame_ms = float(FRAME_SHIFT_MS * recogniser.streaming_model().subsampling)
    streamed, offline, emission, first = [], [], [], []
    not_aligned = 0
    for utterance in utterances:
        session, shown_ms = _stream(recogniser, utterance)
        streamed.append(session.text)
        offline.append(recogniser.transcribe(utterance.samples, utterance.key))
        if aligner is None or not session.tokens:
            continue
        try:
            reference = _aligned(aligner, utterance)
        except UnitsError:
            not_aligned += 1
            continue
        emission += spike_offsets(reference, session.tokens, frame_ms)
        if shown_ms is not None and reference:
            first.append(shown_ms - reference[0].frame * frame_ms)
    references = [utterance.text or "" for utterance in utterances]
    return Delays(
        len(utterances),
        error_rates(references, offline)[0],
        error_rates(references, streamed)[0],
        sum(one != two for one, two in zip(streamed, offline, strict=True)),
        *_percentiles(emission),
        *_percentiles(first),
        not_aligned,
    )


def table(figures: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text."""
    lines = [
        f"{figures['model']}: {figures['parameters']:,} parameters, "
        f"algorithmic latency {figures['latency_ms']:g} ms, one core",
        f"{'engine':20} {'MB':>6} {'RTF':>7} {'P50 ms':>7} {'P95 ms':>7} {'P99 ms':>7} {'MiB':>6}",
    ]
    for name, row in figures["engines"].items():
        lines.append(
            f"{name:20} {row['bytes'] / 1e6:6.2f} {row['rtf']:7.4f} {row['p50_ms']:7.2f} "
            f"{row['p95_ms']:7.2f} {row['p99_ms']:7.2f} {row['model_mib']:6.1f}"
        )
    if (delays := figures["delays"]) is not None:
        difference = delays["wer_streaming"] - delays["wer_offline"]
        lines.append(
            f"WER {delays['wer_streaming']:.2f} % streaming, {difference:+.2f} against offline, "
            f"{delays['texts_differ']} of {delays['utterances']} texts differ"
        )
        for name, what in (("emission", "emission delay"), ("first_token", "first-token delay")):
            if delays[f"{name}_p50_ms"] is not None:
                p50, p90 = delays[f"{name}_p50_ms"], delays[f"{name}_p90_ms"]
                lines.append(f"{what}: P50 {p50:+.0f} ms, P90 {p90:+.0f} ms")
    return lines


def _measure(model: Path, audio: Path) -> dict[str, Any]:
    """What `export.bench_worker` says of one engine.

    Raises:
        ExportError: it failed.
    """
    command = [sys.executable, "-m", "export.bench_worker", str(model), str(audio)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ExportError(
            "an engine failed while it was measured",
            where=model,
            got=(done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1],
        )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _stream(recogniser: Recogniser, utterance: Utterance) -> tuple[StreamingSession, float | None]:
    """The finished session, and how much audio had arrived when text was first there."""
    session = recogniser.session(where=utterance.key)
    arrived, shown_ms = 0, None
    for piece in pieces_of(utterance.samples, _PIECE_MS):
        arrived += len(piece)
        if session.accept(piece) and shown_ms is None:
            shown_ms = 1000 * arrived / SAMPLE_RATE_HZ
    session.finish()
    return session, shown_ms


def open_aligner(path: Path, recogniser: Recogniser) -> Recogniser:
    """The model at `path`, fit to align for `recogniser`.

    Raises:
        ModelError: it has other units or is no torch model.
    """
    aligner = open_recogniser(path)
    if aligner.offline_model is None or aligner.units.hash != recogniser.units.hash:
        raise ModelError(
            "this model cannot align for the student",
            where=path,
            expected="a torch model folder with the same units",
            got="an exported model" if aligner.offline_model is None else "other units",
            fix="Name the teacher's folder.",
        )
    return aligner


@torch.inference_mode()
def _aligned(aligner: Recogniser, utterance: Utterance) -> list[Token]:
    """The units of the transcript in the frames in which the aligner puts them."""
    assert aligner.offline_model is not None
    features_btf = log_mel(utterance.samples)[None]
    log_probs_btv, frames_b = aligner.offline_model.offline(
        features_btf, torch.tensor([features_btf.shape[1]])
    )
    ids = aligner.units.encode(utterance.text or "")
    return [unit.as_token() for unit in align(log_probs_btv[0, : int(frames_b[0])], ids, where=utterance.key)]


def _percentiles(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    p50, p90 = np.percentile(values, (50, 90))
    return float(p50), float(p90)


def _labelled(shards: Sequence[Path]) -> Iterator[Utterance]:
    return (utterance for path in shards for utterance in read_shard(path) if utterance.text)


def _timed_samples(utterances: Sequence[Utterance]) -> Any:
    size = _TIMED_SECONDS * SAMPLE_RATE_HZ
    if not utterances:
        return probe_sound(size, 1)
    return np.concatenate([utterance.samples for utterance in utterances])[:size]


def _size(path: Path) -> int:
    return path.stat().st_size
