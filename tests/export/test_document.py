"""The programs of docs/streaming-export.md run as they stand there."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import export.sources
from export.decoding_graph import write_decoding_graph
from export.parity import probe_sound
from export.publish import export_student
from export.transcribe import open_recogniser
from kdasr.audio import load
from kdasr.decoding import collapse
from kdasr.features import LOG_MEL_FLOOR, log_mel
from kdasr.streaming import EndpointRules, with_tail
from kdasr.students.conformer import ChunkConformer
from tests.export.small_models import UNITS, conformer
from tests.export.test_gate import spoken, trained
from tests.streaming.scripted import silence

__all__ = ["trained"]  # a fixture
DOCUMENT = Path(__file__).parents[2] / "docs/streaming-export.md"
WORDS = ["tea", "coffee", "milk", "water", "juice", "on", "off"]


def program(begins: str) -> str:
    """The indented block that begins so."""
    (found,) = re.findall(
        rf"^ {{4}}{begins}\n(?:(?: {{4}}.*)?\n)+", DOCUMENT.read_text("utf-8"), re.MULTILINE
    )
    return textwrap.dedent(found)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("document")
    export_student(conformer(lead_nats=2.0, num_layers=1), UNITS, root / "OUT", int8=False)
    (root / "words.txt").write_text("\n".join(WORDS))
    return root


def speech() -> np.ndarray:
    return np.concatenate([probe_sound(29_321, 20), silence(60), probe_sound(29_321, 21), silence(60)])


@pytest.mark.parametrize("rate_hz", [16_000, 8_000])
def test_a_session_over_the_blocks_of_a_file(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rate_hz: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "OUT", "runs/mini/student_mwer")
    soundfile.write("runs/mini/example.wav", speech()[:: 16_000 // rate_hz], rate_hz, subtype="FLOAT")
    exec(program("import soundfile"), {})
    expected = open_recogniser(place / "OUT").transcribe(load(Path("runs/mini/example.wav")))
    assert capsys.readouterr().out.splitlines()[-1] == expected and len(expected) > 5


def test_a_microphone_and_a_list_of_words(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    pieces = np.array_split(speech(), 70)
    monkeypatch.setattr(export.sources, "microphone_pieces", lambda: iter(pieces))
    exec(program("from export.sources import microphone_pieces"), {})
    recogniser = open_recogniser("OUT").with_lexicon("words.txt")
    lines = []
    for heard in recogniser.listen(pieces, "a", EndpointRules(min_silence_s=0.8)):
        if heard.final:
            lines += [" ".join(map(str, word)) for word in heard.words]
        else:
            lines.append(f"… {heard.text}")
    assert capsys.readouterr().out.splitlines() == lines
    assert {line.split()[0] for line in lines} & {*WORDS} and any(line.startswith("…") for line in lines)


def test_a_session_with_a_model_of_your_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx = pytest.importorskip("onnx")
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    weights_fv = np.random.default_rng(0).standard_normal((320, 4)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Slice", ["features", "zero", "shift", "one"], ["chunk"]),
            helper.make_node("Reshape", ["chunk", "shape"], ["frames"]),
            helper.make_node("MatMul", ["frames", "weights"], ["logits"]),
            helper.make_node("LogSoftmax", ["logits"], ["log_probs"]),
            helper.make_node("Identity", ["state"], ["next"]),
        ],
        "mine",
        [
            helper.make_tensor_value_info("features", float32, [1, 40, 80]),
            helper.make_tensor_value_info("state", float32, [1, 64]),
        ],
        [
            helper.make_tensor_value_info("log_probs", float32, [1, 8, 4]),
            helper.make_tensor_value_info("next", float32, [1, 64]),
        ],
        [
            onnx.numpy_helper.from_array(array, name)
            for name, array in {
                "zero": np.array([0]),
                "shift": np.array([32]),
                "one": np.array([1]),
                "shape": np.array([1, 8, 320]),
                "weights": weights_fv,
            }.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, "mine.onnx")
    samples = speech()
    exec(
        program("import numpy, onnxruntime"),
        {"symbols": ["-", "▁", "a", "b"], "samples": samples},
    )
    features = log_mel(with_tail(samples))
    frames = torch.nn.functional.pad(features, (0, 0, 0, -len(features) % 4), value=LOG_MEL_FLOOR)
    best = (frames.reshape(-1, 320) @ torch.from_numpy(weights_fv)).argmax(1).tolist()
    letters = ["", "", "a", "b"]
    said = "".join(letters[unit] for unit in collapse(best))
    assert "".join(capsys.readouterr().out.split()) == said and len(said) > 10


def said_by_sherpa(place: Path, samples: np.ndarray) -> list[str]:
    """What its program prints. In a process of its own, as sherpa-onnx ends the one that it is in where it
    does not like a model."""
    write_decoding_graph(place / "OUT", [str(place / "words.txt")], place / "words.fst")
    np.save(place / "speech.npy", samples)
    pieces = f"import numpy as np\npieces = np.array_split(np.load('speech.npy'), {len(samples) // 1_600})\n"
    command = [sys.executable, "-c", pieces + program("import numpy as np")]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout.splitlines()


def test_sherpa_with_a_graph_and_endpoints(place: Path) -> None:
    # Longer than the 20 s of its rule3: this model is not silent where the audio is.
    stretches = said_by_sherpa(place, np.tile(speech(), 3))
    assert len(stretches) >= 2 and {word for line in stretches for word in line.split()} <= {*WORDS}
    assert all(stretches[:2])


@pytest.mark.slow
def test_no_word_is_lost_with_a_graph_while_it_is_not_finished(
    trained: ChunkConformer, tmp_path: Path
) -> None:
    """Of a student so unsure that it may have heard nothing yet, and of words of four seconds."""
    unsure, word = copy.deepcopy(trained), "abcdefghabcdefghabcd"
    with torch.no_grad():
        unsure.head.weight *= 0.2
        unsure.head.bias *= 0.2
    export_student(unsure, UNITS, tmp_path / "OUT", int8=False)
    (tmp_path / "words.txt").write_text(word)
    samples = np.concatenate([np.zeros(6_400, np.float32), spoken(f"{word} {word}", 1)])
    assert said_by_sherpa(tmp_path, samples) == [f"{word} {word}"]
