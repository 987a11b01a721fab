"""Random posteriors for the tests of soft labels: spiky like a CTC teacher's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdasr.soft_labels import Codec, Header


def posteriors(num_frames: int, vocab_size: int = 30, seed: int = 0, sharpness: float = 1.0) -> Tensor:
    """(T, V) log-probs: blank nearly everywhere, a spike in about every sixth frame."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_frames, vocab_size, generator=generator) * 2 * sharpness
    spike = torch.rand(num_frames, generator=generator) < 0.17
    best = torch.randint(1, vocab_size, (num_frames,), generator=generator)
    logits[:, 0] += torch.where(spike, -2.0, 7.0 * sharpness)
    logits[torch.arange(num_frames), best] += torch.where(spike, 7.0 * sharpness, 3.0)
    return logits.log_softmax(-1)


def make_header(codec: Codec, vocab_size: int = 30, **changes: Any) -> Header:
    fields: dict[str, Any] = {
        "teacher": "tiny",
        "teacher_hash": "a" * 64,
        "units_hash": "b" * 64,
        "vocab_size": vocab_size,
        "feature_hash": "c" * 16,
        "frame_shift_ms": 10.0,
        "subsampling": 4,
        "codec": codec.name,
        "codec_params": codec.params,
        "audio_file": "shard-000000.tar",
        "audio_sha256": "d" * 64,
    }
    return Header(**{**fields, **changes})
