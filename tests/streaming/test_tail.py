"""What ends with its last sound is heard to its end: a model that speaks late gets some silence more."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from export.delays import measure_delays
from export.transcribe import Recogniser
from kdasr.decoding import Token
from kdasr.evaluation import evaluate
from kdasr.features import LOG_MEL_FLOOR
from kdasr.interfaces import StreamingModel, Utterance
from kdasr.shards import write_shards
from kdasr.streaming import TAIL_MS, EndpointRules, TorchChunkModel, hears_tail, with_tail, within_audio
from tests.export.small_models import conformer
from tests.streaming.scripted import FRAME_SAMPLES, UNITS

A = UNITS.symbols.index("a")


class State(NamedTuple):
    loud_bt: Tensor


class Late:
    """Says `a` for each loud output frame, `delay` frames after it."""

    subsampling, vocab_size, lookahead_frames = 4, UNITS.vocab_size, 0

    def __init__(self, delay: int, chunk_frames: int) -> None:
        self.config: dict[str, Any] = {}
        self.delay, self.chunk_frames = delay, chunk_frames

    @property
    def shift(self) -> int:
        return 4 * self.chunk_frames

    window = shift

    def initial_state(self, batch_size: int = 1) -> State:
        return State(torch.zeros(batch_size, self.delay))

    def forward(self, features_btf: Tensor, state: State) -> tuple[Tensor, State]:
        # Of four feature frames, the second sees no other output frame's samples.
        loud_bt = torch.cat([state.loud_bt, (features_btf[:, 1::4].mean(2) > -10).float()], dim=1)
        frames = loud_bt.shape[1] - self.delay
        logits_btv = torch.zeros(len(loud_bt), frames, self.vocab_size)
        logits_btv[..., A] = 9 * loud_bt[:, :frames]
        logits_btv[..., 0] = 5
        return logits_btv.log_softmax(-1), State(loud_bt[:, frames:])

    def offline(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        padded = functional.pad(features_btf, (0, 0, 0, -features_btf.shape[1] % 4), value=LOG_MEL_FLOOR)
        return self.forward(padded, self.initial_state(len(padded)))[0], (lengths_b + 3) // 4


def bursts(count: int, extra: int = 0) -> Any:
    """A sound in every fifth output frame and silence between; up to the last sample."""
    sound = 0.1 * np.random.default_rng(1).standard_normal((count, 5 * FRAME_SAMPLES))
    sound[:, : 4 * FRAME_SAMPLES] = 0
    return np.append(np.zeros(extra), sound).astype(np.float32)


def recogniser(delay: int, chunk_frames: int) -> Recogniser:
    student: Any = Late(delay, chunk_frames)
    return Recogniser(Path("late"), UNITS, student, TorchChunkModel(student) if chunk_frames else None)


@pytest.mark.parametrize("delay", [1, 2, 6])
@pytest.mark.parametrize("chunk_frames", [1, 3, 8, 20])
@pytest.mark.parametrize("piece", [1_000, 7_777, 10**6])
def test_the_last_unit_is_there_in_any_cut(delay: int, chunk_frames: int, piece: int) -> None:
    late, samples = recogniser(delay, chunk_frames), bursts(4)
    session = late.session()
    for start in range(0, len(samples), piece):
        session.accept(samples[start : start + piece])
    assert session.text in ("", "a", "aa", "aaa")
    assert session.finish() == "aaaa" == late.transcribe(samples)
    assert session.tokens == late.recognise(samples)
    # 20 frames of audio: what comes later is in the last of them.
    assert [token.frame for token in session.tokens] == [4 + delay, 9 + delay, min(19, 14 + delay), 19]
    assert session.num_frames == 20 + TAIL_MS // 40 and session.num_samples == len(samples)


@pytest.mark.parametrize("extra", [0, 1, 79, 80, 333])
def test_no_word_ends_behind_the_audio(extra: int) -> None:
    late, samples = recogniser(2, 8), bursts(3, extra)
    audio_s = len(samples) / 16_000
    (streamed,) = [heard for heard in late.listen([samples], "x") if heard.final]
    assert streamed.words == late.words(late.recognise(samples), audio_s)
    (word,) = streamed.words
    # Less than half a feature frame of audio makes no frame; times are rounded to milliseconds.
    assert word.start_s < audio_s - 0.2 and audio_s - 0.005 < word.end_s <= audio_s + 0.0005


def test_segments_have_a_tail_at_the_end_of_the_stream_alone() -> None:
    late, samples = recogniser(2, 8), np.concatenate([bursts(2), np.zeros(24_000, np.float32), bursts(3)])
    heard = [one for one in late.listen(np.split(samples, 4), "x", EndpointRules(0.5)) if one.final]
    assert [one.text for one in heard] == ["aa", "aaa"]
    assert heard[0].words[0].start_s == (4 + 2) * 0.04 and heard[0].words[0].end_s == (9 + 2 + 1) * 0.04
    assert heard[1].words[0].end_s == len(samples) / 16_000


@pytest.mark.parametrize("num_samples", [0, 79])
def test_what_makes_no_frame_has_no_tail(num_samples: int) -> None:
    late, nothing = recogniser(2, 8), np.ones(num_samples, np.float32)
    session = late.session()
    session.accept(nothing)
    assert session.finish() == "" and session.num_frames == 0
    assert late.recognise(nothing) == [] and len(with_tail(nothing)) == num_samples


@pytest.mark.parametrize("batch_utterances", [1, 3])
def test_streaming_students_are_evaluated_with_their_tail(batch_utterances: int, tmp_path: Path) -> None:
    utterances = [Utterance(f"u{count}", bursts(count), text="a" * count) for count in (2, 5, 3)]
    paths = write_shards(utterances, tmp_path)
    late, whole = Late(2, 8), Late(2, 0)
    result = evaluate(late, UNITS, paths, batch_utterances=batch_utterances)
    assert result.wer == 0
    # The spikes are where they are: here nobody is told when a word ends.
    assert [token.frame for token in result.heard[0].tokens or []] == [6, 11]
    # One that is set to full context hears what was recorded alone.
    short = evaluate(whole, UNITS, paths, batch_utterances=batch_utterances)
    assert [heard.hypothesis for heard in short.heard] == ["a", "aaaa", "aa"]
    assert recogniser(2, 0).transcribe(utterances[0].samples) == "a"
    delays = measure_delays(recogniser(2, 8), utterances)
    assert (delays.texts_differ, delays.wer_offline, delays.wer_streaming) == (0, 0, 0)


def test_models_of_full_context_hear_no_tail() -> None:
    late: Any = Late(1, 1)
    assert isinstance(late, StreamingModel) and hears_tail(late) and hears_tail(conformer())
    assert not hears_tail(conformer(chunk_frames=0))
    teacher: Any = torch.nn.Linear(1, 1)
    assert not hears_tail(teacher)


def test_tokens_of_the_tail_are_put_into_the_last_frame_of_the_audio() -> None:
    tokens = [Token(1, frame, -0.1) for frame in (0, 2, 3, 9)]
    # 4 * 160 * 2 + 240 samples are 10 feature frames: 3 output frames.
    assert [token.frame for token in within_audio(tokens, 1_520, 4)] == [0, 2, 2, 2]
    assert [token.frame for token in within_audio(tokens, 1_520, 2)] == [0, 2, 3, 4]
