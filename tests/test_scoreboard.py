"""One model at several chunk sizes is several rows of results."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from data_prep import prepare
from kdasr import scoreboard, stages
from kdasr.decoding import Token
from kdasr.errors import ConfigError, ModelError, ShardError
from kdasr.evaluation import Heard, Result
from kdasr.models import load_model, save_model
from kdasr.results import hypotheses_file
from kdasr.scoreboard import Scoreboard, check_model_of_row, check_row
from kdasr.shards import list_shards, read_shard, write_shards
from kdasr.spikes import read_histogram
from kdasr.streaming import StreamingSession
from kdasr.students.conformer import ChunkConformer
from kdasr.symbols import TableUnits
from kdasr.teachers.base import WAVEFORM, Teacher
from kdasr.text import CharUnits
from tests.speech import shards, utterance


@pytest.fixture(autouse=True)
def _few_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """200 chunks of each row are for measuring, which is tested where it is done."""
    few = functools.partial(scoreboard.measure_chunks, min_chunks=10)
    monkeypatch.setattr(scoreboard, "measure_chunks", few)


def save_student(folder: Path, seed: int) -> None:
    """A tiny student with weights of its own."""
    torch.manual_seed(seed)
    student = ChunkConformer(
        vocab_size=29, width=16, num_layers=1, num_heads=2, expansion=1, kernel_frames=3, lookahead_frames=0
    )
    save_model(folder, student, CharUnits(), extra={"training": {"train_steps": 5}})


def test_a_student_is_measured_at_the_chunk_that_is_asked_for(tmp_path: Path) -> None:
    save_student(tmp_path / "student", seed=1)
    test_shards = list_shards(shards(tmp_path / "test", 2))
    board = Scoreboard(test_shards, tmp_path / "results.json", seed=3)
    path = str(tmp_path / "student")
    own = board.add("own", path=path)
    short = board.add("short", path=path, chunk_ms=80, chunk_by_chunk=True)
    whole = board.add("whole", path=path, chunk_ms=0)
    assert (own["latency_ms"], short["latency_ms"], whole["latency_ms"]) == (327.5, 87.5, None)
    assert "chunk_p50_ms" in short and "chunk_p50_ms" not in whole and whole["rtf"] > 0
    assert [row["model"] for row in json.loads((tmp_path / "results.json").read_text())] == [
        "own",
        "short",
        "whole",
    ]
    with pytest.raises(ModelError, match="cannot run chunk by chunk"):
        board.add("impossible", path=path, chunk_ms=0, chunk_by_chunk=True)


def test_rows_whose_spikes_are_to_be_compared_are_looked_up_before_anything_is_measured(
    tmp_path: Path,
) -> None:
    results = tmp_path / "results.json"
    for spikes in (["student"], ["teacher", "pupil"], ["teacher", "student", "student"]):
        with pytest.raises(
            ConfigError, match=r"between two rows.*two of teacher, student, or null for no comparison"
        ):
            stages.evaluate(
                test=[str(shards(tmp_path / "test", 1))],
                models={"teacher": {"path": "none"}, "student": {"path": "none"}},
                results=str(results),
                spikes=spikes,
            )
    assert not results.exists()


def test_a_search_among_words_hears_the_same_chunk_by_chunk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_student(tmp_path / "student", seed=1)
    (tmp_path / "words.txt").write_text("a\nbe\nsee\n")
    board = Scoreboard(
        list_shards(shards(tmp_path / "test", 3)),
        tmp_path / "results.json",
        seed=3,
        decoder="beam",
        lexicon=[str(tmp_path / "words.txt")],
    )
    path = str(tmp_path / "student")
    board.add("student", path=path)
    row = board.add("live", path=path, chunk_by_chunk=True)
    # Of all rows once, and before the first.
    told = re.fullmatch(
        r"(\d+) of (\d+) reference words are not in the lexicon: (.*)\n", capsys.readouterr().err
    )
    assert told is not None and sorted(told[3].split(", ")) == ["b", "c"]
    assert row["texts_unlike_offline"] == 0
    assert (row["oov_words"], row["reference_words"]) == (int(told[1]), int(told[2]))
    heard = [one.hypothesis for one in board.heard["live"].heard]
    assert any(heard) and {word for text in heard for word in text.split()} <= {"a", "be", "see"}


def test_a_microphone_may_be_on_before_the_speech(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_student(tmp_path / "student", seed=1)
    test = shards(tmp_path / "test", 3)
    path = str(tmp_path / "student")
    heard: list[NDArray[np.float32]] = []

    def hear(session: StreamingSession, samples: NDArray[np.float32]) -> str:
        heard.append(samples)
        return "a"

    monkeypatch.setattr(StreamingSession, "hear", hear)
    for _ in range(2):
        board = Scoreboard(list_shards(test), tmp_path / "results.json", seed=3)
        board.add("whole", path=path)
        row = board.add("live", path=path, chunk_by_chunk=True, after_noise_s=0.5)
        assert row["after_noise_s"] == 0.5 and "texts_unlike_offline" not in row
    utterances = [one for shard in list_shards(test) for one in read_shard(shard)]
    for one, first, again in zip(utterances, heard[:3], heard[3:], strict=True):
        assert np.array_equal(first[8_000:], one.samples) and np.array_equal(first, again)
        assert 3e-4 < float(np.abs(first[:8_000]).mean()) < 3e-3, "its pauses have noise of 1e-3"
    assert not np.array_equal(heard[0][:8_000], heard[1][:8_000])
    live = {"chunk_by_chunk": True}
    for settings in (
        {"after_noise_s": 1.0},
        {"after_noise_s": -1.0, **live},
        {"after_noise_s": np.inf, **live},
    ):
        for check in (board.add, lambda name, **given: check_row(name, given)):
            with pytest.raises(ConfigError, match=r"models\.live\.after_noise_s: noise before the speech"):
                check("live", path=path, **settings)


def test_texts_that_are_others_chunk_by_chunk_are_counted_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("student", "other")):
        save_student(tmp_path / name, seed)
    board = Scoreboard(list_shards(shards(tmp_path / "test", 2)), tmp_path / "results.json", seed=3)
    path = str(tmp_path / "student")
    board.add("whole", path=path)
    monkeypatch.setattr(StreamingSession, "hear", lambda session, samples: "quite another text")
    assert board.add("live", path=path, chunk_by_chunk=True)["texts_unlike_offline"] == 2
    told = "live: 2 of 2 texts recognised chunk by chunk differ from those of whole, which processed whole"
    assert capsys.readouterr().err == f"{told} utterances; expected 0\n"
    # Of another model, or with other chunks, texts may be others.
    for row in (
        board.add("whole_streaming", path=str(tmp_path / "other"), chunk_by_chunk=True),
        board.add("short", path=path, chunk_ms=80, chunk_by_chunk=True),
    ):
        assert "texts_unlike_offline" not in row
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("when", ["between rows", "within a row"])
def test_rows_are_not_of_a_model_that_was_replaced_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def hear(session: StreamingSession, samples: NDArray[np.float32]) -> str:
        if when == "within a row":
            save_student(tmp_path / "student", seed=2)
        return "some text"

    save_student(tmp_path / "student", seed=1)
    board = Scoreboard(list_shards(shards(tmp_path / "test", 2)), tmp_path / "results.json", seed=3)
    path = str(tmp_path / "student")
    board.add("whole", path=path)
    monkeypatch.setattr(StreamingSession, "hear", hear)
    if when == "between rows":
        save_student(tmp_path / "student", seed=2)
    with pytest.raises(ModelError, match="student: the model was replaced while it was being measured"):
        board.add("live", path=path, chunk_by_chunk=True)
    assert [row["model"] for row in json.loads((tmp_path / "results.json").read_text())] == ["whole"]


@pytest.mark.slow
def test_a_file_that_its_export_refused_is_left_out_and_the_row_says_why(tmp_path: Path) -> None:
    save_student(tmp_path / "student", seed=1)
    shards(tmp_path / "test", 2)

    def run(max_wer_rise: float) -> tuple[dict[str, Any], dict[str, Any]]:
        """What the evaluation says of int8, and its row."""
        model, out, results = str(tmp_path / "student"), tmp_path / "onnx", tmp_path / "results.json"
        dev = [str(tmp_path / "test")]
        stages.export(model=model, out=str(out), dev=dev, max_wer_rise=max_wer_rise)
        rows = {
            name: {"path": str(out / name), "trained": model} for name in ("model.onnx", "model.int8.onnx")
        }
        said = stages.evaluate(test=dev, models=rows, results=str(results), seed=3)
        assert said["model.onnx"].startswith("WER ")
        return said["model.int8.onnx"], json.loads(results.read_text())[1]

    heard = tmp_path / "hypotheses" / "model.int8.onnx-3.jsonl"
    said, row = run(1_000)
    assert said == f"WER {row['wer']:.2f} %" and heard.exists()
    said, row = run(-1_000)
    assert said == f"left out: {row['missing']}" and row["missing"].startswith("int8 costs too much accuracy")
    assert set(row) == {"model", "seed", "missing", "decoder", "words", "test_audio"} and row["seed"] == 3
    # What the file of the export before heard is not kept for this one's.
    assert not heard.exists()
    said, row = run(1_000)
    assert said == f"WER {row['wer']:.2f} %" and heard.exists()


class SaysOneThing:
    """A teacher of samples that writes "Good A" whatever it hears, or another word in the place of "A"."""

    vocab_size, subsampling = 5, 2

    def __init__(self, word: str = "A") -> None:
        self.config: dict[str, Any] = {}
        self.word = word

    def load(self, device: str) -> Teacher:
        units = TableUnits.from_foreign(["Go", "o", "d", f"\u2581{self.word}", "<blank>"], blank_id=4)
        return Teacher(self, "one", "w", units, front_end=WAVEFORM)

    def offline(self, samples_bn: torch.Tensor, lengths_b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert samples_bn.shape == (1, int(lengths_b[0])), "samples, one utterance at a time"
        path = torch.tensor([1, 0, 2, 2, 3, 4])
        return torch.nn.functional.one_hot(path, 5)[None].float().log_softmax(-1), torch.tensor([len(path)])


def test_a_pretrained_teacher_has_a_row_too_and_its_text_is_normalised(tmp_path: Path) -> None:
    board = Scoreboard(list_shards(shards(tmp_path / "test", 2)), tmp_path / "results.json", seed=3)
    row = board.add("teacher", path=SaysOneThing())
    assert (
        row["rtf"] is None
        and row["latency_ms"] is None
        and row["params"] is None
        and row["bytes"] is None
        and row["wer"] > 0
    )
    assert json.loads((tmp_path / "results.json").read_text()) == [row] and "not_normal" not in row
    lines = (tmp_path / "hypotheses" / "teacher-3.jsonl").read_text().splitlines()
    assert [json.loads(line)["hypothesis"] for line in lines] == ["good a"] * 2
    for setting in ({"chunk_by_chunk": True}, {"trained": "a"}, {"chunk_ms": 320}, {"after_noise_s": 2.0}):
        with pytest.raises(ConfigError, match="whole utterances"):
            board.add("teacher", path=SaysOneThing(), **setting)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"models\.teacher\.path"):
        board.add("teacher", path=3)  # type: ignore[arg-type]
    assert board.add("other", path=SaysOneThing("7"))["not_normal"] == 2


class SaysItByWeights(torch.nn.Module):
    """A teacher of ten weights in half precision, of one kind or another."""

    vocab_size, subsampling, offline = 5, 2, SaysOneThing.offline

    def __init__(self, level: Literal["frame", "sequence"]) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.level: Literal["frame", "sequence"] = level
        self.weight = torch.nn.Parameter(torch.zeros(2, 5, dtype=torch.float16))

    def load(self, device: str) -> Teacher:
        units = SaysOneThing().load(device).units
        return Teacher(self, "ten", "w", units, front_end=WAVEFORM, level=self.level)


def test_the_size_of_a_pretrained_teacher_is_that_of_its_weights(tmp_path: Path) -> None:
    board = Scoreboard(list_shards(shards(tmp_path / "test", 1)), tmp_path / "results.json", seed=3)
    row = board.add("teacher", path=SaysItByWeights("frame"))
    assert (row["params"], row["bytes"]) == (10, 20)
    with pytest.raises(ConfigError, match=r"models\.whisper: only teachers that give posteriors.*got ten"):
        board.add("whisper", path=SaysItByWeights("sequence"))


def test_a_row_says_what_was_measured_on_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_student(tmp_path / "student", seed=1)
    some, silent = (utterance(f"utt-{n}", n, with_text=n == 0) for n in range(2))
    paths = write_shards([some, silent], tmp_path / "test")
    timing = SimpleNamespace(p50_ms=8.0, p95_ms=30.0, chunk_ms=80.0)
    monkeypatch.setattr(scoreboard, "measure_chunks", lambda *_, **__: timing)
    board = Scoreboard(paths, tmp_path / "results.json", seed=3, test="clean")
    row = board.add("live", path=str(tmp_path / "student"), chunk_by_chunk=True)
    model = load_model(tmp_path / "student").model
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert (row["test"], row["params"], row["train_steps"]) == ("clean", weights, 5)
    assert row["bytes"] == (tmp_path / "student/model.safetensors").stat().st_size
    # Of the median chunk.
    assert (row["rtf"], row["chunk_p50_ms"], row["chunk_p95_ms"]) == (0.1, 8.0, 30.0)
    assert row["without_transcript"] == 1 and "not_normal" not in row and "oov_words" not in row
    wrong = row["substitutions"] + row["deletions"] + row["insertions"]
    assert row["reference_words"] == len((some.text or "").split())
    assert row["wer"] == round(100 * wrong / row["reference_words"], 3)
    other = Scoreboard(paths * 2, tmp_path / "results.json", seed=3)
    assert len(row["test_audio"]) == 16 and other.measured["test_audio"] != row["test_audio"]


def test_a_row_says_how_much_of_its_test_set_was_left_out_by_prepare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_student(tmp_path / "student", seed=1)
    for name, text in (("1", "a b"), ("2", "7 seas"), ("3", "c"), ("4", "no. 4")):
        (tmp_path / "corpus").mkdir(exist_ok=True)
        soundfile.write(tmp_path / f"corpus/{name}.wav", utterance(name, int(name)).samples, 16_000)
        (tmp_path / f"corpus/{name}.txt").write_text(text)
    prepare("folder", corpus=tmp_path / "corpus", out=tmp_path / "shards", transcripts=True)
    model, results = {"path": str(tmp_path / "student")}, tmp_path / "results.json"
    part, whole = str(tmp_path / "shards/labelled"), str(shards(tmp_path / "whole", 1))
    capsys.readouterr()
    stages.evaluate(
        test={"part": [part], "both": [whole, part], "whole": [whole]},
        models={"s": model},
        results=str(results),
    )
    told = "2 of 4 listed utterances were left out by prepare (dropped.json says why)"
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "left out" in line] == [f"part: {told}", f"both: {told}"]
    rows = json.loads(results.read_text())
    assert [(row.get("left_out"), row.get("listed")) for row in rows] == [(2, 4), (2, 4), (None, None)]
    stages.evaluate(test=[part], models={"s": model}, results=str(results))
    assert f"test set: {told}\n" in capsys.readouterr().err


def test_words_that_a_search_cannot_hear_are_named_the_most_frequent_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = utterance("utt-0", 0)
    said = [f"a {'z ' * 3}y", "z", " ".join("bcdefghijk"), None]
    heard = [replace(some, key=f"utt-{n}", text=text) for n, text in enumerate(said)]
    paths = write_shards(heard, tmp_path / "test")
    (tmp_path / "words.txt").write_text("a\n")
    words = {"decoder": "beam", "lexicon": [str(tmp_path / "words.txt")], "seed": 3}
    board = Scoreboard(paths, tmp_path / "results.json", test="clean", **words)
    assert board.oov_words == 15
    assert capsys.readouterr().err == (
        "clean: 15 of 16 reference words are not in the lexicon: z, y, b, c, d, e, f, g, h, i, …\n"
    )
    odd = write_shards([replace(some, text="a\x1b]0;title\x07")], tmp_path / "odd")
    assert Scoreboard(odd, tmp_path / "results.json", **words).oov_words == 1
    assert r"not in the lexicon: a\u001b]0;title\u0007" in capsys.readouterr().err
    (tmp_path / "words.txt").write_text(" ".join("abcdefghijkyz"))
    assert Scoreboard(paths, tmp_path / "results.json", **words).oov_words == 0
    assert capsys.readouterr().err == ""


def test_words_are_told_apart_whatever_their_order(tmp_path: Path) -> None:
    test_shards = list_shards(shards(tmp_path / "test", 1))
    hashes = []
    for words in ("a\nbe\n", "be\na\n", "a\nsee\n"):
        (tmp_path / "words.txt").write_text(words)
        board = Scoreboard(
            test_shards, tmp_path / "r.json", seed=3, decoder="beam", lexicon=[str(tmp_path / "words.txt")]
        )
        hashes.append(board.measured["words"])
    assert hashes[0] == hashes[1] != hashes[2] and len(str(hashes[0])) == 16


def test_the_example_has_several_words_if_there_is_one(tmp_path: Path) -> None:
    for folder, counts, place in (("a", (2, 4, 3), 1), ("b", (2, 1), 0)):
        said = [utterance(f"utt-{n}", n, words=count) for n, count in enumerate(counts)]
        board = Scoreboard(write_shards(said, tmp_path / folder), tmp_path / "results.json", seed=3)
        assert soundfile.info(board.write_example()).frames == len(said[place].samples)


def test_an_example_that_the_disk_does_not_take_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libsndfile says nothing of a disk that is full when it completes the header."""
    board = Scoreboard(write_shards([utterance("utt", 0)], tmp_path / "a"), tmp_path / "r.json", seed=3)

    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("kdasr.scoreboard.commit_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        board.write_example()
    assert not (tmp_path / "example.wav").exists()


def test_a_file_that_was_exported_from_other_weights_is_refused(tmp_path: Path) -> None:
    for seed, name in enumerate(("before", "after")):
        save_student(tmp_path / name, seed=seed)
    stages.export(model=str(tmp_path / "before"), out=str(tmp_path / "onnx"), int8=False)
    board = Scoreboard(list_shards(shards(tmp_path / "test", 2)), tmp_path / "results.json", seed=3)
    path = str(tmp_path / "onnx" / "model.onnx")
    assert board.add("onnx", path=path, trained=str(tmp_path / "before"))["train_steps"] == 5
    with pytest.raises(ModelError, match=r"models\.onnx: the file was exported from other weights.*Export"):
        board.add("onnx", path=path, trained=str(tmp_path / "after"))


def test_a_lexicon_without_a_search_is_refused_before_any_row(tmp_path: Path) -> None:
    test_shards = list_shards(shards(tmp_path / "test", 1))
    with pytest.raises(ConfigError, match="lexicon can be used only with beam search"):
        Scoreboard(test_shards, tmp_path / "results.json", seed=3, lexicon=["words.txt"])


def test_a_lexicon_that_is_not_there_is_told_with_a_way_out(tmp_path: Path) -> None:
    test_shards = list_shards(shards(tmp_path / "test", 1))
    with pytest.raises(
        ConfigError,
        match=r"file or folder with the words .*does not exist.* `--lexicon null` searches without one\.$",
    ):
        Scoreboard(test_shards, tmp_path / "results.json", seed=3, decoder="beam", lexicon=["gone.txt"])


def test_spikes_are_compared_of_models_that_have_the_same_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    test_shards = list_shards(shards(tmp_path / "test", 2))
    renamed = TableUnits([CharUnits().symbols[0], *reversed(CharUnits().symbols[1:])])
    for name, units in (("teacher", CharUnits()), ("student", CharUnits()), ("foreign", renamed)):
        model = ChunkConformer(vocab_size=units.vocab_size, width=16, num_layers=1)
        save_model(tmp_path / name, model, units, extra={"training": {"train_steps": 5}})
    board = Scoreboard(test_shards, tmp_path / "results.json", seed=3)
    for name in ("teacher", "student", "foreign"):
        board.add(name, path=str(tmp_path / name))
    board.add("chunks", path=str(tmp_path / "student"), chunk_by_chunk=True)
    board.compare_spikes("teacher", "student")
    histogram = read_histogram(tmp_path / "spike_offsets.json")
    assert histogram.whose == "student against those of teacher, seed 3"
    board.test = "clean"
    for name, frame in (("teacher", 2), ("student", 5)):
        token = Token(3, frame, 0.0)
        board.heard[name] = Result(board.heard[name].errors, [Heard("a", "a", "a", [token])], 1.0, 0)
    board.compare_spikes("teacher", "student")
    histogram = read_histogram(tmp_path / "spike_offsets.json")
    # Three output frames of four times 10 ms later.
    assert (histogram.offsets_ms, histogram.counts, histogram.frame_shift_ms) == ([120.0], [1], 40.0)
    assert histogram.whose == "student against those of teacher, seed 3 on clean"
    with pytest.raises(
        ConfigError, match=r"same units and frame rate.* as in teacher; got 4 and .* in foreign"
    ):
        board.compare_spikes("teacher", "foreign")
    with pytest.raises(ConfigError, match="spikes of 'chunks'.*whole utterances: teacher, student, foreign"):
        board.compare_spikes("teacher", "chunks")


def test_each_row_is_told_when_it_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_student(tmp_path / "student", seed=1)
    test = {"clean": [str(shards(tmp_path / "test", 2))]}
    models = {name: {"path": str(tmp_path / "student")} for name in ("a", "b")}
    said = stages.evaluate(test=test, models=models, results=str(tmp_path / "results.json"))
    lines = re.findall(r"^(clean: [ab]): (WER [\d.]+ %), \d+ s$", capsys.readouterr().err, re.MULTILINE)
    assert lines == list(said.items())


def test_all_rows_are_looked_at_before_the_first_is_measured(tmp_path: Path) -> None:
    results, test = tmp_path / "results.json", [str(shards(tmp_path / "test", 2))]
    save_student(tmp_path / "student", seed=1)
    good = {"path": str(tmp_path / "student")}
    stages.evaluate(test=test, models={"a": good}, results=str(results))
    before = results.read_text()
    for bad, message in (
        ({"pth": "x"}, "models.b: unknown setting for Scoreboard.add"),
        ({"path": "nowhere"}, "models.b.path"),
    ):
        with pytest.raises((ConfigError, ModelError), match=message):
            stages.evaluate(test=test, models={"a": good, "b": bad}, results=str(results), decoder="beam")
    assert results.read_text() == before and not (tmp_path / "results.before.json").exists()


def test_rows_give_way_when_there_are_others_in_their_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, heard = tmp_path / "results.json", tmp_path / "hypotheses" / "a-1.jsonl"
    save_student(tmp_path / "student", seed=1)
    models = {"a": {"path": str(tmp_path / "student")}}
    stages.evaluate(test=[str(shards(tmp_path / "test", 2))], models=models, results=str(results))
    before = results.read_text(), heard.read_text()
    silent = str(shards(tmp_path / "silent", 2, with_text=False))
    with pytest.raises(ShardError, match="no utterance has a transcript"):
        stages.evaluate(test=[silent], models=models, results=str(results))
    assert (results.read_text(), heard.read_text()) == before
    assert not (tmp_path / "results.before.json").exists()
    capsys.readouterr()
    stages.evaluate(test=[str(shards(tmp_path / "more", 3))], models=models, results=str(results))
    kept = tmp_path / "results.before.json"
    told = f"rows of {results} that were measured differently are now in {kept}\n"
    assert capsys.readouterr().err.startswith(told)
    (row,) = json.loads(kept.read_text())
    assert row == {**json.loads(before[0])[0], "hypotheses": "results.before/0-a-1.jsonl"}
    assert (tmp_path / row["hypotheses"]).read_text() == before[1]
    assert len(heard.read_text().splitlines()) == 3


def test_what_rows_of_several_test_sets_heard_is_kept_apart(tmp_path: Path) -> None:
    rows = [
        {"test": test, "model": model, "seed": 1} for test in ("x", "x-a", None) for model in ("a-b", "b")
    ]
    assert len({hypotheses_file(tmp_path / "results.json", row) for row in rows}) == 6


def test_an_exported_model_needs_the_folder_it_was_trained_in(tmp_path: Path) -> None:
    save_student(tmp_path / "student", seed=1)
    stages.export(model=str(tmp_path / "student"), out=str(tmp_path / "onnx"), int8=False)
    exported = str(tmp_path / "onnx/model.onnx")
    with pytest.raises(ConfigError, match=r"models\.a: .*trained: FOLDER"):
        check_model_of_row("a", {"path": exported})
    with pytest.raises(ConfigError, match=r"models\.a\.path: this is a folder of exported files"):
        check_model_of_row("a", {"path": str(tmp_path / "onnx"), "trained": str(tmp_path / "student")})
    with pytest.raises(ModelError, match=r"models\.a\.trained: there is no such model; got nowhere"):
        check_model_of_row("a", {"path": exported, "trained": "nowhere"})
    check_model_of_row("a", {"path": exported, "trained": str(tmp_path / "student")})
    check_model_of_row(
        "a", {"path": str(tmp_path / "onnx/model.int8.onnx"), "trained": str(tmp_path / "student")}
    )


def test_nothing_to_measure_is_said(tmp_path: Path) -> None:
    results = str(tmp_path / "results.json")
    with pytest.raises(ConfigError, match="models: there is nothing to evaluate"):
        stages.evaluate(test=["none"], models={}, results=results)
    with pytest.raises(ConfigError, match="test: there is nothing to evaluate"):
        stages.evaluate(test=[], models={"student": {"path": "none"}}, results=results)


def test_a_test_set_is_a_list_of_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"test\.clean: .*expected \[a string, …\]"):
        stages.evaluate(
            test={"clean": {"a": 1}}, models={"a": {"path": "a"}}, results=str(tmp_path / "results.json")
        )  # type: ignore[dict-item]
