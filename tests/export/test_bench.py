"""`kdasr bench device` measures what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import export.bench
from export.bench import bench_device, measure_delays, open_aligner, table
from export.formats import available_formats, exporter
from export.parity import probe_sound
from export.transcribe import open_recogniser
from kdasr.errors import ConfigError, ExportError, ModelError
from kdasr.interfaces import Utterance
from kdasr.models import save_model
from kdasr.shards import write_shards
from tests.export.small_models import UNITS, conformer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    save_model(root / "student", conformer(), UNITS)
    write_shards(utterances(root), root / "test")
    return root


def utterances(root: Path) -> list[Utterance]:
    recogniser = open_recogniser(root / "student")
    audio = [probe_sound(30_000, seed) for seed in range(3)]
    return [Utterance(f"u{n}", one, text=recogniser.transcribe(one)) for n, one in enumerate(audio)]


@pytest.mark.slow
def test_every_engine_is_measured_and_shown(place: Path) -> None:
    figures = bench_device(
        place / "student", shards=sorted((place / "test").glob("*.tar")), aligner=place / "student"
    )
    assert figures["latency_ms"] == 217.5 and figures["parameters"] == 53_725
    engines = figures["engines"]
    assert {"torch", "onnx float32", "onnx int8", "wave-onnx float32", "wave-onnx int8"} <= set(engines)
    for row in engines.values():
        assert 0 < row["rtf"] < 1 and 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["peak_mib"] > row["model_mib"] >= 0 and row["load_s"] > 0
    assert engines["onnx int8"]["bytes"] < engines["onnx float32"]["bytes"]
    lines = table(figures)
    assert "latency 217.5 ms" in lines[0] and any(line.startswith("onnx int8") for line in lines)
    assert any("texts differ" in line for line in lines)


def test_a_model_aligned_by_itself_has_no_emission_delay(place: Path) -> None:
    student = open_recogniser(place / "student")
    delays = measure_delays(student, utterances(place), open_aligner(place / "student", student))
    assert (delays.utterances, delays.texts_differ, delays.wer_offline) == (3, 0, 0.0)
    assert delays.wer_streaming == delays.wer_offline
    assert delays.emission_p50_ms == 0 and delays.emission_p90_ms is not None and delays.emission_p90_ms <= 40
    # No text can be there before chunk, lookahead and window are.
    assert delays.first_token_p50_ms is not None and 40 < delays.first_token_p50_ms <= 240


def test_without_an_aligner_there_are_no_delays(place: Path) -> None:
    delays = measure_delays(open_recogniser(place / "student"), utterances(place))
    assert delays.emission_p50_ms is None and delays.first_token_p90_ms is None


def test_a_transcript_that_does_not_fit_is_counted(place: Path) -> None:
    long = Utterance("long", probe_sound(8_000, 1), text="abcdefghijklmnopqrstuvwxyz")
    student = open_recogniser(place / "student")
    delays = measure_delays(student, [long], student)
    assert delays.not_aligned == 1 and delays.emission_p50_ms is None


def test_an_aligner_with_other_units_is_refused(place: Path, tmp_path: Path) -> None:
    recogniser = open_recogniser(place / "student")
    exporter("onnx")(conformer(), UNITS, tmp_path, int8=False)
    with pytest.raises(ModelError, match="cannot align for the student.*an exported model"):
        open_aligner(tmp_path, recogniser)


def test_an_engine_that_dies_is_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = exporter("onnx")

    def damaged(*arguments: Any) -> Any:
        exported = real(*arguments)
        exported.float_path.write_bytes(b"damaged")
        return exported

    monkeypatch.setitem(export.bench.FORMATS, "onnx", damaged)
    with pytest.raises(ExportError, match="an engine failed.*cannot read the file"):
        bench_device(place / "student", formats=["onnx"])


def test_formats_are_known_by_name() -> None:
    assert {"onnx", "wave-onnx"} <= set(available_formats())
    with pytest.raises(ConfigError, match="expected onnx or wave-onnx"):
        exporter("tflite")
