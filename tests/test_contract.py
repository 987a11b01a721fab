"""The alignment contract: frames of any rate, classes of other units, by hand and by property."""

from __future__ import annotations

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdasr.contract import Contract, LabelSymbols, StudentSide, label_symbols, map_symbols
from kdasr.decoding import collapse
from kdasr.errors import LabelMismatchError
from kdasr.interfaces import SoftLabels
from kdasr.recipe import parse_value
from kdasr.soft_labels import Full, Header
from kdasr.soft_labels.fit import map_classes, pool_frames, take_frames
from kdasr.storage import locate
from kdasr.text import CharUnits, TableUnits, train_sentencepiece

UNITS = CharUnits()


def labels(frames: list[dict[int, float]], tails: list[float] | None = None) -> SoftLabels:
    tails = tails or [0.0] * len(frames)
    return SoftLabels(
        np.array([len(frame) for frame in frames], np.int64),
        np.array([unit for frame in frames for unit in frame], np.int64),
        np.log(np.array([p for frame in frames for p in frame.values()], np.float32)),
        np.array([math.log(p) if p else -math.inf for p in tails], np.float32),
    )


def spiky(path: list[int]) -> SoftLabels:
    """One confident frame for each id of a path."""
    return labels([{0: 0.9, 9: 0.1} if unit == 0 else {0: 0.2, unit: 0.8} for unit in path])


def best_path(found: SoftLabels) -> list[int]:
    ends = np.cumsum(found.kept_counts)
    return [
        int(found.ids[end - n : end][found.log_probs[end - n : end].argmax()])
        for end, n in zip(ends, found.kept_counts, strict=True)
    ]


def header(**changed: object) -> Header:
    content = {
        "teacher": "t", "teacher_hash": "h", "units_hash": UNITS.hash, "vocab_size": UNITS.vocab_size,
        "feature_hash": "f", "frame_shift_ms": 10.0, "subsampling": 4, "codec": "full", "codec_params": {},
        "audio_file": "a.tar", "audio_sha256": "s", **changed,
    }  # fmt: skip
    return Header(**content)  # type: ignore[arg-type]


def test_equal_sides_change_nothing() -> None:
    contract = StudentSide(UNITS, 4).contract(header(), None, "here")
    assert contract == Contract()
    same = spiky([0, 1, 0])
    assert contract.apply(same, 3) is same


@pytest.mark.parametrize(
    ("shift_ms", "subsampling", "student", "ratio"),
    [(10.0, 2, 4, 2), (20.0, 1, 4, 2), (10.0, 8, 4, "1/2"), (10.0, 3, 4, "4/3"), (12.5, 4, 6, "6/5")],
)
def test_any_ratio_of_frame_rates(shift_ms: float, subsampling: int, student: int, ratio: str | int) -> None:
    made = header(frame_shift_ms=shift_ms, subsampling=subsampling)
    contract = StudentSide(UNITS, student).contract(made, None, "here")
    assert contract.teacher_per_student == Fraction(ratio)


def test_a_slower_teacher_is_repeated() -> None:
    found = Contract(Fraction(1, 2)).apply(spiky([0, 3, 0]), 6)
    assert best_path(found) == [0, 0, 3, 3, 0, 0]
    assert best_path(Contract(Fraction(2, 3)).apply(spiky([1, 2, 3, 4]), 6)) == [1, 2, 2, 3, 4, 4]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([0, 0, 0, 5, 0, 0], [0, 5, 0]),  # the mean over frames 2 and 3 would say blank
        ([0, 0, 5, 6, 0, 0], [0, 5, 6]),  # the second spike waits one frame
        ([0, 5, 0, 5, 0, 0], [5, 0, 5]),  # equal units keep their blank
        ([0, 5, 5, 0, 0, 0], [5, 5, 0]),  # one spike of two frames stays one
        ([0, 0, 0, 0, 5, 6], [0, 5, 6]),  # the end is too near: a blank before gives way
        ([0, 5, 0, 5, 0, 5], [5, 0, 5]),  # three units need five frames: what cannot fit is lost
        ([0, 0, 5, 0, 0, 0, 6, 7], [0, 5, 6, 7]),  # of several blanks before, the last gives way
    ],
)
def test_a_faster_teacher_keeps_its_spikes(path: list[int], expected: list[int]) -> None:
    assert best_path(Contract(Fraction(2)).apply(spiky(path), len(path) // 2)) == expected


def test_of_blank_frames_the_least_blank_is_taken() -> None:
    doubts = labels([{0: 0.99, 4: 0.01}, {0: 0.6, 4: 0.4}, {0: 0.7, 4: 0.3}, {0: 0.9, 4: 0.1}])
    assert pool_frames(doubts, 2, Fraction(2)).tolist() == [1, 2]
    found = take_frames(doubts, np.array([1, 2]))
    assert np.exp(found.log_probs).tolist() == pytest.approx([0.6, 0.4, 0.7, 0.3])


@pytest.mark.parametrize(
    ("blanks", "expected"),
    [
        ([0.4, 0.1, 0.9, 0.9], [1, 2]),  # the surest frame of a spike, not its first
        ([0.9, 0.4, 0.1, 0.9], [1, 2]),  # though not one of the next student frame
    ],
)
def test_of_a_spike_the_surest_frame_within_the_student_frame_is_taken(
    blanks: list[float], expected: list[int]
) -> None:
    doubts = labels([{0: blank, 4: 1 - blank} for blank in blanks])
    assert pool_frames(doubts, 2, Fraction(2)).tolist() == expected


def test_frames_are_taken_with_their_own_tails() -> None:
    given = labels([{0: 0.9}, {0: 0.8}, {0: 0.7}, {0: 0.6}], [0.1, 0.2, 0.3, 0.4])
    assert np.exp(take_frames(given, np.array([1, 3])).tail_log_probs).tolist() == pytest.approx([0.2, 0.4])


RATIOS = st.sampled_from([Fraction(2), Fraction(4), Fraction(4, 3), Fraction(3, 2), Fraction(7, 3)])


@settings(max_examples=300)
@given(st.lists(st.sampled_from([0, 0, 0, 0, 1, 2]), min_size=1, max_size=40), RATIOS)
def test_pooling_never_loses_or_swaps_a_spike_that_fits(path: list[int], ratio: Fraction) -> None:
    student_frames = -(-len(path) * ratio.denominator // ratio.numerator)
    spoken = collapse(path)
    needed = len(spoken) + sum(a == b for a, b in itertools.pairwise(spoken))
    found = best_path(Contract(ratio).apply(spiky(path), student_frames))
    assert len(found) == student_frames
    if needed <= student_frames:
        assert collapse(found) == spoken
    else:
        assert len(collapse(found)) <= len(spoken)


def test_spikes_stay_where_they_were_heard() -> None:
    """With room between them, a spike lies in the student frame that holds its centre."""
    path = [0] * 60
    for frame in (3, 17, 30, 41, 55):
        path[frame] = 1 + frame % 3
    found = best_path(Contract(Fraction(2)).apply(spiky(path), 30))
    assert [s for s, unit in enumerate(found) if unit] == [1, 8, 15, 20, 27]


@pytest.mark.parametrize(
    ("ratio", "teacher", "student"), [(1, 11, 10), (2, 19, 10), (2, 17, 10), ("1/2", 4, 10)]
)
def test_one_frame_more_or_less_is_tolerated(ratio: str | int, teacher: int, student: int) -> None:
    contract = Contract(Fraction(ratio))
    contract.check_length(teacher, student, "utt")
    path = [0] * (teacher - 1) + [7]
    found = best_path(contract.apply(spiky(path), student))
    assert len(found) == student and found[-1] == 7


@pytest.mark.parametrize(("ratio", "teacher"), [(1, 12), (1, 8), (2, 16), (2, 23), ("1/2", 3), (2, 0)])
def test_other_lengths_are_refused_by_key(ratio: str | int, teacher: int) -> None:
    with pytest.raises(
        LabelMismatchError,
        match=r"utt-7.*soft labels and the audio differ in length; expected \d+ ± \d+ frames",
    ):
        Contract(Fraction(ratio)).check_length(teacher, 10, "utt-7")


def test_some_frames_against_none_are_refused_however_few() -> None:
    for teacher, student in ((0, 1), (1, 0)):
        with pytest.raises(LabelMismatchError, match="soft labels and the audio differ in length"):
            Contract().check_length(teacher, student, "utt")
    Contract().check_length(0, 0, "utt")


def test_a_student_has_a_frame_for_the_last_features_too() -> None:
    assert [StudentSide(UNITS, 4).frames(count) for count in (0, 1, 4, 5)] == [0, 1, 1, 2]


def test_a_pretrained_teacher_may_declare_more_slack() -> None:
    declared = header(settings={"teacher": {"slack_frames": 2}})
    contract = StudentSide(UNITS, 4).contract(declared, None, "here")
    contract.check_length(8, 10, "utt")
    assert len(best_path(contract.apply(spiky([0, 0, 0, 0, 0, 0, 7, 0]), 10))) == 10
    with pytest.raises(LabelMismatchError, match="10 ± 2 frames; got 7"):
        contract.check_length(7, 10, "utt")
    odd = StudentSide(UNITS, 4).contract(header(settings={"teacher": {"slack_frames": "all"}}), None, "here")
    assert odd.tolerance_frames == 1


@pytest.mark.parametrize(("frame_ms", "expected"), [(20.0, 2), (40.0, 3), (80.0, 3)])
def test_declared_slack_is_in_frames_of_the_slower_side(frame_ms: float, expected: int) -> None:
    """The student's are of 40 ms."""
    made = header(frame_shift_ms=frame_ms, subsampling=1, settings={"teacher": {"slack_frames": 3}})
    assert StudentSide(UNITS, 4).contract(made, None, "here").tolerance_frames == expected


def test_transcripts_without_times_have_any_length() -> None:
    contract = StudentSide(UNITS, 4).contract(header(frame_shift_ms=0.0), None, "here")
    contract.check_length(3, 50, "utt")
    path = spiky([5, 6, 5])
    assert contract.teacher_per_student is None and contract.apply(path, 50) is path


def test_symbols_are_matched_by_name_alias_and_case() -> None:
    teacher = ["<pad>", "<s>", "</s>", "<unk>", "|", "E", "'", "[noise]", "z"]
    ids = {symbol: unit for unit, symbol in enumerate(UNITS.symbols)}
    assert map_symbols(teacher, UNITS) == (0, 0, 0, 0, ids["▁"], ids["e"], ids["'"], 0, ids["z"])


def test_blank_stays_blank_and_a_symbol_of_the_same_case_comes_first() -> None:
    """torchaudio calls blank "-"."""
    units = TableUnits(["<blk>", "▁", "a", "-", "A"], None, False)
    assert map_symbols(["-", "a"], units) == (0, 2)
    assert map_symbols(["ε", "A", "a"], units) == (0, 4, 2)


def test_symbols_that_are_given_away_are_so_where_both_have_the_same_units() -> None:
    contract = StudentSide(UNITS, 4, {"q": None}).contract(
        header(), LabelSymbols(UNITS.symbols, UNITS.hash), "labels"
    )
    expected = tuple(0 if symbol == "q" else unit for unit, symbol in enumerate(UNITS.symbols))
    assert contract.class_map == expected


def test_a_symbol_that_the_student_lacks_is_refused_unless_it_is_given_away() -> None:
    teacher = ["<blk>", "a", "é", "7"]
    with pytest.raises(LabelMismatchError, match=r"2 symbols that the student lacks: é, 7.*unit_map"):
        map_symbols(teacher, UNITS)
    ids = {symbol: unit for unit, symbol in enumerate(UNITS.symbols)}
    assert map_symbols(teacher, UNITS, {"é": "e", "7": None}) == (0, ids["a"], ids["e"], 0)
    with pytest.raises(
        LabelMismatchError, match=r"unit_map has symbols that the teacher or the student .*got ä, ß\. Correct"
    ):
        map_symbols(teacher, UNITS, {"é": "ß", "7": None, "ä": "a"})


def test_symbols_that_the_student_lacks_can_be_read_and_the_map_that_strikes_them_out_be_copied() -> None:
    lacking = ["…", "-", "\u0307", "\u200b", '"']
    with pytest.raises(LabelMismatchError) as raised:
        map_symbols(["<blk>", "a", "é", *lacking], UNITS, {"é": "e"})
    message = str(raised.value)
    assert "5 symbols that the student lacks: …, -, '\\u0307', '\\u200b', \". Teacher" in message
    ready = message.partition("unit_map: ")[2]
    assert ready == r'{"é": "e", "…": null, "-": null, "\u0307": null, "\u200b": null, "\"": null}'
    unit_map = parse_value(ready)
    assert unit_map == {"é": "e", **dict.fromkeys(lacking)}
    map_symbols(["<blk>", "a", "é", *lacking], UNITS, unit_map)
    with pytest.raises(
        LabelMismatchError,
        match=r"100 symbols that the student lacks: .* and 88 more\. .*removes a symbol\.$",
    ):
        map_symbols(["<blk>", *(chr(0x4E00 + number) for number in range(100))], UNITS)


def test_classes_that_fall_together_are_added_and_struck_out_ones_go_to_blank() -> None:
    # 1 and 2 are one class to the student, 3 is struck out, and 5 is somewhere in the tail.
    found = map_classes(
        labels([{0: 0.1, 3: 0.2, 1: 0.25, 2: 0.3, 4: 0.05}, {0: 1.0}], [0.1, 0.0]), (0, 5, 5, 0, 2, 3)
    )
    assert found.kept_counts.tolist() == [3, 1]
    assert found.ids.tolist() == [0, 5, 2, 0]
    assert np.exp(found.log_probs).tolist() == pytest.approx([0.3, 0.55, 0.05, 1.0])
    assert np.exp(found.tail_log_probs).tolist() == pytest.approx([0.1, 0.0])


def test_a_tail_of_nothing_but_struck_out_classes_goes_to_blank() -> None:
    """Of a frame that kept every class of the student; cross-entropy would be 1e29 nats else."""
    mapped = map_classes(labels([{0: 0.5, 1: 0.3, 2: 0.1}, {0: 0.6, 1: 0.3}], [0.1, 0.1]), (0, 2, 1, 0, 0))
    assert mapped.ids.tolist() == [0, 2, 1, 0, 2] and mapped.kept_counts.tolist() == [3, 2]
    assert np.exp(mapped.log_probs).tolist() == pytest.approx([0.6, 0.3, 0.1, 0.6, 0.3])
    assert np.exp(mapped.tail_log_probs).tolist() == pytest.approx([0.0, 0.1])


# To the student, 1 and 2 are 5, 3 is 6, and 4 is nothing.
FALLING = (0, 5, 5, 6, 0)


def doubtful(path: list[int]) -> SoftLabels:
    """One frame for each id of a path, with something for every class."""
    return labels([{unit: 0.8 if unit == best else 0.05 for unit in range(5)} for best in path])


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ([3, 1, 2, 0, 0], [6, 5, 0, 5, 0]),  # the second sound takes the blank behind it
        ([0, 0, 3, 1, 2], [0, 6, 5, 0, 5]),  # or, at the end, those before move
        ([0, 1, 1, 2, 0], [0, 5, 0, 5, 0]),  # of two frames one can be spared
        ([0, 1, 2, 2, 0], [0, 5, 0, 5, 0]),
        ([0, 1, 2, 0], [0, 5, 0, 5]),  # of two blanks that are as near, the one behind
        ([1, 2, 3, 0, 3, 0], [5, 0, 5, 6, 0, 6]),  # a blank between equal units is none to spare
        ([0, 1, 2, 1, 0, 0], [5, 0, 5, 0, 5, 0]),
        ([1, 4, 2, 0], [5, 0, 5, 0]),  # what is struck out parts them
        ([1, 1, 0, 1, 0], [5, 5, 0, 5, 0]),
        ([3, 1, 2], [6, 5, 5]),  # no room: one is lost
        ([1, 2, 1], [5, 0, 5]),  # of three, two have room
    ],
)
def test_classes_that_fall_together_stay_two_sounds(path: list[int], expected: list[int]) -> None:
    assert best_path(Contract(Fraction(1), FALLING).apply(doubtful(path), len(path))) == expected


def test_a_blank_that_parts_is_the_blankest_frame_or_made_of_a_spike() -> None:
    found = map_classes(labels([{1: 0.7, 0: 0.3}, {2: 0.8, 0: 0.2}, {0: 0.9, 3: 0.1}]), FALLING)
    assert found.ids.tolist() == [0, 5, 0, 6, 0, 5]
    assert np.exp(found.log_probs).tolist() == pytest.approx([0.3, 0.7, 0.9, 0.1, 0.2, 0.8])
    spelled = labels([{0: 0.1, 1: 0.8, 3: 0.1}, {0: 0.1, 2: 0.8, 3: 0.1}])
    longer = Contract(None, FALLING).apply(spelled, 50)
    assert longer.kept_counts.tolist() == [3, 3, 3] and best_path(longer) == [5, 0, 5]
    assert np.exp(longer.log_probs[3:6]).tolist() == pytest.approx([0.8, 0.1, 0.1])


def test_a_sound_that_only_the_sum_makes_the_best_is_one() -> None:
    doubt = labels([{3: 0.4, 1: 0.3, 2: 0.2, 0: 0.1}, {1: 0.9, 0: 0.1}, {0: 1.0}])
    assert best_path(map_classes(doubt, FALLING)) == [5, 5, 0]


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 4]), min_size=1, max_size=40),
    st.one_of(RATIOS, st.sampled_from([Fraction(1), Fraction(1, 2), Fraction(2, 5), None])),
)
def test_the_mapped_transcript_is_that_of_the_mapped_labels(path: list[int], ratio: Fraction | None) -> None:
    student_frames = 50 if ratio is None else math.ceil(len(path) / ratio)
    found = best_path(Contract(ratio, FALLING).apply(doubtful(path), student_frames))
    spoken = [FALLING[unit] for unit in collapse(path) if FALLING[unit]]
    needed = len(spoken) + sum(a == b for a, b in itertools.pairwise(spoken))
    if ratio is None:
        assert collapse(found) == spoken and len(found) >= len(path)
    elif needed <= student_frames:
        assert len(found) == student_frames and collapse(found) == spoken
    else:
        assert len(found) == student_frames and len(collapse(found)) <= len(spoken)


def test_a_permuted_teacher_gives_the_very_labels_of_an_unpermuted_one() -> None:
    rng = np.random.default_rng(0)
    order = np.concatenate(([0], 1 + rng.permutation(UNITS.vocab_size - 1)))
    logits = rng.normal(size=(20, UNITS.vocab_size)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    own, foreign = Full().encode_many([_t(log_probs), _t(log_probs[:, order])], ["a", "b"])
    assert isinstance(own, SoftLabels) and isinstance(foreign, SoftLabels)
    class_map = map_symbols([UNITS.symbols[unit] for unit in order], UNITS)
    mapped = map_classes(foreign, class_map)
    dense = np.full_like(log_probs, -np.inf)
    dense[np.repeat(np.arange(20), mapped.kept_counts), mapped.ids] = mapped.log_probs
    np.testing.assert_allclose(dense, log_probs, atol=1e-5)
    assert best_path(mapped) == log_probs.argmax(1).tolist()


def test_other_units_without_symbols_are_refused() -> None:
    side, foreign = StudentSide(UNITS, 4), header(units_hash="other", vocab_size=2)
    with pytest.raises(LabelMismatchError, match=r"units_hash.*their symbols are needed"):
        side.contract(foreign, None, "labels")
    with pytest.raises(
        LabelMismatchError, match=r"does not match the soft labels in its folder.*2 symbols, hash other"
    ):
        side.contract(foreign, LabelSymbols(["<blk>", "a"], "third"), "labels")
    with pytest.raises(LabelMismatchError, match=r"does not match the soft labels in its folder"):
        side.contract(foreign, LabelSymbols(["<blk>", "a", "b"], "other"), "labels")
    with pytest.raises(LabelMismatchError, match=r"vocab_size"):
        side.contract(header(vocab_size=3), None, "labels")
    assert side.contract(foreign, LabelSymbols(["<blk>", "b"], "other"), "labels").class_map == (0, 4)


def test_symbols_that_a_teacher_lacks_are_named() -> None:
    side = StudentSide(UNITS, 4, {"é": "e"})
    symbols = ["<blk>", *(s for s in UNITS.symbols[:0:-1] if s not in {"'", "e", "q"}), "é", "<s>"]
    foreign = header(units_hash="other", vocab_size=len(symbols))
    assert side.lacking(side.contract(foreign, LabelSymbols(symbols, "other"), "labels")) == ["'", "q"]
    assert StudentSide(UNITS, 4).lacking(StudentSide(UNITS, 4).contract(header(), None, "labels")) == []


def test_a_symbol_that_stands_for_no_text_is_none_that_a_teacher_lacks() -> None:
    side = StudentSide(TableUnits(["<blk>", "<unk>", "▁", "a", "b"], None, False), 4)
    foreign = header(units_hash="other", vocab_size=2)
    contract = side.contract(foreign, LabelSymbols(["<blk>", "a"], "other"), "labels")
    assert side.lacking(contract) == ["▁", "b"]


def test_letters_for_words_that_the_student_writes_in_pieces_are_refused() -> None:
    """It would learn two spellings of each word."""
    pieces = train_sentencepiece(["one ten", "ten one one", "one net", "ten ten one"] * 4, 9)
    side = StudentSide(pieces, 4)
    letters = ["<blk>", "|", *"ENOT"]
    foreign = header(units_hash="other", vocab_size=len(letters))
    with pytest.raises(
        LabelMismatchError,
        match=r"whole pieces.* among them ▁one, which the labels spell ▁ o n e.*kdasr retokenise",
    ):
        side.contract(foreign, LabelSymbols(letters, "other"), "labels")
    # Their own pieces may be struck out or become others.
    same = LabelSymbols(pieces.symbols, pieces.hash)
    for unit_map in ({"▁one": None}, {"▁one": "▁ten"}):
        mapped = StudentSide(pieces, 4, unit_map).contract(
            header(units_hash=pieces.hash, vocab_size=pieces.vocab_size), same, "labels"
        )
        assert mapped.class_map is not None
    # A piece with a letter that the teacher has not is spelled by nobody but the transcripts.
    few = StudentSide(TableUnits(["<blk>", "▁", "a", "b", "ab", "▁c"], None, False), 4)
    symbols = LabelSymbols(["<blk>", "|", "A", "B", "ab"], "other")
    contract = few.contract(header(units_hash="other", vocab_size=5), symbols, "labels")
    assert few.lacking(contract) == ["▁c"]


@pytest.mark.parametrize(
    "content",
    [
        b"no json",
        b"[]",
        b'{"symbols": 3, "hash": "h"}',
        b"[" * 200_000,
        b'{"format": "x"}',
        b'{"format": "kdasr-units", "version": 99, "symbols": ["<blk>"], "hash": "h"}',
    ],
)
def test_a_damaged_list_of_symbols_is_refused(tmp_path: Path, content: bytes) -> None:
    assert label_symbols(locate(tmp_path)) is None
    UNITS.save(tmp_path)
    assert label_symbols(locate(tmp_path)) == LabelSymbols(UNITS.symbols, UNITS.hash)
    (tmp_path / "units.json").write_bytes(content)
    with pytest.raises(LabelMismatchError, match=r"units\.json.*Label again"):
        label_symbols(locate(tmp_path))


def test_symbols_that_are_not_those_of_their_hash_are_refused(tmp_path: Path) -> None:
    UNITS.save(tmp_path)
    file = tmp_path / "units.json"
    # One bit: with it, two of the teacher's classes would be the student's "d", and none its "e".
    file.write_bytes(file.read_bytes().replace(b'"e"', b'"d"'))
    with pytest.raises(LabelMismatchError, match=r"units\.json.*the hash of its symbols"):
        label_symbols(locate(tmp_path))


def test_the_symbols_of_other_programs_have_a_hash_of_their_own(tmp_path: Path) -> None:
    card = {"format": "kdasr-units", "version": 1, "symbols": ["<blk>", "a"], "hash": "other"}
    (tmp_path / "units.json").write_text(json.dumps(card))
    assert label_symbols(locate(tmp_path)) == LabelSymbols(["<blk>", "a"], "other")


def _t(array: np.ndarray) -> object:  # type: ignore[type-arg]
    import torch

    return torch.from_numpy(array)
