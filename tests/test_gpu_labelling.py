"""Labels of an accelerator are those of the CPU. Needs what labelling needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from kdasr.features import batch_log_mel
from kdasr.labelling import Settings, Teacher, label_shard
from kdasr.soft_labels import Full, LabelShard, open_label_shard
from kdasr.teachers import on_device
from kdasr.teachers.conformer import ConformerTeacher
from kdasr.text import CharUnits
from tests.labelling.tiny import make_audio

pytestmark = pytest.mark.gpu

# Frames in which the best two classes are closer may fall either way.
NEAR_TIE = 0.02


def labels(audio: Path, out: Path, device: str) -> LabelShard:
    """Every class of a small teacher's posteriors."""
    torch.manual_seed(1)
    model = ConformerTeacher(vocab_size=29, width=64, num_layers=2, num_heads=1, dropout=0.0)
    model.set_statistics(torch.full((80,), -8.0), torch.full((80,), 3.0))
    with torch.no_grad():
        model.head.weight.mul_(4.0)  # random weights are in doubt about everything
    model.eval().to(device)
    teacher = Teacher(model, "small", "w" * 64, CharUnits(), torch.device(device))
    label_shard(teacher, audio, out, Settings(codec=Full()))
    return open_label_shard(out / f"{audio.stem}.kdsl", verify=True)


def test_labels_are_those_of_the_cpu(
    accelerator: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TensorFloat-32 keeps ten bits of a number.
    torch.backends.cudnn.allow_tf32 = False
    computed: list[str] = []

    def spy(samples_bn: torch.Tensor) -> torch.Tensor:
        computed.append(samples_bn.device.type)
        return batch_log_mel(samples_bn)

    monkeypatch.setattr(on_device, "batch_log_mel", spy)
    compare(tmp_path, accelerator.type)
    # Log-mel is computed where it labels.
    assert set(computed) == {accelerator.type}


def compare(folder: Path, device: str) -> None:
    (audio,) = make_audio(folder / "audio", 8, per_shard=8)
    expected = labels(audio, folder / "cpu", "cpu")
    found = labels(audio, folder / "there", device)
    assert found.keys == expected.keys and found.failures == {}
    clear = frames = 0
    for key, wanted in expected:
        wanted_tv = wanted.log_probs.reshape(wanted.num_frames, 29)
        found_tv = found.read(key).log_probs.reshape(wanted.num_frames, 29)
        np.testing.assert_allclose(found_tv, wanted_tv, atol=5e-3, rtol=0)
        best_two_t2 = np.sort(wanted_tv, axis=1)[:, -2:]
        is_clear_t = best_two_t2[:, 1] - best_two_t2[:, 0] > NEAR_TIE
        assert (found_tv.argmax(1) == wanted_tv.argmax(1))[is_clear_t].all(), key
        clear, frames = clear + int(is_clear_t.sum()), frames + wanted.num_frames
    assert clear > frames / 2
