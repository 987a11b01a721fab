"""The gate measures the WER of whatever model it is given."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

import export.gate
from export.card import figures_text
from export.gate import wer_gate
from export.parity import probe_sound
from export.publish import GATE_PURPOSE, NOT_MEASURED, Gate, export_student
from kdasr.features import LOG_MEL_FLOOR, log_mel
from kdasr.interfaces import Utterance
from kdasr.shards import write_shards
from kdasr.streaming import StreamingSession, TorchChunkModel
from kdasr.students.conformer import ChunkConformer
from tests.export.small_models import UNITS, conformer


def hears(samples: object) -> str:
    return StreamingSession(TorchChunkModel(conformer()), UNITS).hear(samples)  # type: ignore[arg-type]


def test_a_model_that_says_the_transcript_has_no_errors(tmp_path: Path) -> None:
    audio = [probe_sound(20_000, seed) for seed in range(3)]
    right = [Utterance(f"u{n}", samples, text=hears(samples)) for n, samples in enumerate(audio)]
    gate = wer_gate(UNITS, write_shards(right, tmp_path / "right"))
    # 16-bit storage may move a frame by an ulp, never a word by three.
    measured = gate(TorchChunkModel(conformer()))
    assert measured.wer_percent < 50 and measured.folders == (f"{tmp_path.name}/right",)
    assert measured.words == sum(len((one.text or "").split()) for one in right)
    wrong = [Utterance(f"u{n}", samples, text="something else") for n, samples in enumerate(audio)]
    gate = wer_gate(UNITS, write_shards(wrong, tmp_path / "wrong"))
    assert gate(TorchChunkModel(conformer())).wer_percent >= 100


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (["/data/ann/corpus/dev", "/data/ann/corpus/labelled"], ("corpus/dev", "corpus/labelled")),
        (["shards/dev", "/else/shards/dev"], ("shards/dev",)),
        (["/dev", "test"], ("dev", "test")),
    ],
)
def test_a_card_does_not_say_where_audio_lies_on_this_machine(
    folders: list[str], told: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    result = SimpleNamespace(wer=1.0, errors=SimpleNamespace(words=5))
    monkeypatch.setattr(export.gate, "evaluate_transcriber", lambda transcribe, shards: result)
    gate = wer_gate(UNITS, [Path(folder) / f"shard-{n}.tar" for folder in folders for n in range(2)])
    assert gate(TorchChunkModel(conformer())).folders == told


@pytest.mark.slow
def test_an_export_is_gated_on_shards(tmp_path: Path) -> None:
    utterances = [Utterance("only", probe_sound(20_000, 1), text=hears(probe_sound(20_000, 1)))]
    gate = wer_gate(UNITS, write_shards(utterances, tmp_path / "dev"))
    card = export_student(conformer(), UNITS, tmp_path / "out", gate=gate, max_wer_rise=1_000).card
    assert card["files"]["float32"]["wer_percent"] < 50
    refused = export_student(conformer(), UNITS, tmp_path / "out", gate=gate, max_wer_rise=-1_000).refused
    assert refused is not None and refused.startswith("int8 costs too much accuracy")


def test_the_figures_of_a_file_are_told_in_a_line() -> None:
    agreement = {"max_abs_difference": 0.25, "same_argmax": 0.995}
    figures = {
        "bytes": 1_234_567,
        "agreement_with_torch": agreement,
        "wer_percent": 7.1,
        "wer_rise_points": -0.13,
        "wer_data": {"words": 320, "folders": ["shards/dev", "shards/labelled"]},
    }
    before = "1.23 MB, log-probs within 0.25 of torch, 99.5% of frames with the same class, WER "
    assert figures_text(figures) == (
        f"{before}7.10 % (-0.13) over the 320 words of shards/dev, shards/labelled"
    )
    unknown = {**figures, "wer_percent": None, "wer_data": NOT_MEASURED}
    assert figures_text(unknown) == f"{before}not measured: exported without development shards (--dev)"


def spoken(text: str, seed: int) -> NDArray[np.float32]:
    """A tone of 120 ms for each letter, and one for each space, every 200 ms."""
    random, time_s = np.random.default_rng(seed), np.arange(1_920) / 16_000
    samples = 1e-4 * random.standard_normal(6_400 + 3_200 * len(text))
    for place, char in enumerate(text):
        pitch_hz = 400 * 1.35 ** (" abcdefgh".index(char) - 1)
        begin = 3_200 * (1 + place)
        samples[begin : begin + 1_920] += (
            0.3 * np.hanning(1_920) ** 0.25 * np.sin(2 * np.pi * pitch_hz * time_s)
        )
    return samples.astype(np.float32)


def sentence(random: np.random.Generator, letters: str) -> str:
    """Eight words of one to three letters."""
    return " ".join("".join(random.choice(list(letters), random.integers(1, 4))) for _ in range(8))


@pytest.fixture(scope="module")
def trained() -> ChunkConformer:
    """A student that has learnt which tone is which letter."""
    torch.manual_seed(1)
    student = ChunkConformer(
        vocab_size=UNITS.vocab_size, width=32, num_layers=1, num_heads=2, expansion=2, kernel_frames=5,
        chunk_frames=4, left_context_frames=8, lookahead_frames=1, dropout=0.0,
    )  # fmt: skip
    random = np.random.default_rng(0)
    texts = [sentence(random, "abcdefgh") for _ in range(12)]
    features = [log_mel(spoken(text, seed)) for seed, text in enumerate(texts)]
    together = torch.cat(features)
    student.set_statistics(together.mean(0), together.std(0))
    lengths_b = torch.tensor([len(one) for one in features])
    features_btf = pad_sequence(features, batch_first=True, padding_value=LOG_MEL_FLOOR)
    classes_bt = torch.zeros(len(texts), -(-features_btf.shape[1] // 4), dtype=torch.int64)
    for row, text in enumerate(texts):
        for place, char in enumerate(text):
            frame = 5 * (1 + place)
            classes_bt[row, frame + 1 : frame + 3] = UNITS.symbols.index("▁" if char == " " else char)
    optimiser = torch.optim.Adam(student.parameters(), lr=1e-2)
    for _ in range(25):
        log_probs_btv, _ = student.offline(features_btf, lengths_b)
        optimiser.zero_grad()
        functional.nll_loss(log_probs_btv.flatten(0, 1), classes_bt.flatten()).backward()
        optimiser.step()
    return student.eval()


def without_h_in_int8(student: ChunkConformer) -> ChunkConformer:
    """The same in float32. In 8 bits, the row of `h` in its head has room for nothing but a huge weight,
    of an input that is always zero."""
    broken = copy.deepcopy(student)
    norm = broken.layers[-1].norm
    assert isinstance(norm, torch.nn.LayerNorm)
    with torch.no_grad():
        norm.weight[0] = norm.bias[0] = 0
        broken.head.weight[UNITS.symbols.index("h"), 0] = 1e5
    return broken


def words_with_h(count: int, folder: Path) -> Gate:
    """A gate over 208 words, so many of them with the letter."""
    random = np.random.default_rng(1)
    texts = [sentence(random, "abcdefg") for _ in range(26)]
    texts = [f"{text[:-1]}h" if row < count else text for row, text in enumerate(texts)]
    utterances = [Utterance(f"u{row}", spoken(text, 100 + row), text=text) for row, text in enumerate(texts)]
    return wer_gate(UNITS, write_shards(utterances, folder))


@pytest.mark.slow
def test_the_gate_passes_a_trained_student_that_quantises_well(
    trained: ChunkConformer, tmp_path: Path
) -> None:
    files = export_student(trained, UNITS, tmp_path / "out", gate=words_with_h(2, tmp_path / "dev")).card[
        "files"
    ]
    assert files["float32"]["wer_percent"] == files["int8"]["wer_percent"] == 0
    for file in files.values():
        assert file["wer_data"] == {
            "words": 208,
            "folders": (f"{tmp_path.name}/dev",),
            "purpose": GATE_PURPOSE,
        }


@pytest.mark.slow
def test_the_gate_counts_to_the_word(trained: ChunkConformer, tmp_path: Path) -> None:
    """One word of 208 is 0.48 points and two are 0.96: the limit of 0.5 lies between them."""
    broken = without_h_in_int8(trained)
    card = export_student(broken, UNITS, tmp_path / "out", gate=words_with_h(1, tmp_path / "one")).card
    assert card["files"]["float32"]["wer_percent"] == 0
    assert card["files"]["int8"]["wer_rise_points"] == pytest.approx(100 / 208)
    exported = export_student(broken, UNITS, tmp_path / "out", gate=words_with_h(2, tmp_path / "two"))
    assert exported.int8_path is None and exported.refused is not None
    assert "at most 0.5 points" in exported.refused
    assert "got 0.96 points (0.00 % to 0.96 % of 208 words)" in exported.refused
    assert exported.card["refused"]["int8"]["wer_rise_points"] == pytest.approx(200 / 208)
