"""Delays of a student against an alignment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import export.delays
from export.delays import measure_delays, open_aligner
from export.parity import probe_sound
from export.publish import export_student
from export.transcribe import open_recogniser
from kdasr.errors import ModelError
from kdasr.interfaces import Utterance
from kdasr.models import save_model
from kdasr.text import TableUnits
from tests.export.small_models import UNITS, conformer, recurrent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("delays")
    save_model(root / "student", conformer(), UNITS)
    return root


def utterances(root: Path) -> list[Utterance]:
    recogniser = open_recogniser(root / "student")
    audio = [probe_sound(30_000, seed) for seed in range(3)]
    return [Utterance(f"u{n}", one, text=recogniser.transcribe(one)) for n, one in enumerate(audio)]


def test_a_model_aligned_by_itself_has_no_emission_delay(place: Path) -> None:
    student = open_recogniser(place / "student")
    delays = measure_delays(student, utterances(place), open_aligner(place / "student", student))
    assert (delays.utterances, delays.texts_differ, delays.wer_offline) == (3, 0, 0.0)
    assert delays.wer_streaming == delays.wer_offline
    assert delays.emission_p50_ms == 0 and delays.emission_p90_ms is not None and delays.emission_p90_ms <= 40
    # No text can be there before chunk, lookahead and window are.
    assert delays.first_token_p50_ms is not None and 40 < delays.first_token_p50_ms <= 240


def test_without_an_aligner_there_are_no_delays(place: Path) -> None:
    delays = measure_delays(open_recogniser(place / "student"), utterances(place))
    assert delays.emission_p50_ms is None and delays.first_token_p90_ms is None


def test_a_transcript_that_does_not_fit_is_counted(place: Path) -> None:
    long = Utterance("long", probe_sound(8_000, 1), text="abcdefghijklmnopqrstuvwxyz")
    student = open_recogniser(place / "student")
    delays = measure_delays(student, [long], student)
    assert delays.not_aligned == 1 and delays.emission_p50_ms is None


def test_utterances_in_which_the_student_says_nothing_are_counted(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = open_recogniser(place / "student")
    heard = utterances(place)
    alone = measure_delays(student, heard[:1], student)
    assert alone.nothing_said == 0
    stream = export.delays._stream

    def deaf_but_once(recogniser: Any, utterance: Utterance) -> Any:
        found = stream(recogniser, utterance)
        silent: Any = SimpleNamespace(tokens=[], text="")
        return found if utterance.key == "u0" else (silent, None)

    monkeypatch.setattr(export.delays, "_stream", deaf_but_once)
    # In what holds no word there is nothing to be late with.
    delays = measure_delays(student, [*heard, replace(heard[1], text="")], student)
    assert (delays.nothing_said, delays.shown_at_end, delays.not_aligned) == (2, 0, 0)
    assert delays.first_token_p50_ms == alone.first_token_p50_ms, "they have no delay"
    unaligned = measure_delays(student, heard)
    assert unaligned.nothing_said == 0, "without an aligner there are no delays at all"
    assert unaligned.wer_offline == 0 and unaligned.wer_streaming > 50 and unaligned.texts_differ == 2


def test_what_is_said_of_an_utterance_without_words_has_no_delay(place: Path) -> None:
    student = open_recogniser(place / "student")
    first, second, _ = utterances(place)
    alone = measure_delays(student, [first], student)
    delays = measure_delays(student, [first, replace(second, text="")], student)
    assert delays.emission_p90_ms == alone.emission_p90_ms
    assert delays.first_token_p90_ms == alone.first_token_p90_ms
    assert (delays.nothing_said, delays.not_aligned, delays.shown_at_end) == (0, 0, 0)


def test_percentiles_are_the_median_and_nine_tenths() -> None:
    assert export.delays._percentiles(range(1_001)) == (500, 900)
    assert export.delays._percentiles([]) == (None, None)


def test_an_aligner_with_other_units_is_refused(place: Path, tmp_path: Path) -> None:
    recogniser = open_recogniser(place / "student")
    export_student(recurrent(), UNITS, tmp_path, int8=False)
    with pytest.raises(ModelError, match="cannot align transcripts for the student.*an exported model"):
        open_aligner(tmp_path, recogniser)
    other = TableUnits([*UNITS.symbols[:-2], UNITS.symbols[-1], UNITS.symbols[-2]], None, False)
    save_model(tmp_path / "other", conformer(), other)
    with pytest.raises(ModelError, match="cannot align transcripts for the student.*got different units"):
        open_aligner(tmp_path / "other", recogniser)


def test_an_aligner_of_other_frames_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recogniser = open_recogniser(place / "student")
    slower: Any = SimpleNamespace(subsampling=8)
    monkeypatch.setattr(
        export.delays, "open_recogniser", lambda path: replace(recogniser, offline_model=slower)
    )
    with pytest.raises(ModelError, match="cannot align .*got output frames of 80 ms instead of 40 ms"):
        open_aligner(place / "student", recogniser)


def test_text_that_comes_with_the_end_alone_counts_as_late_as_the_end(place: Path) -> None:
    aligner = open_recogniser(place / "student")
    late = open_recogniser(place / "student", chunk_ms=3_200)
    (utterance, *_) = utterances(place)
    delays = measure_delays(late, [utterance], aligner)
    (first, *_) = export.delays._aligned(aligner, utterance)
    assert delays.first_token_p50_ms == 1_000 * 30_000 / 16_000 - 40 * first.frame
    assert delays.shown_at_end == 1
    assert measure_delays(aligner, [utterance], aligner).shown_at_end == 0
