"""The verbs that run models, as they are typed."""

from __future__ import annotations

import functools
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import soundfile

import export.bench
import export.demo_page
from export.parity import probe_sound
from export.publish import export_student
from kdasr.cli import main
from kdasr.interfaces import Utterance
from kdasr.models import save_model
from kdasr.pipeline import VERBS
from kdasr.shards import write_shards
from tests.export.small_models import ALL, UNITS, conformer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("commands")
    student = conformer(num_layers=1)
    save_model(root / "student", student, UNITS)
    export_student(student, UNITS, root / "onnx", int8=False)
    soundfile.write(root / "a.wav", probe_sound(40_000, 1), 16_000)
    return root


def test_transcribe_prints_one_text_for_every_way(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wav = str(place / "a.wav")
    for options in (["--model", "student"], ["--model", "onnx"], ["--model", "onnx", "--stream"]):
        options[1] = str(place / options[1])
        assert main(["transcribe", *options, wav]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and len(set(lines)) == 1 and lines[0].startswith(f"{wav}\t")


def test_json_lines_and_chunk_ms(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, wav = str(place / "student"), str(place / "a.wav")
    assert main(["transcribe", "--model", model, "--json", "--stream", "--chunk-ms", "80", wav]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["type"] == "final" and lines[-1]["words"] and len(lines) > 3


def test_pcm_on_standard_input(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = soundfile.read(place / "a.wav", dtype="int16")[0].astype("<i2").tobytes()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert main(["transcribe", "--model", str(place / "onnx"), "--no-endpoint", "-"]) == 0
    piped = capsys.readouterr().out
    main(["transcribe", "--model", str(place / "onnx"), str(place / "a.wav")])
    assert piped.split("\t")[1] == capsys.readouterr().out.split("\t")[1]


def test_a_list_of_words_becomes_a_graph(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tea", "milk"):
        (tmp_path / name).write_text(name)
    command = ["decoding-graph", "--model", str(place / "student"), "--out", str(tmp_path / "words.fst")]
    assert main([*command, "--lexicon", str(tmp_path / "tea"), "--lexicon", str(tmp_path / "milk")]) == 0
    size = (tmp_path / "words.fst").stat().st_size
    assert re.search(
        rf"words\.fst: 2 words, \d+ states, \d+ arcs, {size:,} bytes\n$", capsys.readouterr().out
    )


def test_phrases_among_words_are_told_of_by_every_command(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.txt").write_text("turn on\noff\n")
    with_words = ["--model", str(place / "onnx"), "--lexicon", str(tmp_path / "words.txt")]
    assert main(["decoding-graph", *with_words, "--out", str(tmp_path / "words.fst")]) == 0
    assert "words.fst: 3 words, " in capsys.readouterr().out
    assert main(["transcribe", *with_words, str(place / "a.wav")]) == 0
    told = f"{tmp_path}/words.txt: 1 line has several words: each counts as a separate word"
    assert caplog.messages == [told, told]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transcribe", "--model", "MODEL"], "nothing to transcribe"),
        (["transcribe", "--model", "MODEL", "--chunk-ms", "50", "a.wav"], "a multiple of 40"),
        (["transcribe", "--model", "nowhere", "a.wav"], "there is no model here"),
        (["export", "--model", "MODEL", "--out", "OUT", "--format", "tflite"], "unknown export format"),
        (["export", "--model", "MODEL", "--out", "OUT", "--fromat=onnx"], "unknown option --fromat"),
        (
            ["export", "--model", "MODEL", "--out", "OUT", "--dev", "[a, 3]"],
            "--dev: the value cannot be used",
        ),
        (
            ["export", "--model", "MODEL", "--out", "OUT", "--max-wer-rise", "0.3"],
            "--max-wer-rise: this option has no effect here; expected an int8 file, and --dev SHARDS to "
            "measure its WER on; got no dev shards",
        ),
        (
            ["export", "--model", "MODEL", "--out", "OUT", "--dev", "[]", "--max-wer-rise=0.3"],
            "got no dev shards",
        ),
        (
            ["export", "--model", "MODEL", "--out", "OUT", "--dev", "a", "--no-int8", "--max-wer-rise=0.3"],
            "--max-wer-rise: this option has no effect here; expected an int8 file, and --dev SHARDS to "
            "measure its WER on; got no int8 file",
        ),
        (["bench", "device", "--model", "nowhere"], "there is no model in this folder"),
        (
            ["demo-page", "--model", "ONNX"],
            "this export takes features, but the page needs one that takes samples",
        ),
    ],
)
def test_mistakes_are_told_in_one_line(
    place: Path,
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(export.demo_page, "npm_package", lambda name, version: tmp_path)
    places = {"MODEL": place / "student", "ONNX": place / "onnx", "OUT": tmp_path / "out"}
    assert main([str(places.get(word, word)) for word in arguments]) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told and len(told.splitlines()) == 1


def test_export_knows_formats_and_chunks(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "wave"
    arguments = ["export", "--model", str(place / "student"), "--out", str(out), "--format", "wave-onnx"]
    assert main([*arguments, "--chunk-ms", "320", "--name", "mine", "--no-int8"]) == 0
    assert re.fullmatch(
        rf"{out}/model\.wave\.onnx\t1\.\d\d MB, log-probs within \S+ of torch, 100\.0% of .*\n",
        capsys.readouterr().out,
    )
    assert not (out / "model.wave.int8.onnx").exists()
    card = json.loads((out / "model.json").read_text())
    assert (
        card["name"] == "mine" and card["file_format"] == "wave-onnx" and card["streaming"]["chunk_ms"] == 320
    )
    assert main(["transcribe", "--model", str(out), str(place / "a.wav")]) == 0
    assert "a.wav\t" in capsys.readouterr().out


def test_export_takes_lists_and_truths_as_recipes_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def export(**given: object) -> dict[str, object]:
        calls.append({name: value for name, value in given.items() if name in ("dev", "int8")})
        return {"files": {}, "refused": {}}

    monkeypatch.setattr("kdasr.stages.export", export)
    for words, expected in (
        (["--dev", "a", "--dev", "b"], {"dev": ["a", "b"]}),
        (["--dev", "[a, b]", "--dev=c", "--int8", "false"], {"dev": ["a", "b", "c"], "int8": False}),
        (["--dev", "[]", "--int8=True"], {"dev": [], "int8": True}),
        (["--int8"], {"int8": True}),
        (["--no-int8"], {"int8": False}),
        ([], {}),
    ):
        assert main(["export", "--model", str(place / "student"), "--out", "x", *words]) == 0
        assert calls.pop() == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-wer-rise", "0.3"], None),
        (["--no-int8"], None),
        (["--dev", "[]"], None),
        (["--max-wer-rise", "0.3", "--no-int8"], "got no int8 file"),
        (["--max-wer-rise", "0.3", "--dev", "[]"], "got no dev shards"),
    ],
)
def test_a_limit_of_a_recipe_may_be_left_unused_and_one_that_is_typed_may_not(
    place: Path,
    tmp_path: Path,
    words: list[str],
    message: str | None,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ran = []

    @functools.wraps(VERBS["export"])  # its settings are those that may be given
    def export(**given: object) -> dict[str, object]:
        ran.append(given)
        return {"files": {}, "refused": {}}

    monkeypatch.setitem(VERBS, "export", export)
    recipe = tmp_path / "export.yaml"
    recipe.write_text(
        f"stage: export\nwork_dir: {tmp_path}\nmodel: {place}/student\nout: {tmp_path}/out\n"
        f"dev: [{tmp_path}/dev]\nmax_wer_rise: 1000\n"
    )
    assert main(["export", str(recipe), *words]) == (0 if message is None else 2)
    assert len(ran) == (message is None)
    assert message is None or message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "chunk_ms", "told"),
    [
        (
            {},
            "80",
            "chunks of 80 ms are smaller than those used in training (160 ms), which reduces accuracy; ",
        ),
        ({}, "160", ""),
        pytest.param({}, "320", "", marks=pytest.mark.slow),
        pytest.param(
            {"dynamic_chunks": [0, 2, 8]},
            "40",
            "chunks of 40 ms are smaller than those used in training (full context, 80 ms, 320 ms), which ",
            marks=pytest.mark.slow,
        ),
        pytest.param({"dynamic_chunks": [0, 2, 8]}, "160", "", marks=pytest.mark.slow),
        pytest.param(
            {"chunk_frames": 0},
            "160",
            "chunks of 160 ms are smaller than those used in training (full context), ",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_chunks_smaller_than_those_of_the_training_are_told_of(
    tmp_path: Path, changes: dict[str, Any], chunk_ms: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "student", conformer(num_layers=1, **changes), UNITS)
    arguments = ["export", "--model", str(tmp_path / "student"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--no-int8", "--chunk-ms", chunk_ms]) == 0
    err = capsys.readouterr().err
    assert err.startswith(told) and bool(err) == bool(told) == err.endswith("; measure it with --dev\n")


def test_to_measure_what_smaller_chunks_cost_is_not_proposed_where_it_is_measured(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards([Utterance("only", probe_sound(20_000, 1), text="one two")], tmp_path / "dev")
    arguments = ["export", "--model", str(place / "student"), "--out", str(tmp_path / "out"), "--no-int8"]
    assert main([*arguments, "--chunk-ms", "80", "--dev", str(tmp_path / "dev")]) == 0
    assert capsys.readouterr().err == (
        "chunks of 80 ms are smaller than those used in training (160 ms), which reduces accuracy\n"
    )


def test_a_recurrent_student_is_as_good_in_chunks_of_any_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(tmp_path / "student", ALL["lstm"](), UNITS)
    arguments = ["export", "--model", str(tmp_path / "student"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--no-int8", "--chunk-ms", "40"]) == 0
    assert capsys.readouterr().err == ""


def test_export_without_its_int8_file_ends_with_status_1(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out = tmp_path / "dev", tmp_path / "onnx"
    write_shards([Utterance("only", probe_sound(20_000, 1), text="one two")], shards)
    arguments = ["export", "--model", str(place / "student"), "--out", str(out), "--dev", str(shards)]
    assert main([*arguments, "--max-wer-rise", "1000"]) == 0
    assert (out / "model.int8.onnx").exists()
    capsys.readouterr()
    assert main([*arguments, "--max-wer-rise=-1000"]) == 1
    printed = capsys.readouterr()
    assert re.fullmatch(
        rf"{out}/model\.onnx\t.* WER .* over the 2 words of {tmp_path.name}/dev\n", printed.out
    )
    assert re.fullmatch(
        rf"kdasr: {out}/model\.int8\.onnx was not written: int8 costs too much accuracy; .* of 2 words.*\n",
        printed.err,
    )
    assert (out / "model.onnx").exists() and not (out / "model.int8.onnx").exists()


@pytest.mark.slow
def test_bench_device_prints_and_writes_its_figures(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.bench, "available_formats", list)
    out = tmp_path / "figures.json"
    assert (
        main(["bench", "device", "--model", str(place / "student"), "--out", str(out), "--rounds", "1"]) == 0
    )
    figures = json.loads(out.read_text())
    assert set(figures["engines"]) == {"torch"} and figures["delays"] is None
    assert "algorithmic latency 207.5 ms" in capsys.readouterr().out


def test_demo_page_says_where_it_is(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(page: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(export.demo_page, "npm_package", lambda name, version: tmp_path)
    monkeypatch.setattr(export.demo_page.DemoPage, "serve", interrupted)
    assert main(["demo-page", "--model", str(place / "student"), "--port", "0"]) == 0
    assert capsys.readouterr().out.startswith("http://127.0.0.1:")
