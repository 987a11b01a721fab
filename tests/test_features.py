"""Log-mel against Kaldi's two public implementations."""

from __future__ import annotations

from typing import Any

import kaldi_native_fbank
import numpy as np
import pytest
import torch

import kdasr.features
from kdasr.compat import import_torchaudio
from kdasr.errors import AudioError
from kdasr.features import (
    LOG_MEL_FLOOR,
    _mirrored,
    batch_log_mel,
    feature_hash,
    log_mel,
    mel_filters,
    samples_under_windows,
)


def speechlike(num_samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    time_s = np.arange(num_samples) / 16_000
    voiced = sum(np.sin(2 * np.pi * 120 * k * time_s) / k for k in range(1, 20))
    return (0.05 * voiced + 0.01 * rng.standard_normal(num_samples)).astype(np.float32)


def native_fbank(samples: np.ndarray) -> np.ndarray:
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither, options.frame_opts.snip_edges = 0.0, False
    options.mel_opts.num_bins, options.mel_opts.high_freq = 80, -400.0
    fbank = kaldi_native_fbank.OnlineFbank(options)
    fbank.accept_waveform(16_000, samples.tolist())
    fbank.input_finished()
    return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])


@pytest.mark.parametrize("num_samples", [400, 1_601, 16_000, 80_123])
def test_log_mel_matches_torchaudio_and_kaldi_native_fbank(num_samples: int) -> None:
    import_torchaudio()
    from torchaudio.compliance.kaldi import fbank

    samples = speechlike(num_samples)
    ours = log_mel(samples)
    theirs = fbank(
        torch.from_numpy(samples)[None], num_mel_bins=80, high_freq=-400, snip_edges=False, dither=0
    )
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)
    np.testing.assert_allclose(ours.numpy(), native_fbank(samples), atol=2e-3)


# Three utterances of 209 frames, the padding counted: one block that is not full, and several of which the
# last is full or not.
@pytest.mark.parametrize("block_frames", [8_192, 209, 100])
def test_a_batch_is_its_utterances(block_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kdasr.features, "_GPU_BLOCK_FRAMES", block_frames)
    samples = [speechlike(count, seed) for seed, count in enumerate((80, 4_321, 33_333))]
    under = [samples_under_windows(one) for one in samples]
    padded = torch.nn.utils.rnn.pad_sequence(under, batch_first=True, padding_value=0.5)
    for row_tf, one in zip(batch_log_mel(padded), samples, strict=True):
        wanted_tf = log_mel(one)
        torch.testing.assert_close(row_tf[: len(wanted_tf)], wanted_tf, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_samples", [80, 100, 119, 121, 4_321])
def test_the_edges_are_mirrored_with_their_outermost_sample(num_samples: int) -> None:
    samples = torch.arange(num_samples)
    for start, end in [(-120, num_samples + 120), (-120, num_samples), (num_samples - 70, num_samples + 60)]:
        expected = np.pad(np.arange(num_samples), 500, mode="symmetric")[500 + start : 500 + end]
        np.testing.assert_array_equal(_mirrored(samples, start, end), expected)


def test_silence_is_the_floor() -> None:
    torch.testing.assert_close(log_mel(np.zeros(1_600, np.float32)), torch.full((10, 80), LOG_MEL_FLOOR))


def test_samples_of_64_bits_are_heard_as_those_of_32() -> None:
    samples = speechlike(4_321)
    assert torch.equal(log_mel(samples.astype(np.float64)), log_mel(samples))


def test_a_caller_may_change_its_mel_filters() -> None:
    filters, samples = mel_filters(), speechlike(1_600)
    before = log_mel(samples)
    filters.zero_()
    assert torch.equal(log_mel(samples), before) and bool(mel_filters().any())


def test_feature_hash_is_stable() -> None:
    # Every model folder and every folder of labels holds it, and is refused where it is another.
    assert feature_hash() == "9dd5c5132f40f350"


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (torch.zeros(1, 16_000), r"shape \(1, 16000\) of torch.float32"),  # would have no frames
        (np.zeros((16_000, 2), np.float32), r"shape \(16000, 2\)"),
        (np.zeros(16_000, np.int16), r"shape \(16000,\) of torch.int16"),
    ],
)
def test_samples_of_other_axes_or_integers_are_refused(samples: Any, found: str) -> None:
    with pytest.raises(AudioError, match=found):
        log_mel(samples)
