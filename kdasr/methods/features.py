"""Distillation of hidden layers: hints, cosines, flow between layers, attention over time.

All of them compare layers, which are not stored, so they need an online teacher. Learned adapters map
the student's width to the teacher's; `kdasr.methods.pairing` matches frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from kdasr.errors import ConfigError
from kdasr.interfaces import Batch, ModelOutput, frames_inside
from kdasr.methods.pairing import FramePairs, WidthAdapter, layer_of, pair_frames, pooled
from kdasr.targets import online


class Hint(nn.Module):
    """½ |u_h(x) - r(v_g(x))|² per dimension, between a hidden layer of the teacher and one of the student
    mapped by a learned regressor r (FitNets, Romero et al. 2015, arXiv 1412.6550, eq. 3).

    Args:
        teacher: an online teacher.
        student_layer: the guided layer; negative numbers count from the last.
        teacher_layer: the hint layer.
        delay_frames: student frames that the student may lag behind the teacher.
    """

    def __init__(
        self, *, teacher: str, student_layer: int = -1, teacher_layer: int = -1, delay_frames: int = 0
    ) -> None:
        super().__init__()
        self.config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.teacher, self.layers, self.delay_frames = teacher, (student_layer, teacher_layer), delay_frames
        self.adapter = WidthAdapter()

    def pairs(self, output: ModelOutput, batch: Batch) -> FramePairs:
        """The student's frames, mapped to the teacher's width, paired with the teacher's."""
        heard = online(batch, self.teacher)
        teacher_btd = layer_of(heard, self.layers[1], f"teacher {self.teacher}")
        student_btd = self.adapter(layer_of(output, self.layers[0], "the student"), teacher_btd.shape[-1])
        return pair_frames(student_btd, output.lengths_b, teacher_btd, heard.lengths_b, self.delay_frames)

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        """The mean over frames and dimensions."""
        pairs = self.pairs(output, batch)
        return pairs.mean(0.5 * (pairs.student_btd - pairs.teacher_btd).square().mean(-1))


class HiddenCosine(Hint):
    """1 - cos between hidden states, the third part of DistilBERT's triple loss (Sanh et al. 2019, arXiv
    1910.01108, section 2). Arguments as for `Hint`."""

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        """The mean over frames, 0 to 2."""
        pairs = self.pairs(output, batch)
        return pairs.mean(1.0 - functional.cosine_similarity(pairs.student_btd, pairs.teacher_btd, dim=-1))


class Flow(nn.Module):
    """|G_T - G_S|² per element, between the flow matrices G = (1 / T) Σ_t F1_t F2_tᵀ of two layers (FSP, Yim
    et al. 2017, eq. 1 and 2). The sum runs over time, so frame rates need not match.

    Args:
        teacher: an online teacher.
        student_layers, teacher_layers: two layers each.
    """

    def __init__(
        self,
        *,
        teacher: str,
        student_layers: tuple[int, int] = (0, -1),
        teacher_layers: tuple[int, int] = (0, -1),
    ) -> None:
        super().__init__()
        self.config = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        self.teacher, self.student_layers, self.teacher_layers = teacher, student_layers, teacher_layers
        self.adapters = nn.ModuleList([WidthAdapter(), WidthAdapter()])

    def forward(self, output: ModelOutput, batch: Batch) -> Tensor:
        """The mean over utterances and matrix elements."""
        heard = online(batch, self.teacher)
        teacher = [layer_of(heard, layer, f"teacher {self.teacher}") for layer in self.teacher_layers]
        student = [
            adapter(layer_of(output, layer, "the student"), like.shape[-1])
            for adapter, layer, like in zip(self.adapters, self.student_layers, teacher, strict=True)
        ]
        ours_bmn = flow(student[0], student[1], output.lengths_b)
        difference_bmn = flow(teacher[0], teacher[1], heard.lengths_b) - ours_bmn
        return difference_bmn.square().mean()


def flow(first_btm: Tensor, second_btn: Tensor, lengths_b: Tensor) -> Tensor:
    """(B, M, N) flow matrices of each utterance."""
    valid_bt1 = frames_inside(lengths_b, first_btm.shape[1])[..., None]
    # Divided first: a sum over 20 s of frames is too much for fp16.
    mean_btm = first_btm * valid_bt1 / lengths_b.clamp_min(1)[:, None, None]
    return mean_btm.transpose(1, 2) @ second_btn


def attention_transfer(
    output: ModelOutput,
    batch: Batch,
    *,
    teacher: str,
    student_layers: Sequence[int] = (-1,),
    teacher_layers: Sequence[int] = (-1,),
    centred: bool = True,
    delay_frames: int = 0,
) -> Tensor:
    """|Q_S / |Q_S| - Q_T / |Q_T||₂ between maps of squared activations Q_t = Σ_d A_td² (Zagoruyko & Komodakis
    2017, arXiv 1612.03928, eq. 2), here over time: where in the utterance a layer is active.

    A map has one number per frame whatever the width, so no adapter is needed. Layers that end in a
    LayerNorm give every frame the same norm, so by default the utterance's mean frame is subtracted
    first.

    Args:
        output: of the student.
        batch: with `teachers`.
        teacher: an online teacher.
        student_layers, teacher_layers: layers to compare, in pairs.
        centred: subtract the mean frame first; False for the paper's maps.
        delay_frames: student frames that the student may lag behind the teacher.

    Returns:
        The mean over utterances and pairs of layers.

    Raises:
        ConfigError: there is no such teacher or layer, or the layers do not form pairs.
    """
    if len(student_layers) != len(teacher_layers) or not student_layers:
        raise ConfigError(
            "layers are compared in pairs",
            where="attention_transfer",
            expected="as many student_layers as teacher_layers, and at least one",
            got=f"{list(student_layers)} and {list(teacher_layers)}",
        )
    heard = online(batch, teacher)
    distances = []
    for student_layer, teacher_layer in zip(student_layers, teacher_layers, strict=True):
        student_bt1, teacher_bt1 = (
            _activity(layer_of(model, layer, whose), model.lengths_b, centred)
            for model, layer, whose in (
                (output, student_layer, "the student"),
                (heard, teacher_layer, f"teacher {teacher}"),
            )
        )
        pairs = pair_frames(student_bt1, output.lengths_b, teacher_bt1, heard.lengths_b, delay_frames)
        maps = [
            functional.normalize((x_bt1 * pairs.valid_bt[..., None]).squeeze(-1), dim=-1, eps=1e-6)
            for x_bt1 in (pairs.student_btd, pairs.teacher_btd)
        ]
        # The square root has no gradient at 0, where the maps are equal.
        distances.append((maps[0] - maps[1]).square().sum(-1).add(1e-12).sqrt().mean())
    return torch.stack(distances).mean()


def _activity(x_btd: Tensor, lengths_b: Tensor, centred: bool) -> Tensor:
    """(B, T, 1) sums of the squared activations of each frame."""
    if centred:
        x_btd = x_btd - pooled(x_btd, lengths_b)[:, None]
    return x_btd.square().sum(-1, keepdim=True)
