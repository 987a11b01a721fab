"""The parts of a Zipformer (Yao et al., arXiv 2310.11230): frames of width D in and out.

The same code runs over whole utterances and chunk by chunk: modules get earlier frames from a `Context`,
which pads offline and keeps a cache between chunks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdasr.layers import inverse_wavelengths, rotate, rotation

# The least share that a bypass lets through, so that no layer is switched off for good.
MIN_BYPASS = 0.2
# Initial scale of the last matrix of each residual branch, so that layers start near the identity.
_INITIAL_SCALE = 0.2


class Context:
    """Which frames of a layer may see which others, over whole utterances.

    Args:
        mask: which frames each frame may attend to; broadcasts to (B, heads, T, T).
        chunk_frames: frames in a chunk, at the rate of the layer; 0 for one chunk that holds all.
        valid_bt1: False where a frame is padding that a convolution could see, or None.
    """

    def __init__(self, mask: Tensor, chunk_frames: int, valid_bt1: Tensor | None = None) -> None:
        self.mask, self.chunk_frames, self.valid_bt1 = mask, chunk_frames, valid_bt1

    def attended(self, x_btd: Tensor) -> Tensor:
        """The frames, preceded by earlier ones that may be attended to: (B, L + T, D)."""
        return x_btd

    def convolved(self, x_btd: Tensor, reach: int) -> Tensor:
        """The frames, preceded by the `reach` frames before them: (B, reach + T, D)."""
        return functional.pad(x_btd, (0, 0, reach, 0))


class CachedContext(Context):
    """The same for one chunk, with the caches left by the previous chunk.

    Args:
        attended_blm: (B, L, M) earlier frames that may be attended to; the modules' channels side by side,
            in the order of their calls.
        convolved_bcrd: (B, convolutions, reach, D) inputs of the convolutions.

    Attributes:
        next_attended, next_convolved: the caches for the next chunk, in parts.
    """

    def __init__(self, mask: Tensor, chunk_frames: int, attended_blm: Tensor, convolved_bcrd: Tensor) -> None:
        super().__init__(mask, chunk_frames)
        self._attended, self._convolved, self._channel = attended_blm, convolved_bcrd, 0
        self.next_attended: list[Tensor] = []
        self.next_convolved: list[Tensor] = []

    def attended(self, x_btd: Tensor) -> Tensor:
        first, self._channel = self._channel, self._channel + x_btd.shape[-1]
        joined = torch.cat([self._attended[..., first : self._channel], x_btd], dim=1)
        self.next_attended.append(joined[:, x_btd.shape[1] :])
        return joined

    def convolved(self, x_btd: Tensor, reach: int) -> Tensor:
        joined = torch.cat([self._convolved[:, len(self.next_convolved)], x_btd], dim=1)
        self.next_convolved.append(joined[:, x_btd.shape[1] :])
        return joined


class BiasNorm(nn.Module):
    """x / RMS(x - bias) * exp(log_scale), which keeps some of a frame's norm (section 3.3)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(1e-2 * torch.randn(width))
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, x_btd: Tensor) -> Tensor:
        mean_square = (x_btd - self.bias).square().mean(dim=-1, keepdim=True)
        return x_btd * ((mean_square + 1e-8).rsqrt() * self.log_scale.exp())


def swoosh_l(x: Tensor) -> Tensor:
    """The activation for normally-off modules, such as feed-forwards (section 3.4)."""
    return torch.sub(functional.softplus(x - 4.0), x, alpha=0.08) - 0.035


def swoosh_r(x: Tensor) -> Tensor:
    """The activation after a convolution (section 3.4)."""
    return torch.sub(functional.softplus(x - 1.0), x, alpha=0.08) - 0.313261687


class Bypass(nn.Module):
    """x + c (y - x), with c learnt for each channel between MIN_BYPASS and 1 (section 3.2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.share = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x_btd: Tensor, y_btd: Tensor) -> Tensor:
        share = _Within.apply(self.share) if self.training else self.share.clamp(MIN_BYPASS, 1.0)
        return x_btd + share * (y_btd - x_btd)


class _Within(torch.autograd.Function):
    """A clamp to a bypass's range that passes the gradient outside of it unless it leads further out.
    torch's clamp has no gradient outside, so a channel would stay there for good."""

    @staticmethod
    def forward(ctx: Any, share: Tensor) -> Tensor:
        ctx.save_for_backward(share)
        return share.clamp(MIN_BYPASS, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (share,) = ctx.saved_tensors
        # The optimiser steps against the gradient.
        outward = ((share < MIN_BYPASS) & (gradient > 0)) | ((share > 1.0) & (gradient < 0))
        return gradient.masked_fill(outward, 0.0)


class FeedForward(nn.Module):
    def __init__(self, width: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden_width)
        self.down = _last_linear(hidden_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.dropout(self.down(swoosh_l(self.up(x_btd))))


class AttentionWeights(nn.Module):
    """Attention weights, computed once for a layer and used by three of its modules (section 3.2).

    Positions enter as rotations (arXiv 2104.09864), for which a sliding window needs no absolute time."""

    inverse_wavelengths: Tensor

    def __init__(self, width: int, num_heads: int, query_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, num_heads * query_dim)
        self.key = nn.Linear(width, num_heads * query_dim, bias=False)
        self.scale = query_dim**-0.5
        self.register_buffer("inverse_wavelengths", inverse_wavelengths(query_dim // 2), persistent=False)

    def forward(self, x_btd: Tensor, context: Context) -> Tensor:
        """(B, T, D) to weights (B, heads, T, L + T) that sum to 1 over the frames in the mask."""
        key_bkd = context.attended(self.key(x_btd))
        turns_2kd = rotation(key_bkd.shape[1], self.inverse_wavelengths)
        query = rotate(self._heads(self.query(x_btd)), turns_2kd[:, key_bkd.shape[1] - x_btd.shape[1] :])
        scores = (query * self.scale) @ rotate(self._heads(key_bkd), turns_2kd).transpose(-1, -2)
        return scores.masked_fill(~context.mask, -1e4).softmax(dim=-1)

    def _heads(self, x_btd: Tensor) -> Tensor:
        return x_btd.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    def __init__(self, width: int, num_heads: int, value_dim: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.value = nn.Linear(width, num_heads * value_dim)
        self.out = _last_linear(num_heads * value_dim, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_btd: Tensor, weights_bhqk: Tensor, context: Context) -> Tensor:
        values = context.attended(self.value(x_btd)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return self.dropout(self.out((weights_bhqk @ values).transpose(1, 2).flatten(2)))


class NonlinearAttention(nn.Module):
    """Attention by the first head over gated frames, gated again (section 3.2)."""

    def __init__(self, width: int, hidden_width: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Linear(width, 3 * hidden_width)
        self.out = _last_linear(hidden_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_btd: Tensor, weights_bhqk: Tensor, context: Context) -> Tensor:
        gate, heard, after = self.project(x_btd).chunk(3, dim=-1)
        mixed = weights_bhqk[:, 0] @ context.attended(heard * gate.tanh())
        return self.dropout(self.out(mixed * after))


class ChunkConvolution(nn.Module):
    """Gate, depthwise convolution, SwooshR. The convolution is the sum of a causal one, across chunks, and
    a centred one, within the chunk, so it works for every chunk size."""

    def __init__(self, width: int, kernel_frames: int, dropout: float) -> None:
        super().__init__()
        self.reach = kernel_frames // 2
        self.gate = nn.Linear(width, 2 * width)
        self.causal = _depthwise(width, self.reach + 1, padding=0)
        self.within = _depthwise(width, kernel_frames, padding=self.reach)
        self.out = _last_linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_btd: Tensor, context: Context) -> Tensor:
        gated = functional.glu(self.gate(x_btd), dim=-1)
        if context.valid_bt1 is not None:
            gated = gated * context.valid_bt1
        chunks = gated.unflatten(1, (-1, context.chunk_frames or gated.shape[1]))
        within = _over_frames(self.within, chunks).flatten(1, 2)
        back = _over_frames(self.causal, context.convolved(gated, self.reach)[:, None])[:, 0]
        return self.dropout(self.out(swoosh_r(back + within)))


class ZipformerLayer(nn.Module):
    """A Zipformer block (section 3.2, figure 2): attention weights, three feed-forwards, a non-linear
    attention, two self-attentions and two convolutions, with a bypass half-way and at the end."""

    def __init__(
        self,
        width: int,
        *,
        num_heads: int,
        query_dim: int,
        value_dim: int,
        expansion: float,
        kernel_frames: int,
        dropout: float,
    ) -> None:
        super().__init__()
        hidden = int(expansion * width)
        self.weights = AttentionWeights(width, num_heads, query_dim)
        self.forward_1 = FeedForward(width, hidden * 3 // 4, dropout)
        self.nonlinear = NonlinearAttention(width, width * 3 // 4, dropout)
        self.attention_1 = SelfAttention(width, num_heads, value_dim, dropout)
        self.convolution_1 = ChunkConvolution(width, kernel_frames, dropout)
        self.forward_2 = FeedForward(width, hidden, dropout)
        self.half_way = Bypass(width)
        self.attention_2 = SelfAttention(width, num_heads, value_dim, dropout)
        self.convolution_2 = ChunkConvolution(width, kernel_frames, dropout)
        self.forward_3 = FeedForward(width, hidden * 5 // 4, dropout)
        self.norm = BiasNorm(width)
        self.bypass = Bypass(width)
        # Channels that `CachedContext` keeps for each frame: keys, non-linear attention, values.
        self.attended_channels = num_heads * (query_dim + 2 * value_dim) + width * 3 // 4

    def forward(self, x_btd: Tensor, context: Context) -> Tensor:
        weights = self.weights(x_btd, context)
        y = x_btd + self.forward_1(x_btd)
        y = y + self.nonlinear(y, weights, context)
        y = y + self.attention_1(y, weights, context)
        y = y + self.convolution_1(y, context)
        y = y + self.forward_2(y)
        y = self.half_way(x_btd, y)
        y = y + self.attention_2(y, weights, context)
        y = y + self.convolution_2(y, context)
        y = y + self.forward_3(y)
        return self.bypass(x_btd, self.norm(y))


def _depthwise(width: int, kernel_frames: int, padding: int) -> nn.Conv2d:
    """A depthwise convolution over the last axis of (B, D, chunks, frames). A Conv2d, since with channels
    last it is several times faster on a CPU than Conv1d, and since padding then separates the chunks."""
    convolution = nn.Conv2d(width, width, (1, kernel_frames), groups=width, padding=(0, padding))
    return convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _over_frames(convolution: nn.Conv2d, x_bntd: Tensor) -> Tensor:
    """Convolve each of n chunks separately: (B, n, T, D) to (B, n, T', D)."""
    mixed: Tensor = convolution(x_bntd.permute(0, 3, 1, 2))
    return mixed.permute(0, 2, 3, 1)


def _last_linear(width_in: int, width_out: int) -> nn.Linear:
    linear = nn.Linear(width_in, width_out)
    with torch.no_grad():
        linear.weight.mul_(_INITIAL_SCALE)
        linear.bias.zero_()
    return linear
