"""Tiny networks in each of sherpa-onnx's offline CTC formats, exported from torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from export.graph import write_graph

SYMBOLS = ["▁" + letter for letter in "abcdefgh"] + list("abcdefghijklmno'")


class Frames(nn.Module):
    """(B, T, F) features to (B, T', V) logits by one convolution that makes sharp, lively choices."""

    def __init__(self, width: int, stride: int, kernel: int, vocab_size: int, std: float = 0.08) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv1d(width, 24, kernel, stride)
        self.out = nn.Linear(24, vocab_size)
        nn.init.normal_(self.conv.weight, std=std)
        nn.init.normal_(self.out.weight, std=2.0)

    def forward(self, x_btf: Tensor) -> Tensor:
        hidden: Tensor = self.conv(x_btf.transpose(1, 2)).sin().transpose(1, 2)
        return self.out(hidden)  # type: ignore[no-any-return]


class Nemo(Frames):
    def forward(self, x_bft: Tensor, length: Tensor) -> Tensor:
        return super().forward(x_bft.transpose(1, 2)).log_softmax(-1) + 0.0 * length.sum()


class WithLengths(Frames):
    def forward(self, x: Tensor, x_lens: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x).log_softmax(-1), (x_lens - 9) // 4 + 1


class SenseVoice(Frames):
    def forward(self, x: Tensor, length: Tensor, language: Tensor, norm: Tensor) -> Tensor:
        # Four classes that stand for language, emotion, event and normalisation, one frame each.
        tags = 30.0 * torch.eye(self.out.out_features)[-4:] + 0.0 * language[:, None, None]
        unused = 0.0 * length.sum() + 0.0 * norm.sum()
        return torch.cat([tags.to(x), super().forward(x)], 1) + unused


class Samples(nn.Module):
    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.frames = Frames(1, 320, 400, vocab_size, std=0.1)

    def forward(self, samples: Tensor) -> Tensor:
        return self.frames(samples[..., None])  # type: ignore[no-any-return]


def write(folder: Path, kind: str, **changes: str) -> tuple[Path, nn.Module]:
    """MODEL.onnx with metadata and tokens.txt in `folder`; the model's path and the torch module."""
    folder.mkdir(parents=True, exist_ok=True)
    blank_last = kind == "nemo"
    symbols = [*SYMBOLS, "<blk>"] if blank_last else ["<blk>", *SYMBOLS]
    if kind == "sense_voice":
        symbols = ["<unk>", *SYMBOLS]
    size = len(symbols)
    features = torch.randn(1, 80, 80)
    lengths = torch.tensor([80])
    metadata = {"vocab_size": str(size)}
    module: nn.Module
    example: tuple[Any, ...]
    if kind == "nemo":
        module, example = Nemo(80, 4, 4, size), (features, lengths)
        metadata |= {
            "model_type": "EncDecCTCModelBPE",
            "normalize_type": "per_feature",
            "subsampling_factor": "4",
        }
        inputs, outputs, time = ["audio_signal", "length"], ["logprobs"], 2
    elif kind in ("zipformer", "wenet"):
        module, example = WithLengths(80, 4, 9, size), (features, lengths)
        metadata |= {
            "model_type": {"zipformer": "zipformer2_ctc", "wenet": "wenet_ctc"}[kind],
            "subsampling_factor": "4",
        }
        inputs, outputs, time = ["x", "x_lens"], ["log_probs", "log_probs_len"], 1
    elif kind == "sense_voice":
        one = torch.ones(1, dtype=torch.int32)
        module, example = SenseVoice(560, 1, 1, size), (torch.randn(1, 20, 560), one * 20, one, one)
        rng = np.random.default_rng(1)
        metadata |= {
            "model_type": "sense_voice_ctc",
            "lfr_window_size": "7",
            "lfr_window_shift": "6",
            "normalize_samples": "0",
            "with_itn": "14",
            "without_itn": "15",
            **{f"lang_{name}": str(i) for i, name in enumerate(("auto", "zh", "en", "yue", "ja", "ko"))},
            "neg_mean": ",".join(f"{x:.4f}" for x in rng.normal(-8, 1, 560)),
            "inv_stddev": ",".join(f"{x:.4f}" for x in rng.uniform(0.1, 0.3, 560)),
        }
        inputs, outputs, time = ["x", "x_length", "language", "text_norm"], ["logits"], 1
    else:
        module, example = Samples(size), (torch.randn(1, 16_000),)
        inputs, outputs, time = ["x"], ["logits"], 1
    path = folder / "model.onnx"
    axes = {name: {0: "N"} for name in [*inputs, *outputs]}
    axes[inputs[0]][time] = "T"
    axes[outputs[0]][1] = "frames"
    write_graph(
        module, example, path, inputs=inputs, outputs=outputs, dynamic_axes=axes, metadata=metadata | changes
    )
    lines = [f"{symbol} {unit}\n" for unit, symbol in enumerate(symbols)]
    (folder / "tokens.txt").write_text("".join(lines), encoding="utf-8")
    return path, module
