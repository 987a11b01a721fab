"""A streaming Zipformer: maps windows of log-mel and a state to log-probs and the next state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdasr.errors import ConfigError
from kdasr.interfaces import frames_inside
from kdasr.students.streaming import FULL_CONTEXT, StreamingStudent, cache_mask, chunk_mask
from kdasr.students.zipformer_layers import BiasNorm, Bypass, CachedContext, Context, ZipformerLayer


class ZipformerState(NamedTuple):
    """The state passed from one chunk to the next. Zeros before the first.

    Layers have caches of different sizes, so all caches are flattened and concatenated.

    Attributes:
        features_bcf: (B, SUBSAMPLING_CONTEXT, 80) normalised features before the window.
        attended_bn: for each layer (left_context_frames / downsampling, channels): keys, gated
            frames and values that may be attended to, oldest first.
        convolved_bn: for each layer (2, kernel_frames // 2, width): inputs of its convolutions.
        processed: (B,) int64, how many cached output frames are real, at most left_context_frames.
    """

    features_bcf: Tensor
    attended_bn: Tensor
    convolved_bn: Tensor
    processed: Tensor


class ZipformerStack(nn.Module):
    """Layers of one width at one frame rate: 40 ms frames of any width in, 40 ms frames of the stack's width
    out (section 3.1). In between, `downsampling` frames are averaged into one with learnt weights, and the
    result is repeated as often; a bypass carries detail that the slower frames lose."""

    def __init__(self, width: int, downsampling: int, layers: Sequence[ZipformerLayer]) -> None:
        super().__init__()
        self.width, self.downsampling = width, downsampling
        self.layers = nn.ModuleList(layers)
        self.average = nn.Parameter(torch.zeros(downsampling)) if downsampling > 1 else None
        self.bypass = Bypass(width) if downsampling > 1 else None

    def forward(self, x_btd: Tensor, contexts: Sequence[Context]) -> Tensor:
        """Run the layers; `contexts` has one for each, at the stack's frame rate."""
        x_btd = with_width(x_btd, self.width)
        y_btd = x_btd
        if self.average is not None:
            grouped = x_btd.unflatten(1, (-1, self.downsampling))
            y_btd = (grouped * self.average.softmax(dim=0)[:, None]).sum(dim=2)
        for layer, context in zip(self.layers, contexts, strict=True):
            y_btd = layer(y_btd, context)
        if self.bypass is None:
            return y_btd
        return self.bypass(x_btd, y_btd.repeat_interleave(self.downsampling, dim=1))


class Zipformer(StreamingStudent):
    """Zipformer CTC student (Yao et al., arXiv 2310.11230): stacks of layers at several frame rates,
    attention weights shared by the modules of a layer, causal and chunk-wise convolutions.

    The fastest frames are 40 ms, not 20 ms as in the paper: half the computation. Chunks are multiples of
    80 ms with a stack at half the rate, and longer with lower rates.

    Args:
        vocab_size: classes including blank.
        widths: D of each stack.
        downsampling: for each stack, how many 40 ms frames make one of its own. Chunks are
            multiples of all of these; left contexts are rounded down to whole frames of a stack.
        num_layers: layers of each stack.
        num_heads, query_dim, value_dim: of the attention; query_dim is even.
        expansion: hidden width / D of the middle feed-forward; the others have 3/4 and 5/4 of it.
        kernel_frames: of the convolutions within a chunk, odd; the causal ones have about half.
        dropout: at the end of each module.
        chunk_frames, left_context_frames, lookahead_frames, dynamic_chunks: see `StreamingStudent`.

    Raises:
        ConfigError: the stacks or sizes do not fit each other.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        widths: Sequence[int] = (96, 128, 96),
        downsampling: Sequence[int] = (1, 2, 1),
        num_layers: Sequence[int] = (1, 2, 1),
        num_heads: int = 4,
        query_dim: int = 16,
        value_dim: int = 12,
        expansion: float = 2.0,
        kernel_frames: int = 9,
        dropout: float = 0.1,
        chunk_frames: int = 8,
        left_context_frames: int = 32,
        lookahead_frames: int = 2,
        dynamic_chunks: Sequence[int] = (),
    ) -> None:
        config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        _check(widths, downsampling, num_layers, query_dim, kernel_frames)
        super().__init__(
            vocab_size=vocab_size,
            width=widths[0],
            chunk_frames=chunk_frames,
            left_context_frames=left_context_frames,
            lookahead_frames=lookahead_frames,
            dynamic_chunks=dynamic_chunks,
            chunk_multiple=math.lcm(*downsampling),
        )
        self.config = {
            name: list(value) if isinstance(value, Sequence) else value for name, value in config.items()
        }
        self.reach = kernel_frames // 2
        self.norm = BiasNorm(widths[0])

        def layer(width: int) -> ZipformerLayer:
            return ZipformerLayer(
                width,
                num_heads=num_heads,
                query_dim=query_dim,
                value_dim=value_dim,
                expansion=expansion,
                kernel_frames=kernel_frames,
                dropout=dropout,
            )

        stacks = zip(widths, downsampling, num_layers, strict=True)
        self.layers = nn.ModuleList(
            ZipformerStack(width, factor, [layer(width) for _ in range(count)])
            for width, factor, count in stacks
        )
        self.head = nn.Linear(max(widths), vocab_size)

    def initial_state(self, batch_size: int = 1) -> ZipformerState:
        like = self.head.weight
        attended, convolved = self._cache_shapes()
        return ZipformerState(
            self._context(batch_size),
            like.new_zeros(batch_size, sum(map(math.prod, attended))),
            like.new_zeros(batch_size, sum(map(math.prod, convolved))),
            torch.zeros(batch_size, dtype=torch.int64, device=like.device),
        )

    def encode(self, x_btd: Tensor, lengths_b: Tensor, chunk_frames: int) -> Tensor:
        x_btd, outputs = self.norm(x_btd), []
        for stack in self._stacks():
            context = self._offline_context(x_btd, lengths_b, chunk_frames, stack.downsampling)
            x_btd = stack(x_btd, [context] * len(stack.layers))
            outputs.append(x_btd)
        return widest(outputs)

    def encode_chunk(self, x_btd: Tensor, state: ZipformerState) -> tuple[Tensor, ZipformerState]:
        x_btd, outputs = self.norm(x_btd), []
        contexts = self._cached_contexts(state)
        layers = iter(contexts)
        for stack in self._stacks():
            x_btd = stack(x_btd, [next(layers) for _ in stack.layers])
            outputs.append(x_btd)
        attended = [torch.cat(context.next_attended, dim=2).flatten(1) for context in contexts]
        convolved = [torch.stack(context.next_convolved, dim=1).flatten(1) for context in contexts]
        processed = torch.clamp(state.processed + self.chunk_frames, max=self.left_context_frames)
        return widest(outputs), ZipformerState(
            state.features_bcf, torch.cat(attended, dim=1), torch.cat(convolved, dim=1), processed
        )

    def _stacks(self) -> list[ZipformerStack]:
        return [stack for stack in self.layers if isinstance(stack, ZipformerStack)]

    def _offline_context(self, x_btd: Tensor, lengths_b: Tensor, chunk_frames: int, factor: int) -> Context:
        num_frames = x_btd.shape[1]
        if chunk_frames == FULL_CONTEXT:
            valid_bt = frames_inside(lengths_b, num_frames)[:, ::factor]
            return Context(valid_bt[:, None, None], 0, valid_bt[..., None])
        chunk, left = chunk_frames // factor, self.left_context_frames // factor
        return Context(chunk_mask(num_frames // factor, chunk, left, x_btd.device), chunk)

    def _cached_contexts(self, state: ZipformerState) -> list[CachedContext]:
        """One for each layer."""
        attended_shapes, convolved_shapes = self._cache_shapes()
        attended = state.attended_bn.split([math.prod(shape) for shape in attended_shapes], dim=1)
        convolved = state.convolved_bn.split([math.prod(shape) for shape in convolved_shapes], dim=1)
        contexts: list[CachedContext] = []
        for stack in self._stacks():
            factor = stack.downsampling
            chunk, left = self.chunk_frames // factor, self.left_context_frames // factor
            real = torch.div(state.processed, factor, rounding_mode="floor")
            mask = cache_mask(real, left, chunk)
            for _ in stack.layers:
                n = len(contexts)
                contexts.append(
                    CachedContext(
                        mask,
                        chunk,
                        attended[n].unflatten(1, attended_shapes[n]),
                        convolved[n].unflatten(1, convolved_shapes[n]),
                    )
                )
        return contexts

    def _cache_shapes(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """For each layer, the shapes of its two caches, without the batch."""
        attended: list[tuple[int, ...]] = []
        convolved: list[tuple[int, ...]] = []
        for stack in self._stacks():
            for layer in stack.layers:
                assert isinstance(layer, ZipformerLayer)
                attended.append((self.left_context_frames // stack.downsampling, layer.attended_channels))
                convolved.append((2, self.reach, stack.width))
        return attended, convolved


def with_width(x_btd: Tensor, width: int) -> Tensor:
    """Truncate or zero-pad the channels to `width`."""
    missing = width - x_btd.shape[-1]
    # ExecuTorch has no negative padding.
    return functional.pad(x_btd, (0, missing)) if missing > 0 else x_btd[..., :width]


def widest(outputs: Sequence[Tensor]) -> Tensor:
    """Each channel from the last stack that has it (section 3.1)."""
    joined = outputs[-1]
    for output in reversed(outputs[:-1]):
        if output.shape[-1] > joined.shape[-1]:
            joined = torch.cat([joined, output[..., joined.shape[-1] :]], dim=-1)
    return joined


def _check(
    widths: Sequence[int],
    downsampling: Sequence[int],
    num_layers: Sequence[int],
    query_dim: int,
    kernel_frames: int,
) -> None:
    if not len(widths) == len(downsampling) == len(num_layers) >= 1:
        raise ConfigError(
            "widths, downsampling and num_layers must have the same length",
            where="Zipformer",
            expected="one value of each per stack, for 1 or more stacks",
            got=f"{len(widths)}, {len(downsampling)} and {len(num_layers)}",
        )
    if min(*widths, *downsampling, *num_layers) < 1:
        raise ConfigError(
            "a stack has a width, downsampling or number of layers below 1",
            where="Zipformer",
            expected="widths, downsampling and num_layers of 1 or more",
            got=f"{list(widths)}, {list(downsampling)} and {list(num_layers)}",
        )
    if query_dim % 2 or not kernel_frames % 2:
        raise ConfigError(
            "invalid size",
            where="Zipformer",
            expected="an even query_dim and an odd kernel_frames",
            got=f"{query_dim} and {kernel_frames}",
        )
