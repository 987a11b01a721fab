"""A session gives the text of the whole utterance, however the audio arrives."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from export.parity import probe_sound
from kdasr.decoding import BeamStream, greedy
from kdasr.errors import AudioError, ConfigError, ModelError
from kdasr.features import log_mel
from kdasr.lexicon import Lexicon
from kdasr.resampling import resample
from kdasr.streaming import (
    SampleWindows,
    StreamingSession,
    TorchChunkModel,
    algorithmic_latency_ms,
    check_samples,
    set_chunk_ms,
    trained_chunks_ms,
    with_tail,
    within_audio,
)
from kdasr.text import CharUnits
from tests.export.small_models import ALL, STUDENTS, UNITS, conformer
from tests.streaming.scripted import Scripted, silence, spell


def offline(student: Any, samples: Any) -> Any:
    features = log_mel(with_tail(samples))[None]
    with torch.no_grad():
        log_probs, frames = student.offline(features, torch.tensor([features.shape[1]]))
    return log_probs[0].numpy(), within_audio(greedy(log_probs, frames)[0], len(samples), 4)


def stream(student: Any, samples: Any, sizes: Any) -> Any:
    session = StreamingSession(TorchChunkModel(student), UNITS, keep_log_probs=True)
    start = 0
    for size in sizes:
        session.accept(samples[start : start + size])
        start += size
    session.accept(samples[start:])
    session.finish()
    return session


def positions(tokens: Any) -> Any:
    return [(token.id, token.frame) for token in tokens]


@pytest.mark.parametrize("kind", sorted(STUDENTS))
@pytest.mark.parametrize("num_samples", [1, 79, 80, 399, 5_280, 5_281, 16_000, 47_123])
def test_stream_equals_offline_for_every_tail(kind: str, num_samples: int) -> None:
    student, samples = STUDENTS[kind](), probe_sound(48_000, 5)[:num_samples]
    session = stream(student, samples, [700] * 100)
    if num_samples < 80:
        assert session.text == "" and session.num_frames == 0
        return
    log_probs, tokens = offline(student, samples)
    assert session.log_probs_tv.shape == log_probs.shape
    assert np.abs(session.log_probs_tv - log_probs).max() < 1e-4
    assert positions(session.tokens) == positions(tokens)
    assert session.text == UNITS.decode([token.id for token in tokens])


def test_the_comparison_is_about_real_text() -> None:
    session = stream(conformer(), probe_sound(48_000, 5), [])
    assert len(set(session.text)) > 3 and " " in session.text
    blanks = (session.log_probs_tv[:-8].argmax(1) == 0).mean()  # the tail aside
    assert 0.1 < blanks < 0.9


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk_frames": 1, "lookahead_frames": 0, "left_context_frames": 1},
        {"chunk_frames": 2, "lookahead_frames": 3, "left_context_frames": 25},
        {"chunk_frames": 25, "lookahead_frames": 2, "left_context_frames": 4},
    ],
)
def test_stream_equals_offline_for_other_chunks(changes: Any) -> None:
    student, samples = conformer(**changes), probe_sound(30_000, 6)
    session = stream(student, samples, [1_601] * 5)
    log_probs, tokens = offline(student, samples)
    assert np.abs(session.log_probs_tv - log_probs).max() < 1e-4
    assert positions(session.tokens) == positions(tokens)


_CONFORMER = conformer()
_SAMPLES = probe_sound(20_000, 7)
_WHOLE = stream(_CONFORMER, _SAMPLES, [])


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 3), st.integers(0, 6_000)), max_size=12))
def test_any_cut_gives_the_same_bits_of_text(sizes: Any) -> None:
    session = stream(_CONFORMER, _SAMPLES, sizes)
    assert session.text == _WHOLE.text
    assert positions(session.tokens) == positions(_WHOLE.tokens)
    assert np.abs(session.log_probs_tv - _WHOLE.log_probs_tv).max() < 1e-4


@pytest.mark.parametrize("rate_hz", [8_000, 48_000])
def test_another_rate_gives_the_text_of_the_resampled_audio_however_it_is_cut(rate_hz: int) -> None:
    samples = resample(_SAMPLES, 16_000, rate_hz)
    expected = stream(_CONFORMER, resample(samples, rate_hz, 16_000), [])
    model = TorchChunkModel(_CONFORMER)
    session = StreamingSession(model, UNITS, keep_log_probs=True, rate_hz=rate_hz)
    found = set()
    for size in (100, 1_601, len(samples)):
        session.reset()
        for start in range(0, len(samples), size):
            session.accept(samples[start : start + size])
        assert session.finish() == expected.text and session.num_samples == len(_SAMPLES)
        assert positions(session.tokens) == positions(expected.tokens)
        # Above 4 kHz there is nothing but rounding, of which the logarithm makes more.
        assert np.abs(session.log_probs_tv - expected.log_probs_tv).max() < 1e-3
        found.add(session.log_probs_tv.tobytes())
    assert len(found) == 1 and len(expected.text) > 5


def test_a_rate_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match="the sample rate must be positive.*got 0"):
        StreamingSession(TorchChunkModel(_CONFORMER), UNITS, rate_hz=0)


def test_the_future_does_not_change_the_past() -> None:
    other = _SAMPLES.copy()
    other[12_000:] = probe_sound(8_000, 99)
    changed = stream(_CONFORMER, other, [])
    # A frame sees its chunk and the lookahead: sample 12,000 first matters in frame 18 - 4 - 1.
    first = (12_000 - 200) // 640 - _CONFORMER.chunk_frames - _CONFORMER.lookahead_frames
    assert np.array_equal(changed.log_probs_tv[:first], _WHOLE.log_probs_tv[:first])
    assert not np.allclose(changed.log_probs_tv[first + 6 :], _WHOLE.log_probs_tv[first + 6 :], atol=1e-2)


def test_partial_text_grows_while_audio_arrives() -> None:
    session = StreamingSession(TorchChunkModel(_CONFORMER), UNITS)
    partials = [session.accept(_SAMPLES[start : start + 1_600]) for start in range(0, 20_000, 1_600)]
    final = session.finish()
    assert len(set(partials)) > 4 and partials[0] == ""
    assert all(final.startswith(partial) for partial in partials)
    assert session.finish() == final


class Counting(CharUnits):
    """Counts the units that it spells."""

    spelt = 0

    def decode(self, ids: Any) -> str:
        self.spelt += len(ids)
        return super().decode(ids)


def test_no_word_but_the_last_is_spelt_again_while_text_grows() -> None:
    units, text = Counting(), " ".join(["lorem ipsum"] * 60)
    session = StreamingSession(Scripted(spell(text, 3)), units)
    partials = [session.accept(silence(2)) for _ in range(len(text) + 10)]
    assert session.finish() == text and units.spelt < 12 * len(text)
    assert partials == sorted(partials, key=len) and all(text.startswith(partial) for partial in partials)
    session.take(len("lorem ipsum "))
    assert session.text == text.removeprefix("lorem ipsum ")


def test_the_text_says_at_once_what_a_decoder_settles_on() -> None:
    decoder = partial(BeamStream, 16, Lexicon(units=UNITS, words=["two", "three"]))
    session = StreamingSession(Scripted(spell("two thre", 5)), UNITS, decoder=decoder)
    assert session.accept(silence(30)) == "two thre"
    session.settle()
    assert session.text == "two three" == UNITS.decode([token.id for token in session.tokens])


def test_a_student_that_was_being_trained_streams_without_dropout() -> None:
    session = StreamingSession(TorchChunkModel(conformer(dropout=0.5).train()), UNITS, keep_log_probs=True)
    session.hear(_SAMPLES)
    assert np.array_equal(session.log_probs_tv, stream(conformer(), _SAMPLES, []).log_probs_tv)


def test_reset_begins_a_new_stream() -> None:
    session = StreamingSession(TorchChunkModel(_CONFORMER), UNITS)
    session.hear(probe_sound(9_000, 1))
    session.reset()
    assert (session.text, session.tokens, session.num_frames) == ("", [], 0)
    assert session.hear(_SAMPLES) == _WHOLE.text
    assert positions(session.tokens) == positions(_WHOLE.tokens)


def test_silence_and_nothing_are_answered() -> None:
    session = StreamingSession(TorchChunkModel(_CONFORMER), UNITS)
    assert session.finish() == "" and session.num_frames == 0
    session.reset()
    session.accept(np.zeros(0, np.float32))
    session.accept(np.zeros(16_000, np.float32))
    session.finish()
    assert session.num_frames == 25 + 8


def test_clipped_and_overshooting_audio_is_decoded() -> None:
    session = StreamingSession(TorchChunkModel(_CONFORMER), UNITS)
    session.accept(np.clip(_SAMPLES * 50, -1, 1))
    session.accept(np.full(1_000, 1.2, np.float32))
    assert isinstance(session.finish(), str) and session.num_frames == 33 + 8


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.array([0.0, np.nan, 0.0], np.float32), "contain NaN or infinity; got nan at index 1"),
        (np.array([np.inf], np.float64), "NaN or infinity"),
        (np.zeros((10, 2), np.float32), r"not mono.*\(10, 2\).* take piece\[:, 0\] or piece\.mean\(1\)"),
        (np.zeros((10, 0), np.float32), "not mono"),
        (np.zeros((10, 1, 1), np.float32), "not mono"),
        (np.full((10, 1), np.nan, np.float32), "contain NaN or infinity; got nan at index 0"),
        (np.zeros(10, np.int16), "not floating point"),
        (np.full(10, 12_000.0, np.float32), "not scaled"),
    ],
)
def test_bad_samples_are_refused_and_the_session_goes_on(bad: Any, message: str) -> None:
    session = StreamingSession(TorchChunkModel(_CONFORMER), UNITS, where="kitchen.wav")
    session.accept(_SAMPLES[:7_000])
    with pytest.raises(AudioError, match=f"kitchen.wav: .*{message}"):
        session.accept(bad)
    session.accept(_SAMPLES[7_000:])
    assert session.finish() == _WHOLE.text
    assert session.num_samples == len(_SAMPLES), "a refused piece is no part of the stream"
    assert positions(session.tokens) == positions(_WHOLE.tokens)


@pytest.mark.parametrize("rate_hz", [16_000, 48_000.0])
def test_one_channel_may_have_an_axis_of_its_own(rate_hz: float) -> None:
    """As every callback of sounddevice gives it, and the rate as a float."""
    samples = resample(_SAMPLES, 16_000, int(rate_hz))
    expected = StreamingSession(TorchChunkModel(_CONFORMER), UNITS, rate_hz=int(rate_hz)).hear(samples)
    session = StreamingSession(TorchChunkModel(_CONFORMER), UNITS, rate_hz=rate_hz)
    buffer = np.empty((960, 1), np.float32)
    for start in range(0, len(samples), len(buffer)):
        piece = samples[start : start + len(buffer), None]
        buffer[: len(piece)] = piece
        session.accept(buffer[: len(piece)])
        buffer[:] = 9  # the library reuses its memory
    assert session.finish() == expected and len(expected) > 5
    assert session.num_samples == len(_SAMPLES)
    assert check_samples(np.zeros((0, 1), np.float32)).shape == (0,)


def test_read_only_samples_are_copied() -> None:
    frozen = np.frombuffer(_SAMPLES.tobytes(), np.float32)
    assert not frozen.flags.writeable and check_samples(frozen).flags.writeable
    assert check_samples([0.0, 0.5]).dtype == np.float32


def test_a_finished_stream_takes_no_more() -> None:
    session = StreamingSession(TorchChunkModel(_CONFORMER), UNITS)
    session.finish()
    with pytest.raises(AudioError, match="reset"):
        session.accept(_SAMPLES)


def test_log_probs_are_kept_only_on_request() -> None:
    with pytest.raises(ModelError, match="keep_log_probs"):
        _ = StreamingSession(TorchChunkModel(_CONFORMER), UNITS).log_probs_tv


def test_units_of_another_model_are_refused() -> None:
    with pytest.raises(ModelError, match="expected 30 classes; got 29 units"):
        StreamingSession(TorchChunkModel(conformer(vocab_size=UNITS.vocab_size + 1)), UNITS)


@pytest.mark.parametrize(
    "change", [lambda x: x[0], lambda x: x[:, :1], lambda x: np.tile(x, (1, 2, 1)), lambda x: x[..., :5]]
)
def test_a_model_whose_step_gives_another_shape_is_refused(change: Any) -> None:
    """Times or classes would be wrong without a word."""

    class Odd(Scripted):
        def step(self, features_btf: Any, state: Any) -> tuple[Any, Any]:
            log_probs, state = super().step(features_btf, state)
            return change(log_probs), state

    with pytest.raises(ModelError, match=r"another shape; expected \(1, 2, 29\): .*; got \("):
        StreamingSession(Odd({}), UNITS).hear(silence(20))


def test_a_model_without_state_cannot_stream() -> None:
    with pytest.raises(
        ModelError, match="Linear: this model cannot run chunk by chunk.*only these can .* be exported"
    ):
        TorchChunkModel(torch.nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("chunk_frames", "lookahead_frames", "latency_ms"), [(8, 0, 327.5), (2, 0, 87.5), (4, 1, 207.5)]
)
def test_the_first_frames_come_after_as_many_samples_as_the_latency_says(
    chunk_frames: int, lookahead_frames: int, latency_ms: float
) -> None:
    student = conformer(chunk_frames=chunk_frames, lookahead_frames=lookahead_frames)
    session, windows = (
        StreamingSession(TorchChunkModel(student), UNITS),
        SampleWindows(student.window, student.shift),
    )
    while session.num_frames == 0:
        session.accept(np.zeros(1, np.float32))
    assert algorithmic_latency_ms(session.model) == session.num_samples / 16 == latency_ms
    assert list(windows.accept(np.zeros(session.num_samples - 1, np.float32))) == []
    assert len(list(windows.accept(np.zeros(1, np.float32)))) == 1


@pytest.mark.parametrize(
    ("changes", "expected_ms"),
    [
        ({"chunk_frames": 8}, [320]),
        ({"chunk_frames": 8, "dynamic_chunks": [0, 0, 24, 2, 8]}, [0, 80, 320, 960]),
        ({"chunk_frames": 0}, [0]),
    ],
)
def test_the_chunks_of_the_training_stay_known(changes: Any, expected_ms: list[int]) -> None:
    student = conformer(**changes)
    set_chunk_ms(student, 80)
    assert trained_chunks_ms(student) == expected_ms


def test_a_recurrent_student_is_trained_with_no_chunks() -> None:
    assert trained_chunks_ms(ALL["lstm"]()) == []
