"""`kdasr bench device` measures what it says."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import export.bench
import export.publish
from export.bench import bench_device, streaming_wer, table, time_engines
from export.card import write_card
from export.delays import Delays
from export.formats import available_formats, format_class
from export.parity import Agreement, probe_sound
from export.publish import export_student
from kdasr.errors import ConfigError, ExportError, ModelError
from kdasr.interfaces import Utterance
from kdasr.models import save_model
from kdasr.shards import write_shards
from tests.export.small_models import UNITS, conformer, recurrent
from tests.export.test_delays import utterances


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    save_model(root / "student", conformer(), UNITS)
    write_shards(utterances(root), root / "test")
    return root


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exported")
    export_student(conformer(), UNITS, root)
    return root


@pytest.mark.slow
def test_every_engine_is_measured_and_shown(place: Path) -> None:
    figures = bench_device(
        place / "student", shards=sorted((place / "test").glob("*.tar")), aligner=place / "student", rounds=1
    )
    assert figures["latency_ms"] == 207.5 and figures["parameters"] == 53_725
    engines = figures["engines"]
    assert {"torch", "onnx float32", "onnx int8", "wave-onnx float32", "wave-onnx int8"} <= set(engines)
    for row in engines.values():
        assert 0 < row["rtf"] < 1 and 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
        assert row["rtf"] == row["rtf_median"] < 1
        assert row["peak_mib"] > row["model_mib"] > 0 and row["load_s"] > 0
    for name in ("torch", "onnx float32", "wave-onnx float32"):
        assert engines[name]["wer"] == figures["delays"]["wer_streaming"] == figures["delays"]["wer_offline"]
    assert engines["torch"]["bytes"] == (place / "student" / "model.safetensors").stat().st_size
    assert set(figures["export_s"]) == set(available_formats())
    assert all(0 < seconds < 60 for seconds in figures["export_s"].values())
    assert engines["onnx int8"]["bytes"] < engines["onnx float32"]["bytes"]
    lines = table(figures)
    assert "latency 207.5 ms" in lines[0] and any(line.startswith("onnx int8") for line in lines)
    assert any("texts differ" in line for line in lines) and any("export to onnx" in line for line in lines)
    assert figures["refused"] == {} and not any("left out" in line for line in lines)


@pytest.mark.parametrize("gone", [None, "model.onnx"])
def test_the_files_of_an_export_are_measured_as_they_are(
    place: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: str | None
) -> None:
    shutil.copytree(exported, tmp_path / "out")
    card = json.loads((exported / "model.json").read_text())
    if gone is not None:
        (tmp_path / "out" / gone).unlink()
    timed: dict[str, Path] = {}

    def time_them(engines: dict[str, Path], *arguments: Any) -> dict[str, dict[str, Any]]:
        timed.update(engines)
        return {name: {"rtf": 0.1} for name in engines}

    monkeypatch.setattr(export.bench, "time_engines", time_them)
    monkeypatch.setattr(export.bench, "export_student", None)  # nothing is exported anew
    figures = bench_device(tmp_path / "out", shards=sorted((place / "test").glob("*.tar")), rounds=1)
    names = {"onnx float32": "model.onnx", "onnx int8": "model.int8.onnx"}
    assert timed == {name: tmp_path / "out" / file for name, file in names.items() if file != gone}
    assert figures["parameters"] == card["student"]["parameters"] == 53_725
    assert figures["latency_ms"] == 207.5 and figures["export_s"] == {}
    assert figures["refused"] == ({} if gone is None else {"onnx float32": f"{gone} is missing"})
    assert figures["engines"]["onnx int8"]["bytes"] == card["files"]["int8"]["bytes"]
    assert figures["delays"]["texts_differ"] == 0 and figures["engines"]["onnx int8"]["wer"] < 100


@pytest.mark.parametrize("model", ["student", "export"])
def test_an_int8_file_that_its_export_refused_is_said_to_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    def refused(agreement: Agreement) -> None:
        raise ExportError("another model")

    monkeypatch.setattr(export.publish, "_require_resemblance", refused)
    monkeypatch.setattr(export.bench, "time_engines", lambda engines, *rest: {name: {} for name in engines})
    student = conformer(num_layers=1)
    if model == "export":
        export_student(student, UNITS, tmp_path)
    else:
        save_model(tmp_path, student, UNITS)
    figures = bench_device(tmp_path, formats=["onnx"])
    assert set(figures["engines"]) == {"onnx float32"} | ({"torch"} if model == "student" else set())
    assert figures["refused"] == {"onnx int8": "another model"}
    assert "onnx int8 was not measured: another model" in table({**figures, "engines": {}})


def test_the_fastest_of_rounds_in_turn_is_given_and_the_median(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rtfs = iter([0.3, 0.6, 0.1, 0.4, 0.2, 0.5])  # of the first engine, of the second, of the first, …

    def run(path: Path, audio: Path) -> dict[str, float]:
        rtf = next(rtfs)
        return {"rtf": rtf, "cpu_rtf": 1 - rtf, "p50_ms": 100 * rtf}

    monkeypatch.setattr(export.bench, "_run_worker", run)
    assert time_engines({"a": tmp_path, "b": tmp_path}, [], tmp_path, rounds=3) == {
        "a": {"rtf": 0.1, "rtf_median": 0.2, "cpu_rtf": 0.7, "p50_ms": 10.0},
        "b": {"rtf": 0.4, "rtf_median": 0.5, "cpu_rtf": 0.4, "p50_ms": 40.0},
    }


def test_an_export_without_its_files_is_said_so(tmp_path: Path) -> None:
    for path in export_student(recurrent(), UNITS, tmp_path).float_path.parent.glob("*.onnx"):
        path.unlink()
    with pytest.raises(ModelError, match=r"model\.onnx: the model file does not exist"):
        bench_device(tmp_path)


@pytest.mark.slow
def test_an_export_is_timed(tmp_path: Path) -> None:
    card = export_student(conformer(), UNITS, tmp_path, int8=False).card
    card["student"]["parameters"] = None
    write_card(card, tmp_path / "model.json")
    figures = bench_device(tmp_path, rounds=1)
    assert 0 < figures["engines"]["onnx float32"]["rtf"] < 1
    assert "? parameters, algorithmic latency 207.5 ms" in table(figures)[0]


def test_utterances_without_delays_are_told() -> None:
    delays = Delays(9, 1.0, 1.0, 0, 40.0, 80.0, 250.0, 370.0, not_aligned=1, shown_at_end=2, nothing_said=3)
    figures = {
        "model": "m",
        "parameters": 1,
        "latency_ms": 80.0,
        "engines": {},
        "refused": {},
        "export_s": {},
    }
    assert table({**figures, "delays": asdict(delays)})[-4:] == [
        "first-token delay: P50 +250 ms, P90 +370 ms",
        "2 utterances showed text only at the end",
        "3 utterances gave no delays: the student emitted nothing",
        "1 utterance gave no delays: the transcript does not fit the aligner's frames",
    ]
    none = replace(delays, not_aligned=0, shown_at_end=0, nothing_said=0)
    assert "utterances" not in table({**figures, "delays": asdict(none)})[-1]


def test_the_error_rate_is_that_of_the_transcripts(place: Path) -> None:
    right = utterances(place)
    wrong = [replace(utterance, text="none of it") for utterance in right]
    assert streaming_wer(place / "student", right) == 0
    assert streaming_wer(place / "student", wrong) >= 100


@pytest.mark.slow
def test_an_engine_that_dies_is_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*arguments: Any, **settings: Any) -> Any:
        exported = export_student(*arguments, **settings)
        exported.float_path.write_bytes(b"damaged")
        return exported

    monkeypatch.setattr(export.bench, "export_student", damaged)
    with pytest.raises(ExportError, match="the engine failed.*not the one that was exported"):
        bench_device(place / "student", formats=["onnx"])


def test_shards_without_transcripts_are_refused(place: Path, tmp_path: Path) -> None:
    shards = write_shards([Utterance("u", probe_sound(30_000, 0), text=None)], tmp_path)
    with pytest.raises(ConfigError, match=f"{tmp_path}: no utterance of the test shards has a transcript"):
        bench_device(place / "student", shards=shards, formats=[], rounds=1)


def test_delays_without_test_audio_are_refused(place: Path) -> None:
    with pytest.raises(ConfigError, match="--aligner: delays can only be measured on test audio"):
        bench_device(place / "student", aligner=place / "student", formats=[], rounds=1)


def test_there_is_at_least_one_round(place: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="--rounds: each engine must be timed at least once; expected >= 1; got 0"
    ):
        bench_device(place / "student", rounds=0)
    with pytest.raises(ConfigError, match="rounds"):
        time_engines({"torch": place / "student"}, [], tmp_path, rounds=-1)


def test_formats_are_known_by_name() -> None:
    assert {"onnx", "wave-onnx"} <= set(available_formats())
    with pytest.raises(ConfigError, match="expected onnx or wave-onnx"):
        format_class("tflite")
