"""Conformer parts that teachers and students share: frames of width D in, frames of width D out.

Nothing here depends on the rest of the batch: no BatchNorm, no statistics over time. The output for
an utterance depends on its own frames alone, so that streaming equals offline, and soft labels do not
depend on the batch they were computed in.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdasr.errors import ConfigError
from kdasr.features import LOG_MEL_FLOOR, NUM_MEL_BINS
from kdasr.interfaces import frames_inside

# Triton comes with CUDA builds of torch, not with CPU builds.
_HAS_TRITON = find_spec("triton") is not None
if _HAS_TRITON:
    from kdasr.depthwise import depthwise, kernels_work

SUBSAMPLING = 4
# Feature frames that an output frame of `Subsampling` sees before its own four.
SUBSAMPLING_CONTEXT = 9
# On a GPU, batches are padded to a multiple of this many frames: cuDNN plans attention and convolutions
# anew for each new shape, which takes tens of milliseconds.
_CUDA_FRAMES = 16


class Normalise(nn.Module):
    """Global mean and variance normalisation, part of the model so that it cannot be forgotten."""

    mean_f: Tensor
    inverse_std_f: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_f", torch.zeros(NUM_MEL_BINS))
        self.register_buffer("inverse_std_f", torch.ones(NUM_MEL_BINS))

    def set_statistics(self, mean_f: Tensor, std_f: Tensor) -> None:
        self.mean_f.copy_(mean_f)
        self.inverse_std_f.copy_(1.0 / std_f.clamp_min(1e-3))

    def forward(self, features_btf: Tensor) -> Tensor:
        return (features_btf - self.mean_f) * self.inverse_std_f


class Subsampling(nn.Module):
    """Two strided convolutions: 10 ms features to 40 ms frames, causal in steps of one frame.

    Output frame t sees feature frames [4 t - SUBSAMPLING_CONTEXT, 4 t + 4).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(NUM_MEL_BINS, width, kernel_size=5, stride=2)
        self.second = nn.Conv1d(width, width, kernel_size=5, stride=2)

    def forward(self, features_btf: Tensor) -> Tensor:
        """(B, SUBSAMPLING_CONTEXT + 4 T, 80) normalised features to (B, T, width)."""
        hidden_bct = functional.silu(self.first(features_btf.transpose(1, 2)))
        return functional.silu(self.second(hidden_bct)).transpose(1, 2)


class LayerNorm(nn.LayerNorm):
    """LayerNorm whose output has the dtype of its input; sums are still in float32.

    Under autocast on GPUs, torch's returns float32, so that all frames between layers would be stored and
    moved in 32 bits (recipes/RESULTS-gpu.md).
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype not in (torch.bfloat16, torch.float16):
            return super().forward(x)
        with torch.autocast(x.device.type, enabled=False):
            scale, offset = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return functional.layer_norm(x, self.normalized_shape, scale, offset, self.eps)


class FeedForward(nn.Module):
    def __init__(self, width: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.dropout(self.down(functional.silu(self.up(self.norm(x_btd)))))


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions (RoFormer, arXiv 2104.09864, eq. 34).

    Positions are relative, so a window that slides over the audio needs no absolute time.
    """

    inverse_wavelengths: Tensor

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if num_heads < 1:
            raise ConfigError(
                "attention needs at least one head",
                where="model.num_heads",
                expected="1 or more",
                got=num_heads,
            )
        if width % (2 * num_heads):
            raise ConfigError(
                "the width cannot be split evenly among the heads",
                where="model.width",
                expected=f"a multiple of 2 * num_heads = {2 * num_heads}",
                got=width,
            )
        self.num_heads = num_heads
        self.norm = LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        half = width // num_heads // 2
        self.register_buffer("inverse_wavelengths", inverse_wavelengths(half), persistent=False)

    def project(self, x_btd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, T, D), before rotation."""
        query, key, value = self.query_key_value(self.norm(x_btd)).chunk(3, dim=-1)
        return query, key, value

    def attend(
        self, query_bqd: Tensor, key_bkd: Tensor, value_bkd: Tensor, mask: Tensor, rotation_2kd: Tensor
    ) -> Tensor:
        """Attend from the last Q of K positions to all K. `mask` broadcasts to (B, heads, Q, K), True =
        visible; `rotation_2kd` is for the K positions. Returns (B, Q, D)."""
        first_query = key_bkd.shape[1] - query_bqd.shape[1]
        query = rotate(self._heads(query_bqd), rotation_2kd[:, first_query:])
        key = rotate(self._heads(key_bkd), rotation_2kd)
        mixed = _attention(query, key, self._heads(value_bkd), mask)
        return self.dropout(self.out(mixed.transpose(1, 2).flatten(2)))

    def _heads(self, x_btd: Tensor) -> Tensor:
        return x_btd.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # In bf16 on a CPU, the backward pass of attention alone takes longer than the rest of a layer.
        with torch.autocast("cpu", enabled=False):
            return functional.scaled_dot_product_attention(
                query.float(), key.float(), value.float(), attn_mask=mask
            )
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


def rotation(count: int, inverse_wavelengths_w: Tensor) -> Tensor:
    """(2, count, 2 w) cosines and sines of the angles by which `rotate` turns positions 0 to count - 1, for
    both halves of a head: the sines of the first are negated."""
    position_t = torch.arange(count, device=inverse_wavelengths_w.device)
    angle_tw = position_t[:, None] * inverse_wavelengths_w
    cosine_tw, sine_tw = angle_tw.cos(), angle_tw.sin()
    return torch.stack([torch.cat([cosine_tw, cosine_tw], dim=-1), torch.cat([-sine_tw, sine_tw], dim=-1)])


def rotate(x_bhtd: Tensor, rotation_2td: Tensor) -> Tensor:
    """Rotate queries or keys (B, heads, T, d) by their positions; d is twice the number of wavelengths."""
    cosine_td, sine_td = rotation_2td.to(x_bhtd.dtype)
    left, right = x_bhtd.chunk(2, dim=-1)
    return x_bhtd * cosine_td + torch.cat([right, left], dim=-1) * sine_td


def inverse_wavelengths(count: int) -> Tensor:
    """(count,) radians per frame, from 1 down to almost a thousandth."""
    return 1.0 / 1_000.0 ** (torch.arange(count) / count)


class Convolution(nn.Module):
    """Conformer's convolution module; the caller supplies the frames around the input."""

    def __init__(self, width: int, kernel_frames: int, dropout: float) -> None:
        super().__init__()
        # Frames that it looks back; it does not look ahead.
        self.reach = kernel_frames - 1
        self.norm = LayerNorm(width)
        self.gate = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel_frames, groups=width)
        self.depthwise_norm = LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def gated(self, x_btd: Tensor) -> Tensor:
        return functional.glu(self.gate(self.norm(x_btd)), dim=-1)

    def mix(self, gated_btd: Tensor) -> Tensor:
        """From (B, T + kernel - 1, D) gated frames with their left context to (B, T, D)."""
        mixed = _over_time(self.depthwise, gated_btd)
        return self.dropout(self.out(functional.silu(self.depthwise_norm(mixed))))


def _over_time(convolution: nn.Conv1d, x_btd: Tensor) -> Tensor:
    """A depthwise convolution from (B, T + kernel - 1, D) frames with their left context to (B, T, D)."""
    if not x_btd.is_cuda or not _HAS_TRITON or not kernels_work(x_btd.device, x_btd.dtype):
        return convolution(x_btd.transpose(1, 2)).transpose(1, 2)
    return depthwise(x_btd, convolution.weight, convolution.bias)


class ConformerLayer(nn.Module):
    """Conformer block (arXiv 2005.08100, eq. 1) with LayerNorm in place of BatchNorm."""

    def __init__(
        self, width: int, *, num_heads: int, expansion: int, kernel_frames: int, dropout: float
    ) -> None:
        super().__init__()
        self.before = FeedForward(width, expansion, dropout)
        self.attention = Attention(width, num_heads, dropout)
        self.convolution = Convolution(width, kernel_frames, dropout)
        self.after = FeedForward(width, expansion, dropout)
        self.norm = LayerNorm(width)

    def forward(self, x_btd: Tensor, mask: Tensor, rotation_2td: Tensor) -> Tensor:
        """Process whole utterances, with zeros as context before them. Padding after them has no effect if
        the mask hides it: the convolution only looks back.

        Args:
            x_btd: (B, T, D) frames.
            mask: what each frame may attend to; broadcasts to (B, heads, T, T).
            rotation_2td: `shared_rotation` for T positions.
        """
        x_btd = x_btd + 0.5 * self.before(x_btd)
        query, key, value = self.attention.project(x_btd)
        x_btd = x_btd + self.attention.attend(query, key, value, mask, rotation_2td)
        gated = self.convolution.gated(x_btd)
        x_btd = x_btd + self.convolution.mix(functional.pad(gated, (0, 0, self.convolution.reach, 0)))
        return self.norm(x_btd + 0.5 * self.after(x_btd))

    def step(
        self,
        x_btd: Tensor,
        keys: Tensor,
        values: Tensor,
        gated_context: Tensor,
        mask: Tensor,
        rotation_2kd: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Process one chunk (B, C, D) with cached keys and values (B, L, D) and gated frames (B, K - 1, D);
        `rotation_2kd` is `shared_rotation` for L + C positions.

        Returns the chunk's output and the three caches for the next chunk.
        """
        x_btd = x_btd + 0.5 * self.before(x_btd)
        query, key, value = self.attention.project(x_btd)
        key, value = torch.cat([keys, key], dim=1), torch.cat([values, value], dim=1)
        x_btd = x_btd + self.attention.attend(query, key, value, mask, rotation_2kd)
        gated = torch.cat([gated_context, self.convolution.gated(x_btd)], dim=1)
        x_btd = x_btd + self.convolution.mix(gated)
        out = self.norm(x_btd + 0.5 * self.after(x_btd))
        return out, _last(key, keys), _last(value, values), _last(gated, gated_context)


def shared_rotation(layers: nn.ModuleList, num_positions: int, dtype: torch.dtype) -> Tensor:
    """The `rotation` of `num_positions` in the dtype of the frames, shared by all layers: computing it takes
    longer than reading it."""
    first = layers[0]
    assert isinstance(first, ConformerLayer)
    return rotation(num_positions, first.attention.inverse_wavelengths).to(dtype)


def _last(frames: Tensor, like: Tensor) -> Tensor:
    return frames[:, frames.shape[1] - like.shape[1] :]


def output_lengths(feature_lengths_b: Tensor) -> Tensor:
    """The numbers of output frames (40 ms) for these numbers of feature frames (10 ms)."""
    return torch.div(feature_lengths_b + SUBSAMPLING - 1, SUBSAMPLING, rounding_mode="floor")


def whole_frames(frames: int, multiple: int, device: torch.device) -> int:
    """The output frames to which a batch is padded: the next multiple; on a GPU, one of few shapes."""
    if device.type == "cuda":
        multiple *= -(-_CUDA_FRAMES // multiple)
    return -(-frames // multiple) * multiple


def pad_features(features_btf: Tensor, lengths_b: Tensor, num_features: int) -> Tensor:
    """Pad or cut to (B, num_features, 80): frames beyond each length become digital silence, as after the
    last sample of a stream."""
    cut = features_btf[:, :num_features]
    padded = functional.pad(cut, (0, 0, 0, num_features - cut.shape[1]), value=LOG_MEL_FLOOR)
    return padded.masked_fill(~frames_inside(lengths_b, num_features)[..., None], LOG_MEL_FLOOR)
