"""Text from files, by a model folder and by an exported one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

import export.transcribe
from export.parity import probe_sound
from export.publish import export_student
from export.sources import pieces_of
from export.transcribe import open_recogniser
from kdasr.audio import load
from kdasr.errors import AudioError, ConfigError, ModelError
from kdasr.models import save_model
from kdasr.resampling import resample
from kdasr.streaming import with_tail
from tests.export.small_models import UNITS, conformer
from tests.export.transcripts import texts_of


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    student = conformer(num_layers=1)
    save_model(root / "torch", student, UNITS)
    export_student(student, UNITS, root / "onnx")
    return root


@pytest.fixture(scope="module")
def wavs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("audio")
    paths = []
    for seed, num_samples in enumerate((30_000, 47_123)):
        paths.append(folder / f"{seed}.wav")
        soundfile.write(paths[-1], probe_sound(num_samples, seed), 16_000)
    return paths


def test_all_ways_give_one_text(models: Path, wavs: list[Path]) -> None:
    expected = texts_of(wavs, models / "torch")
    assert all(len(text) > 5 for text in expected)
    for model in ("torch", "onnx", "onnx/model.onnx"):
        for stream in (False, True):
            assert texts_of(wavs, models / model, stream=stream) == expected


def test_partials_lead_to_the_text(models: Path, wavs: list[Path]) -> None:
    recogniser = open_recogniser(models / "onnx")
    for wav in wavs:
        *partials, final = recogniser.listen(pieces_of(load(wav)), str(wav))
        assert final.final and not any(partial.final for partial in partials)
        assert {heard.source for heard in (*partials, final)} == {str(wav)}
        texts = [partial.text for partial in partials]
        assert len(texts) > 2 and texts == sorted(set(texts), key=len)
        assert all(final.text.startswith(text) for text in texts)


def test_int8_gives_text_too(models: Path, wavs: list[Path]) -> None:
    texts = texts_of(wavs, models / "onnx" / "model.int8.onnx", stream=True)
    assert all(len(text) > 5 for text in texts)


def test_the_size_of_pieces_does_not_matter(models: Path, wavs: list[Path]) -> None:
    texts = {tuple(texts_of(wavs, models / "onnx", stream=True, piece_ms=size)) for size in (1, 37, 5_000)}
    assert len(texts) == 1


def test_other_rates_and_channels_are_converted(models: Path, tmp_path: Path) -> None:
    samples = probe_sound(32_000, 3)
    soundfile.write(tmp_path / "mono.wav", samples, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "stereo.wav", np.stack([samples, samples], 1), 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "8k.wav", samples[::2], 8_000)
    names = [tmp_path / name for name in ("mono.wav", "stereo.wav", "8k.wav")]
    mono, stereo, narrow = texts_of(names, models / "torch", stream=True)
    assert mono == stereo and len(narrow) > 5


@pytest.mark.parametrize("rate_hz", [8_000, 48_000])
def test_live_audio_of_another_rate_is_heard_as_its_file(models: Path, tmp_path: Path, rate_hz: int) -> None:
    samples = resample(probe_sound(32_000, 3), 16_000, rate_hz)
    soundfile.write(tmp_path / "a.wav", samples, rate_hz, subtype="FLOAT")
    recogniser = open_recogniser(models / "onnx")
    expected = recogniser.transcribe(load(tmp_path / "a.wav"))
    pieces = np.array_split(samples, 30)
    assert recogniser.session(rate_hz=rate_hz).hear(samples) == expected and len(expected) > 5
    *_, final = recogniser.listen(pieces, "a", rate_hz=rate_hz)
    assert final.text == expected and all(word.end_s <= 2.0 for word in final.words)


def test_a_lexicon_is_read_at_once_and_kept_to(models: Path, tmp_path: Path) -> None:
    recogniser = open_recogniser(str(models / "onnx"))
    (tmp_path / "words.txt").write_text("a\nbe\nsee\n")
    samples = probe_sound(47_123, 1)
    kept = recogniser.with_lexicon(tmp_path / "words.txt").transcribe(samples).split()
    assert kept and set(kept) <= {"a", "be", "see"}
    free = recogniser.with_lexicon(str(tmp_path / "words.txt"), other_word_nats=0.0).transcribe(samples)
    assert not set(free.split()) <= {"a", "be", "see"}
    with pytest.raises(
        ConfigError,
        match=r"gone\.txt: the file or folder with the .* does not exist.*Without a lexicon, any word can",
    ):
        recogniser.with_lexicon(tmp_path / "words.txt", tmp_path / "gone.txt")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["torch", "onnx"])
def test_a_single_sample_and_silence_are_answered(
    models: Path, tmp_path: Path, model: str, stream: bool
) -> None:
    soundfile.write(tmp_path / "one.wav", np.zeros(1, np.float32), 16_000)
    soundfile.write(tmp_path / "silent.wav", np.zeros(16_000, np.float32), 16_000)
    files = [tmp_path / "one.wav", tmp_path / "silent.wav"]
    one, silent = texts_of(files, models / model, stream=stream)
    assert one == "" and isinstance(silent, str)


def test_a_folder_without_a_model_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model here.*a folder without them"):
        open_recogniser(tmp_path)
    with pytest.raises(ModelError, match="got nothing"):
        open_recogniser(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["a.wav", "units.json"])
def test_a_file_that_is_no_model_is_said_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=f"{name}: there is no model here.*got a file"):
        open_recogniser(tmp_path / name)


def test_a_teacher_transcribes_whole_files_only(models: Path, wavs: list[Path], tmp_path: Path) -> None:
    class Offline(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.student = conformer(num_layers=1)
            self.subsampling = self.student.subsampling

        def offline(self, *features_and_lengths: torch.Tensor) -> object:
            return self.student.offline(*features_and_lengths)

    recogniser = open_recogniser(models / "torch")
    teacher = type(recogniser)(Path("teacher"), UNITS, Offline(), None)  # type: ignore[arg-type]
    samples = soundfile.read(wavs[0], dtype="float32")[0]
    assert teacher.transcribe(with_tail(samples)) == recogniser.transcribe(samples)
    with pytest.raises(ModelError, match="teacher: this model cannot run chunk by chunk.*Give audio files"):
        teacher.session()


def test_long_audio_runs_chunk_by_chunk_and_gives_the_same(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recogniser, samples = open_recogniser(models / "torch"), probe_sound(40_000, 5)
    at_once = recogniser.recognise(samples)
    monkeypatch.setattr(export.transcribe, "LONGEST_AT_ONCE_S", 2)
    monkeypatch.setattr(recogniser.offline_model, "offline", None)
    chunked = recogniser.recognise(samples)
    assert len(at_once) > 10 and [token[:2] for token in chunked] == [token[:2] for token in at_once]
    with pytest.raises(TypeError):  # what is short goes through `offline`
        recogniser.recognise(samples[:30_000])


def test_audio_that_a_teacher_has_no_memory_for_is_named(models: Path) -> None:
    class Greedy(torch.nn.Module):
        def offline(self, *features_and_lengths: torch.Tensor) -> object:
            return torch.empty(2**50)

    teacher = replace(open_recogniser(models / "torch"), offline_model=Greedy(), chunk_model=None)  # type: ignore[arg-type]
    with pytest.raises(
        AudioError, match=r"talk\.wav: the audio is too long for a full-context model.*got 2 s of audio"
    ):
        teacher.recognise(probe_sound(32_000, 1), "talk.wav")


@pytest.mark.parametrize("model", ["torch", "onnx"])
def test_samples_scaled_as_integers_are_refused_whatever_runs_the_model(models: Path, model: str) -> None:
    scaled = probe_sound(30_000, 1) * 32_768
    with pytest.raises(AudioError, match=r"loud\.wav: the samples are not scaled"):
        open_recogniser(models / model).transcribe(scaled, "loud.wav")


def test_a_teacher_takes_no_chunk(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = SimpleNamespace(model=torch.nn.Linear(1, 1), units=UNITS)
    monkeypatch.setattr(export.transcribe, "load_model", lambda path: teacher)
    with pytest.raises(ConfigError, match="a full-context model has no chunks.*no --chunk-ms.*got 123"):
        open_recogniser(models / "torch", chunk_ms=123)
    assert open_recogniser(models / "torch", chunk_ms=0).chunk_model is None
