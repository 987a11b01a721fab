"""Codecs: which classes are kept, what the tail holds, what quantisation costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdasr.errors import ConfigError, DamagedLabelsError, SoftLabelError
from kdasr.interfaces import SoftLabels
from kdasr.soft_labels import CODECS, Codec, Full, Sampled, TopK, TopP, make_codec
from kdasr.soft_labels.runs import best_classes
from tests.soft_labels.posteriors import posteriors

EXACT_TOP_P = TopP(mass=0.9, cap=8, step_nats=0.0)
ALL_CODECS = [TopP(), EXACT_TOP_P, TopP(step_nats=0.05), TopK(5), TopK(5, step_nats=0.25), Full(), Sampled()]


def frame(labels: SoftLabels, index: int) -> dict[int, float]:
    """Probabilities kept in one frame, by class."""
    start = int(labels.kept_counts[:index].sum())
    stop = start + int(labels.kept_counts[index])
    return dict(
        zip(labels.ids[start:stop].tolist(), np.exp(labels.log_probs[start:stop]).tolist(), strict=True)
    )


def test_top_p_keeps_the_smallest_set_that_holds_the_mass_and_the_exact_tail() -> None:
    probs = torch.tensor([[0.5, 0.3, 0.15, 0.04, 0.01], [0.95, 0.02, 0.01, 0.01, 0.01]])
    labels = EXACT_TOP_P.encode(probs.log())
    assert frame(labels, 0) == pytest.approx({0: 0.5, 1: 0.3, 2: 0.15})
    assert frame(labels, 1) == pytest.approx({0: 0.95})
    assert np.exp(labels.tail_log_probs) == pytest.approx([0.05, 0.05])


def test_top_p_keeps_blank_even_where_it_is_the_least_likely_and_within_the_cap() -> None:
    probs = torch.tensor([[0.001, 0.4, 0.3, 0.2, 0.099]])
    labels = TopP(mass=0.99, cap=3, step_nats=0.0).encode(probs.log())
    assert frame(labels, 0) == pytest.approx({0: 0.001, 1: 0.4, 2: 0.3})
    assert math.exp(labels.tail_log_probs[0]) == pytest.approx(0.299)


@pytest.mark.parametrize("step_nats", [0.0, 0.25])
def test_top_p_keeps_the_likeliest_class_even_if_blank_alone_has_the_mass(step_nats: float) -> None:
    probs = torch.tensor([[0.35, 0.55, 0.1], [0.6, 0.3, 0.1], [0.02, 0.18, 0.8]])
    labels = TopP(mass=0.01, step_nats=step_nats).encode(probs.log())
    assert labels.kept_counts.tolist() == [2, 1, 2] and best_classes(labels).tolist() == [1, 0, 2]
    assert np.exp(labels.tail_log_probs) == pytest.approx([0.1, 0.4, 0.18], rel=step_nats / 2 or 1e-5)


def test_top_k_keeps_k_classes_in_every_frame() -> None:
    probs = torch.tensor([[0.9, 0.05, 0.03, 0.02], [0.1, 0.2, 0.3, 0.4]])
    labels = TopK(3).encode(probs.log())
    assert labels.kept_counts.tolist() == [3, 3]
    assert frame(labels, 1) == pytest.approx({0: 0.1, 3: 0.4, 2: 0.3})
    assert np.exp(labels.tail_log_probs) == pytest.approx([0.02, 0.2])


def test_tail_comes_from_a_logsumexp_and_survives_where_a_difference_from_one_would_cancel() -> None:
    logits = torch.tensor([[30.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    labels = TopP(mass=0.5, cap=1, step_nats=0.0).encode(logits.log_softmax(-1))
    assert labels.tail_log_probs[0] == pytest.approx(math.log(3) - 30.0, abs=1e-4)


def test_full_gives_back_every_bit() -> None:
    log_probs = posteriors(40)
    labels = Full().encode(log_probs)
    assert np.array_equal(labels.log_probs.reshape(40, 30), log_probs.numpy())
    assert np.array_equal(labels.ids.reshape(40, 30)[7], np.arange(30))
    assert np.all(np.isneginf(labels.tail_log_probs))


def test_everything_kept_leaves_no_tail() -> None:
    labels = TopP(mass=1.0, cap=4, step_nats=0.25).encode(torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log())
    assert labels.kept_counts.tolist() == [4]
    assert np.isneginf(labels.tail_log_probs[0])
    assert sum(frame(labels, 0).values()) == pytest.approx(1.0)


@pytest.mark.parametrize("codec", ALL_CODECS, ids=lambda codec: f"{codec.name}-{codec.params}")
def test_stored_frames_sum_to_one_and_begin_with_blank(codec: Codec) -> None:
    labels = codec.encode(posteriors(200), "key")
    starts = np.cumsum(labels.kept_counts) - labels.kept_counts
    assert np.all(labels.ids[starts] == 0)
    mass = np.add.reduceat(np.exp(labels.log_probs.astype(np.float64)), starts)
    assert mass + np.exp(labels.tail_log_probs) == pytest.approx(np.ones(200), abs=1e-5)


@pytest.mark.parametrize("step_nats", [0.05, 0.25, 0.5])
def test_quantisation_error_is_bounded_by_the_step(step_nats: float) -> None:
    log_probs = posteriors(300, sharpness=0.5)
    exact = TopP(0.99, 16, 0.0).encode(log_probs)
    stored = TopP(0.99, 16, step_nats).encode(log_probs)
    assert np.array_equal(exact.ids, stored.ids)
    # Half a step from rounding, and at most another half from making the frame sum to 1 again.
    likely = exact.log_probs > -10
    assert np.abs(exact.log_probs - stored.log_probs)[likely].max() <= step_nats + 1e-5


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    vocab_size=st.sampled_from([2, 3, 30, 300]),
    sharpness=st.floats(0.1, 4),
    which=st.sampled_from(range(len(ALL_CODECS))),
)
def test_encoding_what_was_stored_again_changes_nothing(
    seed: int, vocab_size: int, sharpness: float, which: int
) -> None:
    codec = ALL_CODECS[which]
    labels = codec.encode(posteriors(20, vocab_size, seed, sharpness), str(seed))
    layout = codec.layout(vocab_size)
    again = layout.unpack(layout.pack(labels), 20, len(labels.ids) - 20)
    for name in ("kept_counts", "ids", "log_probs", "tail_log_probs"):
        assert np.array_equal(getattr(again, name), getattr(labels, name)), name


def test_what_is_nearly_as_likely_as_the_best_class_does_not_become_it() -> None:
    """Steps of 0.25 nats are wider than what parts these."""
    log_probs = torch.tensor([[0.32, 0.32, 0.36], [0.32, 0.35, 0.33], [0.34, 0.33, 0.33]]).log()
    stored = TopP(mass=0.9999).encode(log_probs)
    assert best_classes(stored).tolist() == [2, 1, 0]
    assert frame(stored, 0)[2] / frame(stored, 0)[1] == pytest.approx(math.exp(0.25))
    # Of equals none is told apart.
    equal = frame(TopP(mass=0.9999).encode(torch.full((1, 3), 1 / 3).log()), 0)
    assert list(equal.values()) == pytest.approx([1 / 3] * 3)


def test_sampled_draws_are_unbiased_and_differ_by_key_only() -> None:
    log_probs = posteriors(3, 6, sharpness=0.3)
    codec = Sampled(num_draws=4)
    mean = np.zeros((3, 6))
    rounds = 4000
    for number in range(rounds):
        labels = codec.encode(log_probs, f"key-{number}")
        rows = np.repeat(np.arange(3), labels.kept_counts)
        np.add.at(mean, (rows, labels.ids), np.exp(labels.log_probs) / rounds)
    assert mean == pytest.approx(log_probs.exp().numpy(), abs=0.01)
    assert np.array_equal(codec.encode(log_probs, "a").ids, codec.encode(log_probs, "a").ids)
    many = posteriors(50, 6, sharpness=0.3)
    assert not np.array_equal(codec.encode(many, "a").log_probs, codec.encode(many, "b").log_probs)


def test_draws_of_another_seed_are_others() -> None:
    log_probs = posteriors(50, 6, sharpness=0.3)
    one, other = (Sampled(seed=seed).encode(log_probs, "a") for seed in (0, 1))
    assert not np.array_equal(one.log_probs, other.log_probs)


@pytest.mark.parametrize(
    ("codec", "classes"),
    [*((TopK(classes), classes) for classes in (256, 257, 258)), *((Sampled(n), 2) for n in (255, 256, 257))],
    ids=lambda value: str(getattr(value, "params", value)),
)
def test_ids_and_counts_that_just_fit_a_byte_or_just_do_not_are_stored(codec: Codec, classes: int) -> None:
    logits = torch.randn(3, classes)
    if classes == 2:
        logits[0] = torch.tensor([0.0, -200.0])  # all draws are of one class
    labels = codec.encode(logits.log_softmax(-1), "a")
    layout = codec.layout(classes)
    again = layout.unpack(layout.pack(labels), 3, len(labels.ids) - 3)
    for name in ("kept_counts", "ids", "log_probs"):
        assert np.array_equal(getattr(again, name), getattr(labels, name)), name


def test_draws_that_are_more_than_were_made_are_damage() -> None:
    codec = Sampled(num_draws=12)
    labels = codec.encode(posteriors(3, 6), "a")
    layout = codec.layout(6)
    raw = bytearray(layout.pack(labels))
    raw[3] += 1  # of blank, in the first frame
    with pytest.raises(DamagedLabelsError, match="draws of a frame"):
        layout.unpack(bytes(raw), 3, len(labels.ids) - 3)


def test_a_number_that_is_none_is_damage() -> None:
    labels, layout = Full().encode(posteriors(2, 3)), Full().layout(3)
    labels.log_probs[4] = np.nan
    with pytest.raises(DamagedLabelsError, match="not a log-probability"):
        layout.unpack(layout.pack(labels), 2, 4)


@pytest.mark.parametrize("codec", ALL_CODECS, ids=lambda codec: f"{codec.name}-{codec.params}")
def test_a_batch_gives_the_labels_of_each_utterance_alone(codec: Codec) -> None:
    utterances = [posteriors(length, seed=length) for length in (5, 1, 17)]
    keys = ["a", "b", "c"]
    together = codec.encode_many(utterances, keys)
    for item, key, got in zip(utterances, keys, together, strict=True):
        assert isinstance(got, SoftLabels)
        assert np.array_equal(got.log_probs, codec.encode(item, key).log_probs)


def test_one_bad_utterance_does_not_touch_its_neighbours() -> None:
    good, bad = posteriors(6), posteriors(8)
    bad[3, 4] = torch.nan
    results = TopP().encode_many([good, bad, good], ["a", "b", "c"])
    assert isinstance(results[1], SoftLabelError)
    assert "1 of 8 frames" in str(results[1])
    assert "frame 3" in str(results[1])
    assert isinstance(results[0], SoftLabels) and isinstance(results[2], SoftLabels)


@pytest.mark.parametrize("nats", [-0.02, 0.02])
def test_what_does_not_sum_to_one_is_refused(nats: float) -> None:
    for log_probs in (torch.randn(4, 5), torch.randn(4, 5).log_softmax(-1) + nats):
        with pytest.raises(SoftLabelError, match="do not sum to 1"):
            TopP().encode(log_probs)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_codec_is_rebuilt_from_its_name_and_params(name: str) -> None:
    codec = CODECS[name]()
    assert make_codec(name, codec.params) == codec


def test_unknown_codecs_and_parameters_are_refused_by_name() -> None:
    with pytest.raises(SoftLabelError, match="'top_q'"):
        make_codec("top_q", {})
    with pytest.raises(SoftLabelError, match="top_p"):
        make_codec("top_p", {"masss": 0.5})
    for params in (
        {"mass": float("nan")},
        {"cap": 1e300},
        {"step_nats": 1e-9},
        {"mass": "x"},
        {"floor_nats": 1e9},
    ):
        with pytest.raises(SoftLabelError, match="top_p"):
            make_codec("top_p", params)
    with pytest.raises(ConfigError, match="mass"):
        TopP(mass=0)
    assert TopK(k=1).step_nats == 0  # blank and the tail, as they are
    for codec, name in ((TopK, "k"), (TopP, "cap")):  # levels count from the best class, which must be kept
        with pytest.raises(ConfigError, match=rf"{name}: .*expected an integer >= 2; got 1"):
            codec(**{name: 1, "step_nats": 0.25})


def test_posteriors_of_two_teachers_or_without_keys_are_refused() -> None:
    two = [posteriors(5, 30), posteriors(5, 20)]
    with pytest.raises(SoftLabelError, match=r"got \[20, 30\] classes, 2 utterances and 2 keys"):
        TopP().encode_many(two, ["a", "b"])
    with pytest.raises(SoftLabelError, match=r"got \[30\] classes, 2 utterances and 1 keys"):
        TopP().encode_many(two[:1] * 2, ["a"])
