"""The gate measures the WER of whatever model it is given."""

from __future__ import annotations

from pathlib import Path

import pytest

from export.card import figures_text
from export.gate import wer_gate
from export.parity import probe_sound
from export.publish import export_student
from kdasr.errors import ExportError
from kdasr.interfaces import Utterance
from kdasr.shards import write_shards
from kdasr.streaming import StreamingSession, TorchChunkModel
from tests.export.small_models import UNITS, conformer


def hears(samples: object) -> str:
    session = StreamingSession(TorchChunkModel(conformer()), UNITS)
    session.accept(samples)  # type: ignore[arg-type]
    return session.finish()


def test_a_model_that_says_the_transcript_has_no_errors(tmp_path: Path) -> None:
    audio = [probe_sound(20_000, seed) for seed in range(3)]
    right = [Utterance(f"u{n}", samples, text=hears(samples)) for n, samples in enumerate(audio)]
    gate = wer_gate(UNITS, write_shards(right, tmp_path / "right"))
    # 16-bit storage may move a frame by an ulp, never a word by three.
    assert gate(TorchChunkModel(conformer())) < 50
    wrong = [Utterance(f"u{n}", samples, text="something else") for n, samples in enumerate(audio)]
    assert wer_gate(UNITS, write_shards(wrong, tmp_path / "wrong"))(TorchChunkModel(conformer())) >= 100


def test_an_export_is_gated_on_shards(tmp_path: Path) -> None:
    utterances = [Utterance("only", probe_sound(20_000, 1), text=hears(probe_sound(20_000, 1)))]
    gate = wer_gate(UNITS, write_shards(utterances, tmp_path / "dev"))
    card = export_student(conformer(), UNITS, tmp_path / "out", gate=gate, max_wer_rise=1_000).card
    assert card["files"]["float32"]["wer_percent"] < 50
    with pytest.raises(ExportError, match="int8 costs too much accuracy"):
        export_student(conformer(), UNITS, tmp_path / "out", gate=gate, max_wer_rise=-1_000)


def test_the_figures_of_a_file_are_told_in_a_line() -> None:
    agreement = {"max_abs_difference": 0.25, "same_argmax": 0.995}
    figures = {
        "bytes": 1_234_567,
        "agreement_with_torch": agreement,
        "wer_percent": 7.1,
        "wer_rise_points": -0.13,
    }
    assert figures_text(figures) == (
        "1.23 MB, log-probs within 0.25 of torch, 99.5% of frames the same class, WER 7.10 % (-0.13)"
    )
