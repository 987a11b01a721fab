"""`kdasr bench device`: measures the speed, memory and delays of a student or its export on this machine.

Each engine runs in a separate process on one core. Machines are rarely idle, so the engines are measured
several times in turns, and the figures are those of each one's fastest round.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile

from export.card import read_export_card
from export.delays import measure_delays, open_aligner
from export.formats import available_formats
from export.parity import probe_sound
from export.publish import Export, export_student
from export.transcribe import open_recogniser
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.error_rates import count_errors
from kdasr.errors import ConfigError, ExportError
from kdasr.interfaces import Utterance
from kdasr.models import LoadedModel, load_model, weights_file
from kdasr.reasons import counted
from kdasr.shards import read_shard
from kdasr.streaming import algorithmic_latency_ms

MAX_UTTERANCES = 200
DEFAULT_ROUNDS = 3
_TIMED_SECONDS = 30
#: Text for the utterances that `export.delays.Delays` counts separately.
_DELAY_COUNTS = {
    "shown_at_end": "showed text only at the end",
    "nothing_said": "gave no delays: the student emitted nothing",
    "not_aligned": "gave no delays: the transcript does not fit the aligner's frames",
}


def bench_device(
    model: Path,
    *,
    shards: Sequence[Path] = (),
    aligner: Path | None = None,
    formats: Sequence[str] | None = None,
    rounds: int = DEFAULT_ROUNDS,
) -> dict[str, Any]:
    """Measures a student in every installed engine, or the files of an export.

    Args:
        model: folder of a trained student, which is exported to a temporary folder first, or of an export,
            whose files are measured as they are.
        shards: labelled test shards, for error rates and delays; without them these are not measured.
        aligner: folder of a full-context model with the same units.
        formats: which of `export.formats.FORMATS` a student is exported to; None for all that are installed.
        rounds: how often to time each engine, in turns.

    Returns:
        `{"model", "parameters", "latency_ms", "export_s": {format: seconds}, "refused": {name: reason},
        "engines": {name: {"bytes", "wer", "rtf", "p50_ms", …}}, "delays"}`; see `time_engines`
        and `export.delays.Delays`.

    Raises:
        ConfigError: no rounds, or shards without transcripts.
        ModelError: the model cannot be used or cannot run chunk by chunk.
        ExportError: an export fails the parity check, or an engine dies.
    """
    _check_rounds(rounds)
    if aligner is not None and not shards:
        raise ConfigError(
            "delays can only be measured on test audio", where="--aligner", fix="Add --test SHARDS."
        )
    card = read_export_card(model) if model.is_dir() else None
    loaded = load_model(model) if card is None else None
    engines = _torch_engine(model, loaded) if loaded is not None else _engines_of_card(model, card or {})
    recogniser = open_recogniser(next(iter(engines.paths.values()), model))
    latency_ms = algorithmic_latency_ms(recogniser.streaming_model())
    utterances = _labelled(shards)
    aligning = open_aligner(aligner, recogniser) if aligner is not None else None
    with tempfile.TemporaryDirectory() as folder:
        if loaded is not None:
            _add_exports(engines, loaded, Path(folder), available_formats() if formats is None else formats)
        rows = time_engines(engines.paths, utterances, Path(folder), rounds)
        for name, path in engines.paths.items():
            rows[name]["bytes"] = weights_file(path).stat().st_size
            rows[name]["wer"] = streaming_wer(path, utterances) if utterances else None
    delays = measure_delays(recogniser, utterances, aligning) if utterances else None
    return {
        "model": str(model),
        "parameters": engines.parameters,
        "latency_ms": latency_ms,
        "export_s": engines.export_s,
        "refused": engines.refused,
        "engines": rows,
        "delays": asdict(delays) if delays else None,
    }


def time_engines(
    engines: Mapping[str, Path], utterances: Sequence[Utterance], folder: Path, rounds: int = DEFAULT_ROUNDS
) -> dict[str, dict[str, Any]]:
    """Measures the speed and memory of models in turns, each in a new process bound to one core.

    Args:
        engines: model folders or files by name.
        utterances: the audio to time them with; synthetic sound if empty.
        folder: folder for the audio file.
        rounds: how often to time each.

    Returns:
        For each name the figures of `export.bench_worker` in its fastest round, with `rtf_median`
        and the smallest `cpu_rtf` over all rounds.

    Raises:
        ConfigError: no rounds.
        ExportError: an engine dies.
    """
    _check_rounds(rounds)
    audio = folder / "timed.wav"
    soundfile.write(audio, _timed_samples(utterances), SAMPLE_RATE_HZ, subtype="FLOAT")
    measured: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for _ in range(rounds):
        for name, path in engines.items():
            measured[name].append(_run_worker(path, audio))
    return {
        name: {
            **min(of_rounds, key=lambda figures: float(figures["rtf"])),
            "rtf_median": statistics.median(figures["rtf"] for figures in of_rounds),
            "cpu_rtf": min(figures["cpu_rtf"] for figures in of_rounds),
        }
        for name, of_rounds in measured.items()
    }


def _check_rounds(rounds: int) -> None:
    if rounds < 1:
        raise ConfigError(
            "each engine must be timed at least once", where="--rounds", expected=">= 1", got=rounds
        )


def streaming_wer(model: Path, utterances: Sequence[Utterance]) -> float:
    """WER in percent of a model folder or file, decoded chunk by chunk."""
    recogniser = open_recogniser(model)
    heard = [recogniser.session(where=one.key).hear(one.samples) for one in utterances]
    return count_errors([utterance.text or "" for utterance in utterances], heard).wer


def table(figures: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text."""
    parameters = figures["parameters"]
    lines = [
        f"{figures['model']}: {'?' if parameters is None else f'{parameters:,}'} parameters, "
        f"algorithmic latency {figures['latency_ms']:g} ms, one core",
        "engine                   MB  WER %     RTF  median     CPU  P50 ms  P95 ms  P99 ms  added MiB"
        "  peak MiB",
    ]
    for name, row in figures["engines"].items():
        wer = "     –" if row["wer"] is None else f"{row['wer']:6.2f}"
        lines.append(
            f"{name:20} {row['bytes'] / 1e6:6.2f} {wer} {row['rtf']:7.4f} {row['rtf_median']:7.4f} "
            f"{row['cpu_rtf']:7.4f} {row['p50_ms']:7.2f} {row['p95_ms']:7.2f} {row['p99_ms']:7.2f} "
            f"{row['model_mib']:10.1f} {row['peak_mib']:9.1f}"
        )
    lines.append(
        "added MiB: memory of the model and its runtime, without torch, which each of these processes loads"
    )
    lines += [f"{name} was not measured: {reason}" for name, reason in figures["refused"].items()]
    lines += [f"export to {name}: {seconds:.1f} s" for name, seconds in figures["export_s"].items()]
    if (delays := figures["delays"]) is not None:
        difference = delays["wer_streaming"] - delays["wer_offline"]
        lines.append(
            f"WER {delays['wer_streaming']:.2f} % streaming, {difference:+.2f} points compared with offline, "
            f"{delays['texts_differ']} of {delays['utterances']} texts differ"
        )
        for name, what in (("emission", "emission delay"), ("first_token", "first-token delay")):
            if delays[f"{name}_p50_ms"] is not None:
                p50, p90 = delays[f"{name}_p50_ms"], delays[f"{name}_p90_ms"]
                lines.append(f"{what}: P50 {p50:+.0f} ms, P90 {p90:+.0f} ms")
        for name, what in _DELAY_COUNTS.items():
            if delays[name]:
                lines.append(f"{counted(delays[name], 'utterance')} {what}")
    return lines


class _Engines(NamedTuple):
    """The engines to measure.

    Attributes:
        parameters: number of the student's parameters, if known.
        paths: model folder or file by the name of the engine.
        export_s: seconds that each export took, checks included.
        refused: why an engine is left out.
    """

    parameters: int | None
    paths: dict[str, Path]
    export_s: dict[str, float]
    refused: dict[str, str | None]


def _torch_engine(model: Path, loaded: LoadedModel) -> _Engines:
    return _Engines(loaded.card.get("parameters"), {"torch": model}, {}, {})


def _add_exports(engines: _Engines, loaded: LoadedModel, folder: Path, formats: Sequence[str]) -> None:
    for name in formats:
        exported, engines.export_s[name] = _export(loaded, folder / name, name)
        engines.paths[f"{name} float32"] = exported.float_path
        if exported.int8_path is not None:
            engines.paths[f"{name} int8"] = exported.int8_path
        else:
            engines.refused[f"{name} int8"] = exported.refused


def _engines_of_card(folder: Path, card: dict[str, Any]) -> _Engines:
    """The files of an export; missing ones are left out."""
    engines = _Engines(card["student"].get("parameters"), {}, {}, {})
    for precision, facts in card["files"].items():
        name, path = f"{card['file_format']} {precision}", folder / str(facts["file"])
        if path.exists():
            engines.paths[name] = path
        else:
            engines.refused[name] = f"{path.name} is missing"
    for precision, facts in card.get("refused", {}).items():
        engines.refused[f"{card['file_format']} {precision}"] = str(facts["reason"])
    return engines


def _export(loaded: LoadedModel, folder: Path, format: str) -> tuple[Export, float]:
    """An export of a student, and the seconds it took, checks included."""
    began = time.perf_counter()
    exported = export_student(loaded.model, loaded.units, folder, format=format)
    return exported, time.perf_counter() - began


def _run_worker(model: Path, audio: Path) -> dict[str, Any]:
    """The figures of `export.bench_worker` for one engine.

    Raises:
        ExportError: it failed.
    """
    command = [sys.executable, "-m", "export.bench_worker", str(model), str(audio)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ExportError(
            "the engine failed during the measurement",
            where=model,
            got=(done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1],
        )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _labelled(shards: Sequence[Path]) -> list[Utterance]:
    """The first utterances that have a transcript.

    Raises:
        ConfigError: there are shards, but no utterance in them has one."""
    labelled = (utterance for path in shards for utterance in read_shard(path) if utterance.text)
    utterances: list[Utterance] = list(islice(labelled, MAX_UTTERANCES))
    if shards and not utterances:
        raise ConfigError(
            "no utterance of the test shards has a transcript",
            where=shards[0].parent,
            expected="labelled shards, for WER and delays",
            fix="Choose labelled shards, or omit them to measure only speed and memory.",
        )
    return utterances


def _timed_samples(utterances: Sequence[Utterance]) -> Any:
    size = _TIMED_SECONDS * SAMPLE_RATE_HZ
    if not utterances:
        return probe_sound(size, 1)
    return np.concatenate([utterance.samples for utterance in utterances])[:size]
