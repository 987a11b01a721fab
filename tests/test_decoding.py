"""Greedy and prefix-beam decoding against direct definitions and brute force."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from kdasr.decoding import (
    BeamStream,
    GreedyStream,
    Hypothesis,
    Token,
    collapse,
    decode_whole,
    greedy,
    prefix_beam,
)
from kdasr.errors import ConfigError
from kdasr.lexicon import Lexicon
from kdasr.text import CharUnits


def random_log_probs(seed: int, frames: int, classes: int, peak: float = 1.0) -> NDArray[np.float32]:
    logits = np.random.default_rng(seed).normal(size=(frames, classes)) * peak
    shifted = logits - logits.max(axis=1, keepdims=True)
    return (shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))).astype(np.float32)


def path_log_probs(path: list[int], classes: int = 4) -> NDArray[np.float32]:
    """Log-probs whose best path is `path`, with probability 0.7 in every frame."""
    probs = np.full((len(path), classes), 0.3 / (classes - 1), dtype=np.float32)
    probs[np.arange(len(path)), path] = 0.7
    return np.log(probs)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [([], []), ([0, 0], []), ([1, 1, 2], [1, 2]), ([1, 0, 1], [1, 1]), ([0, 3, 3, 0, 0, 3, 2, 2], [3, 3, 2])],
)
def test_collapse_merges_runs_then_drops_blanks(ids: list[int], expected: list[int]) -> None:
    assert collapse(ids) == expected


def test_greedy_gives_spikes_with_frame_and_log_prob() -> None:
    log_probs = path_log_probs([0, 2, 2, 0, 2, 1])
    (tokens,) = greedy(log_probs[None], [6])
    assert [(token.id, token.frame) for token in tokens] == [(2, 1), (2, 4), (1, 5)]
    assert [token.log_prob for token in tokens] == pytest.approx([np.log(0.7)] * 3, abs=1e-6)


def test_greedy_stops_at_each_length() -> None:
    log_probs = torch.from_numpy(np.stack([path_log_probs([1, 2, 3]), path_log_probs([1, 2, 3])]))
    tokens = greedy(log_probs, torch.tensor([2, 0]))
    assert [[token.id for token in row] for row in tokens] == [[1, 2], []]


@given(st.integers(0, 10_000), st.integers(0, 3))
def test_greedy_is_argmax_then_collapse(seed: int, short_by: int) -> None:
    log_probs = np.stack([random_log_probs(seed + row, 12, 4) for row in range(3)])
    lengths = [12, 12 - short_by, 5]
    for row, tokens in enumerate(greedy(log_probs, lengths)):
        best = log_probs[row, : lengths[row]].argmax(axis=1)
        assert [token.id for token in tokens] == collapse(best.tolist())
        for token in tokens:
            assert best[token.frame] == token.id
            assert token.frame == 0 or best[token.frame - 1] != token.id
            assert token.log_prob == log_probs[row, token.frame, token.id]


@given(st.integers(0, 10_000), st.lists(st.integers(0, 5), max_size=12))
def test_a_stream_in_any_cut_equals_the_whole(seed: int, chunk_sizes: list[int]) -> None:
    log_probs = random_log_probs(seed, 24, 3)
    stream, start = GreedyStream(), 0
    for size in [*chunk_sizes, 24]:
        before = len(stream.tokens)
        assert stream.feed(log_probs[start : start + size]) is (len(stream.tokens) > before)
        start = min(24, start + size)
    assert stream.tokens == greedy(log_probs[None], [24])[0]
    assert stream.frames_seen == 24


def test_a_unit_that_runs_over_a_cut_is_emitted_once() -> None:
    stream = GreedyStream()
    stream.feed(path_log_probs([0, 1]))
    stream.feed(torch.from_numpy(path_log_probs([1, 1, 0, 1])))
    assert [(token.id, token.frame) for token in stream.tokens] == [(1, 1), (1, 5)]


def brute_force(log_probs: NDArray[np.float32]) -> list[Hypothesis]:
    """Every alignment enumerated, summed by the text it collapses to."""
    frames, classes = log_probs.shape
    totals: dict[tuple[int, ...], float] = defaultdict(lambda: -np.inf)
    for path in itertools.product(range(classes), repeat=frames):
        score = float(sum(log_probs[frame, unit] for frame, unit in enumerate(path)))
        text = tuple(collapse(path))
        totals[text] = float(np.logaddexp(totals[text], score))
    return sorted((Hypothesis(*item) for item in totals.items()), key=lambda found: -found.log_prob)


@pytest.mark.parametrize(("frames", "classes"), [(1, 2), (4, 3), (6, 3), (5, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_a_wide_beam_finds_every_text_with_its_exact_probability(
    frames: int, classes: int, seed: int
) -> None:
    log_probs = random_log_probs(seed, frames, classes)
    expected = brute_force(log_probs)
    found = prefix_beam(log_probs, beam=10_000, nbest=10_000)
    assert {item.ids for item in found} == {item.ids for item in expected}
    by_ids = {item.ids: item.log_prob for item in found}
    for item in expected:
        assert by_ids[item.ids] == pytest.approx(item.log_prob, abs=1e-5)
    assert np.logaddexp.reduce([item.log_prob for item in found]) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("seed", range(20))
def test_a_narrow_beam_never_claims_more_than_the_truth(seed: int) -> None:
    log_probs = random_log_probs(seed, 6, 3, peak=2.0)
    truth = {item.ids: item.log_prob for item in brute_force(log_probs)}
    found = prefix_beam(log_probs, beam=4, nbest=4)
    assert len(found) == 4
    assert [item.log_prob for item in found] == sorted((item.log_prob for item in found), reverse=True)
    assert all(item.log_prob <= truth[item.ids] + 1e-6 for item in found)


def test_summing_alignments_can_beat_the_best_path() -> None:
    # Hannun's textbook case: the best path is all blank (0.36), but "a" sums to 0.64.
    log_probs = np.log(np.array([[0.6, 0.4], [0.6, 0.4]], dtype=np.float32))
    assert greedy(log_probs[None], [2]) == [[]]
    (best,) = prefix_beam(log_probs, beam=3)
    assert best.ids == (1,)
    assert best.log_prob == pytest.approx(np.log(0.64), abs=1e-6)


def test_certain_frames_and_no_frames() -> None:
    certain = np.full((3, 3), -np.inf, dtype=np.float32)
    certain[[0, 1, 2], [1, 0, 1]] = 0.0
    assert prefix_beam(torch.from_numpy(certain), beam=8, nbest=5) == [Hypothesis((1, 1), 0.0)]
    assert prefix_beam(np.zeros((0, 3), dtype=np.float32), beam=8) == [Hypothesis((), 0.0)]
    stream = GreedyStream()
    assert stream.feed(np.zeros((0, 3), dtype=np.float32)) is False and stream.tokens == []


class OneOf:
    """A grammar of a few transcripts."""

    def __init__(self, *transcripts: tuple[int, ...], classes: int) -> None:
        self.transcripts, self.classes = set(transcripts), classes

    def next_costs(self, prefix: tuple[int, ...], after_pause: bool = False) -> NDArray[np.float64]:
        follow = {one[len(prefix)] for one in self.transcripts if one[: len(prefix)] == prefix != one}
        return np.array([0.0 if unit in follow else np.inf for unit in range(self.classes)])

    def end_cost(self, prefix: tuple[int, ...]) -> float:
        return 0.0 if prefix in self.transcripts else np.inf

    def last_word_start(self, prefix: tuple[int, ...]) -> int:
        return 0


@given(st.integers(0, 10_000), st.lists(st.integers(0, 5), max_size=12))
def test_a_search_in_any_cut_finds_what_it_finds_in_the_whole(seed: int, chunk_sizes: list[int]) -> None:
    log_probs = random_log_probs(seed, 24, 4, peak=2.0)
    stream, start = BeamStream(6), 0
    for size in [*chunk_sizes, 24]:
        before = stream.tokens
        assert stream.feed(log_probs[start : start + size]) is (stream.tokens != before)
        start = min(24, start + size)
    assert stream.hypotheses(6) == prefix_beam(log_probs, beam=6, nbest=6)
    assert tuple(token.id for token in stream.tokens) == stream.hypotheses(1)[0].ids
    assert stream.frames_seen == 24


def test_a_token_of_the_search_lies_where_its_unit_is_likeliest() -> None:
    log_probs = path_log_probs([0, 0, 1, 1, 0, 2, 0, 2])
    log_probs[0, 1] = np.log(0.2)  # a faint 1 long before the one that is said
    stream = BeamStream(8)
    stream.feed(log_probs)
    assert [(token.id, token.frame) for token in stream.tokens] == [(1, 2), (2, 5), (2, 7)]
    assert stream.tokens == greedy(log_probs[None], [8])[0]


def test_what_is_taken_is_final_and_the_rest_goes_on() -> None:
    path = [1, 0, 2, 2, 0, 3, 1]
    log_probs = path_log_probs([*path, *path])
    whole = greedy(log_probs[None], [14])[0]
    for cut in range(1, 14):
        stream = BeamStream(8)
        stream.feed(log_probs[:cut])
        taken = stream.tokens[: cut // 2]
        stream.take(len(taken))
        stream.feed(log_probs[cut:])
        assert taken + stream.tokens == whole
        # Of what was taken only the last unit is remembered, for the rule of repeated units.
        assert len(stream._best.ids) <= len(stream.tokens) + max(1, len(taken))


@pytest.mark.parametrize("seed", range(3))
def test_no_unit_comes_before_those_that_were_taken(seed: int) -> None:
    """Other prefixes with these units may have them elsewhere, and become the best later."""
    stream, frames = BeamStream(), []
    log_probs = random_log_probs(seed, 300, 3)
    for first in range(0, 300, 6):
        stream.feed(log_probs[first : first + 6])
        count = max(0, len(stream.tokens) - 3)
        frames += [token.frame for token in stream.tokens[:count]]
        stream.take(count)
        assert sorted(now := [*frames, *(token.frame for token in stream.tokens)]) == now


def test_prefixes_that_differ_in_what_was_taken_are_given_up() -> None:
    log_probs = np.log(np.array([[0.1, 0.5, 0.4], [0.98, 0.01, 0.01], [0.1, 0.01, 0.89]], np.float32))
    grammar = OneOf((1, 1), (2, 2), classes=3)
    undecided, decided = BeamStream(8, grammar), BeamStream(8, grammar)
    for stream in (undecided, decided):
        stream.feed(log_probs[:1])
        assert [token.id for token in stream.tokens] == [1]
    decided.take(1)
    for stream in (undecided, decided):
        stream.feed(log_probs[1:])
        stream.finish()
    assert [token.id for token in undecided.tokens] == [2, 2]
    assert [token.id for token in decided.tokens] == [1]


@pytest.mark.parametrize("with_words", [False, True])
def test_a_long_text_is_found_in_full_and_costs_no_more_for_each_frame(with_words: bool) -> None:
    units = CharUnits()
    lexicon = Lexicon(units=units, words=["one", "two", "three"]) if with_words else None
    text = " ".join(["one", "two", "three"] * 120)
    ids = units.encode(text)
    path = [unit for unit in ids for _ in range(2)]
    path[1::2] = [0] * len(ids)
    log_probs = path_log_probs(path, classes=units.vocab_size)
    stream = BeamStream(8, lexicon)
    taken: list[Token] = []
    longest = 0
    for start in range(0, len(path), 7):
        before, fixed = stream.tokens, stream.num_fixed
        assert stream.feed(log_probs[start : start + 7]) is (stream.tokens != before)
        assert stream.num_fixed >= fixed and stream.tokens[:fixed] == before[:fixed]
        longest = max(longest, *(len(prefix.ids) for prefix in stream._prefixes))
        if start == 7 * 60:  # some of what is settled, up to a word
            taken = stream.tokens[: stream.cut(30)]
            stream.take(len(taken))
    assert stream.num_fixed > 500
    stream.finish()
    assert longest <= (256 if with_words else 1100) < len(ids)
    assert units.decode([token.id for token in taken + stream.tokens]) == text
    assert [token.frame for token in taken + stream.tokens] == list(range(0, len(path), 2))
    assert units.decode(list(prefix_beam(log_probs, 8, grammar=lexicon)[0].ids)) == text


def test_a_long_text_too_ends_with_its_last_complete_word() -> None:
    """Wherever the beginning of another word lies when what all prefixes share is settled."""
    units = CharUnits()
    lexicon = Lexicon(units=units, words=["one", "two", "seventeen"])
    for count in range(32, 38):
        words = " ".join((["one", "two"] * count)[:count])
        ids = units.encode(f"{words} seve")
        path = [unit for one in ids for unit in (one, 0)]
        found = decode_whole(BeamStream(1, lexicon), path_log_probs(path, classes=units.vocab_size))
        assert units.decode([token.id for token in found]) == words


def test_at_its_end_a_transcript_is_complete_or_nothing() -> None:
    log_probs = path_log_probs([1, 2], classes=3)
    short = BeamStream(8, OneOf((1, 2, 1), (2,), classes=3))
    short.feed(log_probs)
    assert [token.id for token in short.tokens] == [1, 2]
    short.settle()
    assert [token.id for token in short.tokens] == [2]
    none = BeamStream(8, OneOf((1, 2, 1), classes=3))
    none.feed(log_probs)
    none.finish()
    assert none.tokens == []


def test_after_a_pause_another_transcript_begins() -> None:
    stream = BeamStream(1, OneOf((1, 2), (2, 1), classes=3))
    for path in ([1, 0, 2], [2, 0, 1], [1, 1], [1, 2]):  # the third is none, and nothing is left of it
        first = stream.frames_seen
        stream.feed(path_log_probs([*path, 0], classes=3))
        stream.settle()
        expected = [unit for unit in path if unit] if len(set(path)) > 1 else []
        assert [token.id for token in stream.tokens] == expected
        assert all(token.frame >= first for token in stream.tokens)
        stream.take(len(stream.tokens))
        assert stream.tokens == []


def test_without_a_grammar_a_held_unit_is_heard_once_whatever_was_taken() -> None:
    stream = BeamStream(8)
    stream.feed(path_log_probs([1, 2, 2]))
    stream.settle()
    stream.take(2)
    stream.feed(path_log_probs([2, 2, 0, 2]))
    assert [token.id for token in stream.tokens] == [2]


def test_what_is_heard_before_a_settled_transcript_is_taken_goes_on_with_it() -> None:
    stream = BeamStream(8, OneOf((1,), (1, 2), classes=3))
    stream.feed(path_log_probs([1, 0], classes=3))
    stream.settle()
    stream.feed(path_log_probs([0], classes=3))
    stream.take(1)
    stream.feed(path_log_probs([2], classes=3))
    assert [token.id for token in stream.tokens] == [2]


def test_a_word_goes_on_whatever_of_it_was_taken() -> None:
    stream, spoken = spelling("two"), CharUnits().encode("two")
    for unit in spoken:
        stream.feed(path_log_probs([unit], classes=CharUnits().vocab_size))
        assert [token.id for token in stream.tokens] == [unit]
        stream.take(1)


def test_a_word_of_which_the_start_was_taken_is_given_up_with_it() -> None:
    stream, units = spelling("two", "six"), CharUnits()
    stream.feed(path_log_probs(units.encode("tw"), classes=units.vocab_size))
    stream.take(1)
    stream.finish()
    stream.feed(path_log_probs(units.encode("six"), classes=units.vocab_size))
    assert units.decode([token.id for token in stream.tokens]) == "six"


def spelling(*words: str) -> BeamStream:
    return BeamStream(8, Lexicon(units=CharUnits(), words=words))


FRAMES = torch.tensor([[0.1, 0.9], [0.8, 0.2]]).log()


@pytest.mark.parametrize(
    ("log_probs", "lengths", "message"),
    [
        (
            FRAMES[None],
            torch.tensor([1.0]),
            "whole numbers of frames",
        ),  # a share of the longest, as in SpeechBrain
        (FRAMES[:, None], [2], "wrong axes"),
        (FRAMES, [2], "wrong axes"),
        (FRAMES[None], [3], "expected 3 frames; got 2"),
    ],
)
def test_greedy_refuses_what_is_no_batch(log_probs: torch.Tensor, lengths: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        greedy(log_probs, lengths)


def test_decoders_take_frames_of_any_kind_and_one_utterance_only() -> None:
    for decoder in (GreedyStream, BeamStream):
        for frames in (FRAMES.clone().requires_grad_(), FRAMES.bfloat16(), FRAMES.half(), FRAMES.numpy()):
            assert [token.id for token in decode_whole(decoder(), frames)] == [1]
        with pytest.raises(ConfigError, match=r"frames of one utterance; expected \(T, V\); got \(1, 2, 2\)"):
            decoder().feed(FRAMES[None])
    with pytest.raises(ConfigError, match="^beam: "):
        prefix_beam(FRAMES, 0)
    with pytest.raises(ConfigError, match="^nbest: "):
        prefix_beam(FRAMES, 4, 0)
    with pytest.raises(ConfigError, match="different units; expected 2 classes, .* got 29"):
        prefix_beam(FRAMES, 4, grammar=Lexicon(units=CharUnits(), words=["one"]))
