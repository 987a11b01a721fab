"""Error rates by hand, a model that counts bursts of noise, and speed."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdasr.decoding import Token
from kdasr.devices import one_torch_thread
from kdasr.error_rates import count_errors
from kdasr.errors import ConfigError, DamagedShardError, ShardError
from kdasr.evaluation import (
    Heard,
    evaluate,
    evaluate_transcriber,
    measure_rtf,
    write_hypotheses,
)
from kdasr.interfaces import Utterance
from kdasr.results import read_hypotheses
from kdasr.shards import Placed, list_shards, write_shards
from kdasr.students.conformer import ChunkConformer
from kdasr.teachers.base import LOG_MEL
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.text import CharUnits

BURST_SAMPLES = 4_800


def bursts(count: int, seed: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """`count` bursts of noise, each followed by as much silence."""
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, (count, BURST_SAMPLES)).astype(np.float32)
    return np.concatenate([noise, np.zeros_like(noise)], axis=1).ravel()


class BurstCounter:
    """An acoustic model that hears an "a" in each burst: loud frames are "a", quiet ones blank."""

    config: dict[str, Any]
    vocab_size = 29
    subsampling = 4

    def __init__(self) -> None:
        self.config = {}
        self.batch_sizes: list[int] = []

    def offline(
        self, features_btf: torch.Tensor, lengths_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.batch_sizes.append(len(features_btf))
        loud_bt = features_btf.mean(dim=2)[:, ::4] > -10.0
        probs_btv = torch.full((*loud_bt.shape, self.vocab_size), 1e-6)
        probs_btv[..., 0] = torch.where(loud_bt, 1e-4, 1.0)
        probs_btv[..., 3] = torch.where(loud_bt, 1.0, 1e-4)
        return probs_btv.log(), (lengths_b + 3) // 4


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    """Three shards: five utterances with a transcript (one of them wrong by a letter), one without."""
    texts = ["a", "aa", "aaa", "aaab", None, "aa"]
    counts = [1, 2, 3, 3, 2, 2]
    utterances = [
        Utterance(f"u-{index}", bursts(count, index), text, "someone")
        for index, (count, text) in enumerate(zip(counts, texts, strict=True))
    ]
    return write_shards(utterances, tmp_path / "shards", max_utterances=2)


@pytest.mark.parametrize(
    ("references", "hypotheses", "wer", "cer"),
    [
        (["a b c d"], ["a x c d e"], 100 * 2 / 4, 100 * 3 / 7),  # one substitution, one insertion
        (["a b", "c d"], ["a b", ""], 50.0, 50.0),  # summed over the set, not averaged
        (["ab", ""], ["ab", "x y"], 200.0, 150.0),  # words heard in silence are insertions
        (["ab"], ["ab"], 0.0, 0.0),
    ],
)
def test_error_rates_by_hand(references: list[str], hypotheses: list[str], wer: float, cer: float) -> None:
    errors = count_errors(references, hypotheses)
    assert (errors.wer, errors.cer) == pytest.approx((wer, cer))


def test_errors_are_counted_by_kind() -> None:
    errors = count_errors(["one two three four", "five"], ["one too three", "five six seven"])
    assert (errors.words, errors.substitutions, errors.deletions, errors.insertions) == (5, 1, 1, 2)


def test_no_reference_word_means_no_rate() -> None:
    with pytest.raises(ConfigError, match="contain no words"):
        count_errors(["", " "], ["a", ""])


class Unsure(BurstCounter):
    """Hears an "a" in one of the first two frames with 0.64, but in neither with more than 0.4."""

    def offline(
        self, features_btf: torch.Tensor, lengths_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        probs_btv = torch.full((*features_btf[:, ::4].shape[:2], self.vocab_size), 1e-6)
        probs_btv[..., 0] = 1.0
        probs_btv[:, :2, 0], probs_btv[:, :2, 3] = 0.6, 0.4
        return probs_btv.log(), (lengths_b + 3) // 4


@pytest.mark.parametrize(("decoder", "heard"), [("greedy", ""), ("beam", "a")])
def test_each_decoder_finds_what_it_searches_for(decoder: str, heard: str, shards: list[Path]) -> None:
    result = evaluate(Unsure(), CharUnits(), shards, decoder=decoder)
    assert {one.hypothesis for one in result.heard} == {heard}


@pytest.mark.parametrize("decoder", ["greedy", "beam"])
@pytest.mark.parametrize("batch_utterances", [1, 4, 100])
def test_a_model_is_scored_alike_in_any_batch(
    decoder: str, batch_utterances: int, shards: list[Path]
) -> None:
    model = BurstCounter()
    result = evaluate(model, CharUnits(), shards, decoder=decoder, batch_utterances=batch_utterances)
    assert [heard.key for heard in result.heard] == ["u-0", "u-1", "u-2", "u-3", "u-5"]
    assert [heard.hypothesis for heard in result.heard] == ["a", "aa", "aaa", "aaa", "aa"]
    assert result.errors == (5, 1, 0, 0, 12, 1)
    assert (result.wer, result.cer) == pytest.approx((20.0, 100 / 12))
    assert result.without_transcript == 1
    assert max(model.batch_sizes) == min(batch_utterances, 5)


@pytest.mark.parametrize("decoder", ["greedy", "beam"])
def test_what_is_shorter_than_a_frame_has_no_text(decoder: str, tmp_path: Path) -> None:
    """Even where it is all of a batch, which no convolution takes."""
    short = np.full(50, 0.1, np.float32)
    write_shards([Utterance("s-0", short, "aa"), Utterance("s-1", short, "a")], tmp_path)
    units = CharUnits()
    for model in (ChunkConformer(vocab_size=units.vocab_size), ConformerTeacher(vocab_size=units.vocab_size)):
        found = evaluate(model.eval(), units, list_shards(tmp_path), decoder=decoder)
        assert [heard.hypothesis for heard in found.heard] == ["", ""] and found.wer == 100.0


class TalkingPadding(BurstCounter):
    """It hears an "a" behind the end of each utterance, and keeps what is there."""

    def offline(
        self, features_btf: torch.Tensor, lengths_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.padding = {
            float(value)
            for row, length in zip(features_btf, lengths_b, strict=True)
            for value in row[length:].unique()
        }
        log_probs_btv, frames_b = super().offline(features_btf, lengths_b)
        for row, frames in zip(log_probs_btv, frames_b.tolist(), strict=True):
            row[frames:] = -9.0
            row[frames:, 3] = 0.0
        return log_probs_btv, frames_b


@pytest.mark.parametrize("decoder", ["greedy", "beam"])
def test_what_is_behind_the_end_is_silence_and_no_text(decoder: str, shards: list[Path]) -> None:
    model = TalkingPadding()
    result = evaluate(model, CharUnits(), shards, decoder=decoder)
    assert [heard.hypothesis for heard in result.heard] == ["a", "aa", "aaa", "aaa", "aa"]
    assert sorted(model.padding) == pytest.approx([LOG_MEL.padding])


@pytest.mark.parametrize("decoder", ["greedy", "beam"])
def test_the_spikes_of_the_best_path_are_kept(decoder: str, shards: list[Path]) -> None:
    result = evaluate(BurstCounter(), CharUnits(), shards, decoder=decoder)
    spikes = result.heard[2].tokens
    assert spikes is not None and all(isinstance(token, Token) for token in spikes)
    # A burst begins every 600 ms: 15 output frames.
    assert [token.id for token in spikes] == [3, 3, 3]
    assert [token.frame for token in spikes] == pytest.approx([0, 15, 30], abs=1)


class SaysTwice:
    """One unit well before the end of the audio, another in the tail behind it."""

    subsampling = 4

    def offline(
        self, features_btf: torch.Tensor, lengths_b: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        frames_b = -(-lengths_b // 4)
        logits_btv = torch.zeros(len(features_btf), int(frames_b.max()), CharUnits().vocab_size)
        logits_btv[:, :, 0] = 5.0
        logits_btv[:, 30, 3] = logits_btv[:, 56, 4] = 10.0
        return logits_btv.log_softmax(-1), frames_b


@pytest.mark.parametrize("decoder", ["greedy", "beam"])
def test_a_pause_before_what_is_said_in_the_tail_is_as_long_as_to_a_session(
    decoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second and more would part words; of a unit in the tail the last frame of the audio counts."""
    monkeypatch.setattr("kdasr.evaluation.hears_tail", lambda _: True)
    (path,) = write_shards([Utterance("u", np.zeros(32_000, np.float32), "ab")], tmp_path)
    (heard,) = evaluate(SaysTwice(), CharUnits(), [path], decoder=decoder).heard  # type: ignore[arg-type]
    assert " " not in heard.hypothesis and len(heard.hypothesis) == 2
    assert heard.tokens is not None and [token.frame for token in heard.tokens] == [30, 56]


def test_any_function_can_be_scored(shards: list[Path]) -> None:
    seen: list[str] = []

    def transcribe(utterance: Utterance) -> str:
        seen.append(utterance.key)
        return utterance.text or ""

    result = evaluate_transcriber(transcribe, shards)
    assert result.wer == 0.0 and result.heard[0].tokens is None
    assert seen == ["u-0", "u-1", "u-2", "u-3", "u-5"]


def test_of_foreign_spelling_the_words_that_cannot_be_normalised_alone_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Foreign:
        """Units whose text is told by how many of them there are."""

        symbols = tuple(map(str, range(40)))

        def decode(self, ids: Sequence[int]) -> str:
            return {1: "It was 4, he said.", 2: "YES!"}[len(ids)]

    units: Any = Foreign()
    said = [(1, "it was four he said"), (2, "yes")]
    utterances = [Utterance(f"u-{count}", bursts(count, count), text) for count, text in said]
    paths = write_shards(utterances, tmp_path / "shards")
    result = evaluate(BurstCounter(), units, paths, spells_as_we_do=False)
    assert [heard.hypothesis for heard in result.heard] == ["it was 4, he said", "yes"]
    assert result.errors[:4] == (6, 1, 0, 0) and result.not_normal == 1
    line = "1 texts contain words that could not be normalised; they count as errors\n"
    assert capsys.readouterr().err == line
    result = evaluate(BurstCounter(), units, paths)
    assert result.errors[:4] == (6, 4, 0, 0) and result.not_normal == 0
    assert capsys.readouterr().err == ""


def test_an_unknown_decoder_is_refused(shards: list[Path]) -> None:
    with pytest.raises(ConfigError, match="expected greedy or beam; got 'viterbi'"):
        evaluate(BurstCounter(), CharUnits(), shards, decoder="viterbi")


def test_shards_without_transcripts_cannot_be_scored(tmp_path: Path) -> None:
    paths = write_shards([Utterance("u", bursts(1, 0))], tmp_path / "unlabelled")
    with pytest.raises(ShardError, match="no utterance has a transcript") as refusal:
        evaluate(BurstCounter(), CharUnits(), paths)
    assert str(paths[0]) in str(refusal.value)
    with pytest.raises(ShardError, match="no shards"):
        evaluate_transcriber(lambda utterance: "", [])


def test_a_damaged_shard_stops_the_evaluation(shards: list[Path]) -> None:
    data = bytearray(shards[1].read_bytes())
    data[len(data) // 2] ^= 1
    shards[1].write_bytes(data)
    with pytest.raises(DamagedShardError) as refusal:
        evaluate(BurstCounter(), CharUnits(), shards)
    assert shards[1].name in str(refusal.value)


def test_hypotheses_are_one_json_line_each(shards: list[Path], tmp_path: Path) -> None:
    result = evaluate(BurstCounter(), CharUnits(), shards)
    write_hypotheses(tmp_path / "new" / "student-1.jsonl", result)
    rows: Sequence[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "new" / "student-1.jsonl").read_text().splitlines()
    ]
    assert rows[3] == {
        "key": "u-3",
        "speaker": "someone",
        "duration_s": 1.8,
        "reference": "aaab",
        "hypothesis": "aaa",
        "errors": 1,
        "substitutions": 1,
        "deletions": 0,
        "insertions": 0,
    }
    assert sum(row["errors"] for row in rows) == 1 and len(rows) == 5
    heard = [
        Heard("one", "a b c", "a x b y"),
        Heard("two", "a b", ""),
    ]  # one inserted and one another; both lost
    write_hypotheses(tmp_path / "more.jsonl", replace(result, heard=heard))
    rows = [json.loads(line) for line in (tmp_path / "more.jsonl").read_text().splitlines()]
    assert [row["errors"] for row in rows] == [2, 2] and "speaker" not in rows[0]
    assert [rows[1][kind] for kind in ("substitutions", "deletions", "insertions")] == [0, 2, 0]


def test_hypotheses_say_where_in_which_recording_they_are(tmp_path: Path) -> None:
    samples = bursts(1, 0)
    utterances = [
        Placed("all", samples, "a", source="calls/1.wav"),
        Placed("part", samples[:7_200], "a", source="calls/2 é.wav", offset=12.5, channel=0),
    ]
    paths = write_shards(utterances, tmp_path / "shards")
    for name, result in (
        ("model", evaluate(BurstCounter(), CharUnits(), paths)),
        ("stream", evaluate_transcriber(lambda utterance: "a", paths)),
    ):
        write_hypotheses(tmp_path / name, result)
        rows = read_hypotheses(tmp_path / name)
        places = [
            {key: row.get(key) for key in ("source", "offset_s", "duration_s", "channel")} for row in rows
        ]
        assert places == [
            {"source": "calls/1.wav", "offset_s": None, "duration_s": 0.6, "channel": None},
            {"source": "calls/2 é.wav", "offset_s": 12.5, "duration_s": 0.45, "channel": 0},
        ]
        assert "offset_s" not in rows[0]


def test_rtf_is_the_median_time_on_one_thread() -> None:
    threads: list[int] = []
    pauses = iter([0.2, 0.02, 0.06, 0.02])

    def work() -> None:
        threads.append(torch.get_num_threads())
        time.sleep(next(pauses))

    torch.set_num_threads(2)
    try:
        rtf = measure_rtf(work, audio_seconds=2.0, repeats=3)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert threads == [1, 1, 1, 1]
    assert 0.01 <= rtf < 0.03


def test_of_three_timings_the_middle_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, works = iter([0.0, 2.0, 10.0, 10.25, 20.0, 20.5]), []
    monkeypatch.setattr("kdasr.evaluation.time.perf_counter", lambda: next(clock))
    assert measure_rtf(lambda: works.append(1), audio_seconds=2.0) == 0.25
    assert len(works) == 4, "the first is to warm up"


def test_threads_come_back_after_an_error() -> None:
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError), one_torch_thread():
            raise RuntimeError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
