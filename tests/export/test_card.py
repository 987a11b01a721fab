"""An export that is passed on with one of its files: what is there is opened, what is not is an error."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from export.card import CARD_FILE, read_export_card, refusal
from export.load import exported_file, load_exported
from export.parity import probe_sound
from export.publish import export_student
from export.runtime import FLOAT_FILE, INT8_FILE
from export.transcribe import open_recogniser
from kdasr.errors import ModelError
from kdasr.scoreboard import check_model_of_row
from kdasr.streaming import set_chunk_ms
from kdasr.text import UNITS_FILE, train_sentencepiece
from tests.export.small_models import UNITS, conformer, recurrent

FILES = {"float32": FLOAT_FILE, "int8": INT8_FILE}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_student(recurrent(), UNITS, folder)
    return folder


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """An export to be spoilt."""
    return shutil.copytree(exported, tmp_path, dirs_exist_ok=True)


def take_from_card(folder: Path, precision: str) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    del card["files"][precision]
    (folder / CARD_FILE).write_text(json.dumps(card))


def test_the_card_holds_what_a_client_needs(folder: Path) -> None:
    card = json.loads((folder / CARD_FILE).read_text())
    assert card["streaming"]["tail_ms"] == 320
    features = card["features"]
    assert features["log_mel_floor"] == pytest.approx(math.log(2**-23))
    facts = {
        "sample_rate_hz": 16_000, "mel_bins": 80, "low_hz": 20, "high_hz": 7_600, "window_ms": 25,
        "window_samples": 400, "hop_samples": 160, "window": "povey", "povey_power": 0.85,
        "preemphasis": 0.97, "fft_size": 512,
    }  # fmt: skip
    assert {name: features[name] for name in facts} == facts


@pytest.mark.parametrize(("gone", "left"), [("float32", "int8"), ("int8", "float32")])
def test_of_an_export_that_lost_a_file_the_other_is_opened(folder: Path, gone: str, left: str) -> None:
    (folder / FILES[gone]).unlink()
    assert load_exported(folder / FILES[left])[0].path == folder / FILES[left]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_file_that_the_card_names_and_that_is_missing_is_said_so_where_it_is_asked_for(
    folder: Path, precision: str
) -> None:
    path = folder / FILES[precision]
    path.unlink()
    assert refusal(path) is None
    for opens in (load_exported, open_recogniser):
        with pytest.raises(ModelError, match=f"{path.name}: the model file does not exist"):
            opens(path)
    with pytest.raises(ModelError, match=rf"models\.device\.path: there is no such model; got .*{path.name}"):
        check_model_of_row("device", {"path": str(path)})


def test_a_folder_means_its_float32_file_and_the_int8_file_where_that_alone_is_left(folder: Path) -> None:
    """int8 costs accuracy: beside float32, whoever wants it names it."""
    samples = probe_sound(40_000, 1)
    texts = {name: open_recogniser(folder / name).transcribe(samples) for name in FILES.values()}
    assert exported_file(folder) == folder / FLOAT_FILE and min(map(len, texts.values())) > 5
    assert open_recogniser(folder).transcribe(samples) == texts[FLOAT_FILE]
    (folder / FLOAT_FILE).unlink()
    assert exported_file(folder) == folder / INT8_FILE
    assert open_recogniser(folder).transcribe(samples) == texts[INT8_FILE]
    (folder / INT8_FILE).unlink()
    assert exported_file(folder) == folder / FLOAT_FILE
    with pytest.raises(ModelError, match=r"model\.onnx: the model file does not exist"):
        open_recogniser(folder)


def test_a_card_may_name_the_int8_file_alone(folder: Path) -> None:
    take_from_card(folder, "float32")
    (folder / FLOAT_FILE).unlink()
    card = read_export_card(folder)
    assert card is not None and list(card["files"]) == ["int8"]
    load_exported(folder / INT8_FILE)
    assert exported_file(folder) == folder / INT8_FILE
    assert len(open_recogniser(folder).transcribe(probe_sound(40_000, 1))) > 5
    assert refusal(folder / FLOAT_FILE) is None  # taken away: an error, and no row that is left out
    with pytest.raises(ModelError, match=r"model\.onnx: the model file does not exist"):
        load_exported(folder / FLOAT_FILE)


def test_a_card_that_names_a_missing_int8_file_alone_has_that_missed(folder: Path) -> None:
    take_from_card(folder, "float32")
    for name in FILES.values():
        (folder / name).unlink()
    with pytest.raises(ModelError, match=r"model\.int8\.onnx: the model file does not exist"):
        open_recogniser(folder)


def test_a_damaged_file_is_found_by_a_card_that_names_it_alone(folder: Path) -> None:
    take_from_card(folder, "float32")
    content = bytearray((folder / INT8_FILE).read_bytes())
    content[-1] ^= 1
    (folder / INT8_FILE).write_bytes(content)
    with pytest.raises(ModelError, match="not the one that was exported"):
        load_exported(folder / INT8_FILE)


def test_a_card_that_names_no_file_cannot_be_used(folder: Path) -> None:
    for precision in FILES:
        take_from_card(folder, precision)
    with pytest.raises(ModelError, match=r"model\.json: .* cannot be used.*with the files \[\]"):
        read_export_card(folder)


def test_the_card_keeps_the_chunks_of_the_training(tmp_path: Path) -> None:
    student = conformer(chunk_frames=4, num_layers=1)
    set_chunk_ms(student, 80)
    streaming = export_student(student, UNITS, tmp_path, int8=False).card["streaming"]
    assert (streaming["chunk_ms"], streaming["trained_chunks_ms"]) == (80, [160])


def test_an_export_leaves_no_units_of_an_earlier_one(tmp_path: Path) -> None:
    pieces = train_sentencepiece(["one two three four five six seven eight nine ten"], 20)
    export_student(conformer(vocab_size=pieces.vocab_size, num_layers=1), pieces, tmp_path, int8=False)
    assert (tmp_path / "units.model").exists()
    export_student(recurrent(), UNITS, tmp_path, int8=False)
    written = {FLOAT_FILE, CARD_FILE, UNITS_FILE, "tokens.txt"}
    assert {path.name for path in tmp_path.iterdir()} == written
    assert load_exported(tmp_path / FLOAT_FILE)[1].hash == UNITS.hash
