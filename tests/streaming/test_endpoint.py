"""Segments end at pauses, lose no word, and do not depend on how the audio arrives."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from export.parity import probe_sound
from kdasr.decoding import BeamStream
from kdasr.errors import AudioError, ConfigError
from kdasr.lexicon import Lexicon
from kdasr.streaming import EndpointingSession, EndpointRules, Segment, StreamingSession, TorchChunkModel
from tests.export.small_models import UNITS, conformer
from tests.streaming.scripted import FRAME_SAMPLES, Scripted, silence, spell


def run(script: dict[int, str], frames: int, rules: EndpointRules | None, piece: int = 640) -> list[Segment]:
    session = EndpointingSession(Scripted(script), UNITS, rules)
    audio, segments = silence(frames), []
    for start in range(0, len(audio), piece):
        segments += session.accept(audio[start : start + piece])
    return segments + session.finish()


TWO = {**spell("one two", 5), **spell("three", 60)}


@pytest.mark.parametrize("piece", [160, 640, 5_000, 10**6])
def test_a_pause_ends_a_segment(piece: int) -> None:
    first, second = run(TWO, 100, EndpointRules(min_silence_s=1.0), piece)
    assert first.text == "one two" and second.text == "three"
    assert (first.start_s, first.end_s) == (5 * 0.04, 18 * 0.04)
    assert second.start_s == pytest.approx(60 * 0.04)
    assert [word.text for word in first.words] == ["one", "two"]


def test_a_shorter_pause_does_not() -> None:
    (only,) = run(TWO, 100, EndpointRules(min_silence_s=2.0))
    assert only.text == "one two three"  # the script holds no word mark between them


def test_a_pause_within_a_word_parts_it() -> None:
    """When it is over, nobody knows yet whether a word goes on: text that waited for the next unit would
    come only when somebody speaks again."""
    script = {5: "s", 32: "o", 40: "▁", 45: "x"}
    assert [segment.text for segment in run(script, 100, EndpointRules(min_silence_s=1.0))] == ["s", "o x"]
    assert [segment.text for segment in run(script, 100, EndpointRules(min_silence_s=1.1))] == ["s o x"]
    script = {5: "s", 30: "o", 40: "▁", 45: "x"}  # a frame less
    assert [segment.text for segment in run(script, 100, EndpointRules(min_silence_s=1.1))] == ["so x"]


def test_the_segment_comes_as_soon_as_the_pause_is_long_enough() -> None:
    session = EndpointingSession(Scripted(TWO), UNITS, EndpointRules(min_silence_s=0.4))
    # The last letter is in frame 17; ten blank frames later, at the end of frame 27, it is over.
    # Features lag by one window's reach, and two frames make a chunk.
    assert session.accept(silence(27)) == [] and session.partial == "one two"
    assert [segment.text for segment in session.accept(silence(3))] == ["one two"]
    assert session.partial == ""


@pytest.mark.parametrize("piece", [640, 7_777, 10**6])
def test_speech_without_a_pause_is_cut_between_words(piece: int) -> None:
    script = spell("aa bb cc dd ee ff", 0, spacing=5)  # a letter every 0.2 s
    segments = run(script, 90, EndpointRules(min_silence_s=0.9, max_segment_s=1.5), piece)
    assert " ".join(segment.text for segment in segments) == "aa bb cc dd ee ff"
    assert all(segment.end_s - segment.start_s < 1.5 for segment in segments)
    assert len(segments) == 3


def test_one_endless_word_is_cut_all_the_same() -> None:
    segments = run(spell("a" + "ba" * 10, 0, spacing=4), 90, EndpointRules(max_segment_s=1.0))
    assert "".join(segment.text for segment in segments) == "a" + "ba" * 10
    # The seventh letter of each ends with the 25th frame, which is the first second.
    assert [len(segment.text) for segment in segments] == [7, 7, 7]
    assert all(segment.end_s - segment.start_s == pytest.approx(1.0) for segment in segments)


def test_a_segment_is_cut_at_the_very_frame_that_makes_it_long_enough() -> None:
    script = dict(zip(range(60), "ab" * 30, strict=True))  # a letter in every frame of 40 ms
    segments = run(script, 60, EndpointRules(max_segment_s=1.0))
    assert [len(segment.text) for segment in segments] == [25, 25, 10]


def test_a_segment_that_its_tail_makes_too_long_is_cut_too() -> None:
    script = {**spell("aa b", 0, spacing=5), 15: "<blk>", 26: "b"}  # the last letter comes after the audio
    segments = run(script, 25, EndpointRules(min_silence_s=5.0, max_segment_s=1.0))
    assert [segment.text for segment in segments] == ["aa", "b"]


def test_a_second_of_silence_or_twenty_of_speech_end_a_segment_unless_told_otherwise() -> None:
    # Between the letters lie 24 and 25 frames of 40 ms.
    segments = run({0: "a", 25: "b", 51: "c"}, 60, EndpointRules())
    assert [segment.text for segment in segments] == ["ab", "c"]
    script = spell("a " * 30, 0, spacing=10)
    (first, *_) = run(script, 520, EndpointRules(), piece=10**6)
    # The letter of frame 500 would make it longer than 20 s.
    assert first.end_s == pytest.approx((480 + 1) * 0.04)


def test_without_rules_the_end_of_the_stream_ends_the_segment() -> None:
    (only,) = run(TWO, 200, None)
    assert only.text == "one two three"


def test_silence_gives_no_segment() -> None:
    assert run({}, 200, EndpointRules()) == []
    assert run({5: "▁"}, 200, EndpointRules()) == []


def test_all_segments_together_are_the_uninterrupted_text() -> None:
    student, samples = conformer(), probe_sound(160_000, 4)
    whole = StreamingSession(TorchChunkModel(student), UNITS)
    whole.accept(samples)
    session = EndpointingSession(
        TorchChunkModel(student), UNITS, EndpointRules(min_silence_s=0.3, max_segment_s=1.0)
    )
    segments = session.accept(samples[:70_000]) + session.accept(samples[70_000:]) + session.finish()
    assert len(segments) > 5
    assert "".join(segment.text for segment in segments).replace(" ", "") == whole.finish().replace(" ", "")
    starts = [segment.start_s for segment in segments]
    assert starts == sorted(starts) and starts[-1] > 6


def test_memory_of_an_endless_stream_is_constant() -> None:
    session = EndpointingSession(Scripted(dict.fromkeys(range(0, 10**6, 40), "a")), UNITS)
    count = 0
    for _ in range(200):
        count += len(session.accept(np.zeros(50 * FRAME_SAMPLES, np.float32)))
    inner = session._session
    assert count > 200 and len(inner.tokens) <= 2
    assert len(inner._front_end._windows._pending) < 160 * inner.model.window + 240


@pytest.mark.parametrize("rules", [{"min_silence_s": 0.0}, {"max_segment_s": -1.0}])
def test_rules_are_positive(rules: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(rules))):
        EndpointRules(**rules)


def test_reset_begins_a_new_stream() -> None:
    session = EndpointingSession(Scripted(TWO), UNITS)
    before = session.accept(silence(30)) + session.finish()
    with pytest.raises(AudioError, match=r"reset\(\)"):
        session.accept(silence(1))
    session.reset()
    assert session.partial == "" and session.accept(silence(30)) + session.finish() == before
    assert [segment.text for segment in before] == ["one two"]


def test_after_a_gap_everything_begins_anew_and_times_go_on() -> None:
    """The model counts its frames, so it says the same again where its state began anew."""
    session = EndpointingSession(Scripted(spell("one two", 5)), UNITS)
    assert (
        session.accept(silence(18)) == [] and session.partial == "one tw"
    )  # the last frame comes in the tail
    (before,) = session.gap(2.5)
    assert before.text == "one two" and before.end_s == pytest.approx(18 * 0.04) and session.partial == ""
    session.accept(silence(20))
    (second,) = session.gap()
    (third,) = session.accept(silence(30)) + session.finish() + session.gap(1.0)
    for segment, start_s in ((second, 18 * 0.04 + 2.5), (third, 38 * 0.04 + 2.5)):
        assert segment.text == before.text
        for word, first in zip(segment.words, before.words, strict=True):
            assert word.start_s == pytest.approx(start_s + first.start_s)
            assert word.end_s == pytest.approx(start_s + first.end_s)
    session.reset()
    assert session.accept(silence(18)) + session.finish() == [before]


def test_at_another_rate_times_and_gaps_are_the_same() -> None:
    found = []
    for rate_hz in (16_000, 8_000):
        session = EndpointingSession(Scripted(spell("one two", 5)), UNITS, rate_hz=rate_hz)
        audio = np.zeros(rate_hz, np.float32)
        found.append(session.accept(audio) + session.gap(2.5) + session.accept(audio) + session.finish())
    first, second = found[1]
    assert found[0] == found[1] and (first.text, first.start_s) == ("one two", 5 * 0.04)
    assert second.start_s == pytest.approx(1.0 + 2.5 + 5 * 0.04)


def test_a_gap_before_all_audio_moves_the_times_alone() -> None:
    session = EndpointingSession(Scripted(spell("one", 5)), UNITS)
    assert session.gap(1.0) == []
    (segment,) = session.accept(silence(40)) + session.finish()
    assert segment.start_s == pytest.approx(1.0 + 5 * 0.04)


@pytest.mark.parametrize("seconds", [-0.1, float("nan"), float("inf")])
def test_a_gap_is_a_time(seconds: float) -> None:
    session = EndpointingSession(Scripted(spell("one", 5)), UNITS)
    session.accept(silence(20))
    with pytest.raises(ConfigError, match="the length of a gap must be finite and not negative"):
        session.gap(seconds)
    assert [segment.text for segment in session.finish()] == ["one"]


def test_what_follows_a_gap_is_heard_as_alone() -> None:
    student, samples, other = conformer(), probe_sound(30_000, 4), probe_sound(20_000, 5)
    alone = EndpointingSession(TorchChunkModel(student), UNITS)
    expected = " ".join(segment.text for segment in alone.accept(other) + alone.finish())
    session = EndpointingSession(TorchChunkModel(student), UNITS)
    session.accept(samples)
    session.gap(1.0)
    segments = session.accept(other) + session.finish()
    assert len(expected) > 3 and " ".join(segment.text for segment in segments) == expected


def kept_to(words: list[str], script: dict[int, str], frames: int, piece: int = 640) -> list[Segment]:
    lexicon = Lexicon(units=UNITS, words=words)
    rules = EndpointRules(min_silence_s=1.0, max_segment_s=2.0)
    session = EndpointingSession(Scripted(script), UNITS, rules, decoder=partial(BeamStream, 16, lexicon))
    audio, segments = silence(frames), []
    for start in range(0, len(audio), piece):
        segments += session.accept(audio[start : start + piece])
    return segments + session.finish()


@pytest.mark.parametrize("piece", [160, 5_000, 10**6])
def test_segments_of_a_search_hold_words_of_the_lexicon(piece: int) -> None:
    script = {**spell("ome two", 5), **spell(" thre", 60), **spell(" two two", 100)}
    segments = kept_to(["one", "two", "three"], script, 150, piece)
    assert [segment.text for segment in segments] == ["one two", "three", "two two"]
    assert segments[0].start_s == 5 * 0.04 and segments[0].end_s == 18 * 0.04
    assert [word.text for word in segments[2].words] == ["two", "two"]


@pytest.mark.parametrize("piece", [640, 7_777, 10**6])
def test_a_search_is_cut_between_words_too(piece: int) -> None:
    script = spell("two two one two one one", 0, spacing=5)
    segments = kept_to(["one", "two"], script, 150, piece)
    assert " ".join(segment.text for segment in segments) == "two two one two one one"
    assert len(segments) == 3 and all(set(segment.text.split()) <= {"one", "two"} for segment in segments)


@pytest.mark.slow
def test_memory_of_an_endless_search_is_constant() -> None:
    script: dict[int, str] = {}
    for number in range(200):
        script |= spell("▁two".replace("▁", " "), 50 * number)
    lexicon = Lexicon(units=UNITS, words=["two"])
    session = EndpointingSession(Scripted(script), UNITS, decoder=partial(BeamStream, 16, lexicon))
    texts = [
        segment.text
        for _ in range(200)
        for segment in session.accept(np.zeros(50 * FRAME_SAMPLES, np.float32))
    ]
    assert texts == ["two"] * 200 or texts == ["two"] * 199
    decoder = session._session._decoder
    assert isinstance(decoder, BeamStream) and max(len(one.ids) for one in decoder._prefixes) < 20


def test_a_pause_in_an_unfinished_word_spoils_nothing() -> None:
    words = ["five", *(f"st{one}{two}{one}" for one in "abcdefghijklmnopqrstu" for two in "abcdefghijklmnop")]
    script = {**spell("st", 5), **spell("five five", 60)}
    segments = kept_to(words, script, 150)
    assert segments[-1].text == "five five" and segments[-1].start_s == 60 * 0.04
    assert {word for segment in segments for word in segment.text.split()} <= set(words)


def test_a_word_before_a_pause_does_not_grow_into_another() -> None:
    script = {**spell("seven", 5), **spell("ten", 60), **spell("teen", 110)}
    segments = kept_to(["seven", "seventeen", "ten"], script, 170)
    assert [segment.text for segment in segments] == ["seven", "ten", "ten"]


def test_an_unfinished_word_takes_no_words_before_it_along() -> None:
    words = ["five", "six", *(f"st{a}{b}{a}" for a in "abcdefghijklmnopqrstu" for b in "abcdefghijklmnop")]
    script = {**spell("five six st", 5), **spell(" five", 80)}
    segments = kept_to(words, script, 130)
    assert segments[0].text.startswith("five six") and segments[-1].text == "five"
    lexicon = Lexicon(units=UNITS, words=words)
    session = StreamingSession(
        Scripted(spell("five six st", 5)), UNITS, decoder=partial(BeamStream, 2, lexicon)
    )
    session.accept(silence(30))
    assert session.finish() == "five six"


def test_a_mark_may_come_first_after_a_pause() -> None:
    script = {**spell("two", 5), **spell(" three", 60)}
    first, second = kept_to(["two", "three"], script, 110)
    assert (first.text, second.text) == ("two", "three")
    assert second.words[0].confidence > 0.5


@pytest.mark.parametrize("start", range(5, 14))
def test_a_pause_in_a_word_halves_it_nowhere(start: int) -> None:
    script = {**spell("two thre", start), start + 50: "e"}
    lexicon = Lexicon(units=UNITS, words=["two", "three"])
    rules = EndpointRules(0.9)
    session = EndpointingSession(Scripted(script), UNITS, rules, decoder=partial(BeamStream, 16, lexicon))
    segments = session.accept(silence(120)) + session.finish()
    assert {word for segment in segments for word in segment.text.split()} <= {"two", "three"}


def test_a_cut_halves_no_word() -> None:
    stream = BeamStream(16, Lexicon(units=UNITS, words=["two", "three"]))
    for letter in "two▁three":
        frame = np.full((1, UNITS.vocab_size), -20.0, np.float32)
        frame[0, UNITS.symbols.index(letter)] = -0.1
        stream.feed(frame)
        stream.feed(np.where(np.arange(UNITS.vocab_size) == 0, -0.1, -20.0).astype(np.float32)[None])
    assert [stream.cut(count) for count in (2, 3, 4, 6, 9)] == [0, 3, 3, 3, 9]
