"""An accelerator gives what the CPU gives. Needs torch and pytest alone beside the source tree."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks.losses import LOSSES, random_batch
from kdasr.decoding import greedy
from kdasr.interfaces import Batch, ModelOutput, SoftLabelBatch
from kdasr.layers import _over_time as over_time
from kdasr.losses import ctc, soft_cross_entropy
from kdasr.methods.risk import expected_word_errors
from kdasr.students.conformer import ChunkConformer
from kdasr.students.zipformer import Zipformer
from kdasr.teachers.conformer import ConformerTeacher

pytestmark = pytest.mark.gpu

LENGTHS = [403, 250, 64]


@pytest.fixture(scope="module")
def device(accelerator: torch.device) -> torch.device:
    # TensorFloat-32 keeps ten bits of a number, which is no fault of the models compared here.
    torch.backends.cudnn.allow_tf32 = False
    return accelerator


MIXTURES: dict[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "sum": lambda here, cpu: here + cpu,
    "product": lambda here, cpu: here @ cpu,
    "concatenation": lambda here, cpu: torch.cat([here, cpu]),
    "in place": lambda here, cpu: here.mul_(cpu),
    "into a number": lambda here, cpu: cpu.sum().add_(here.sum()),
    "mask": lambda here, cpu: here.masked_fill(cpu > 0, 0.0),
    "embedding": lambda here, cpu: functional.embedding(cpu.long(), here),
    "cross-entropy": lambda here, cpu: functional.cross_entropy(here, cpu[0].long().clamp(0, 3)),
    "convolution": lambda here, cpu: functional.conv1d(here[None], here[:, :, None], cpu[0]),
    "random numbers": lambda here, cpu: here.uniform_(generator=torch.Generator()),
}


@pytest.mark.parametrize("name", MIXTURES)
def test_what_lies_on_the_cpu_is_refused(name: str, device: torch.device) -> None:
    """Else the tests below would say nothing of what was not moved."""
    with pytest.raises(RuntimeError, match=r"same device|device type|on CPU|is on cpu"):
        MIXTURES[name](torch.ones(4, 4, device=device), torch.ones(4, 4))


def test_indices_and_numbers_may_lie_on_the_cpu(device: torch.device) -> None:
    here = torch.arange(4.0, device=device)
    assert (here[torch.tensor([3, 1])] + torch.tensor(0.5)).tolist() == [3.5, 1.5]


def models() -> list[nn.Module]:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {"vocab_size": 29, "width": 64, "num_layers": 2, "dropout": 0.0}
    built = [ConformerTeacher(**sizes), ChunkConformer(**sizes), Zipformer(vocab_size=29, dropout=0.0)]
    for model in built:
        model.set_statistics(torch.full((80,), -8.0), torch.full((80,), 3.0))
    return [model.eval() for model in built]


def batch() -> Batch:
    """Three utterances with transcripts and with a teacher that is sure of them."""
    frames = [(length + 3) // 4 for length in LENGTHS]
    features_btf = torch.randn(3, max(LENGTHS), 80) * 3 - 8
    ids_btk = torch.randint(0, 29, (3, max(frames), 1)).repeat(1, 1, 2)
    ids_btk[..., 1] = (ids_btk[..., 0] + 1) % 29
    log_probs_btk = torch.tensor([0.7, 0.2]).log().expand(3, max(frames), 2)
    tail_bt = torch.full((3, max(frames)), 0.1).log()
    labels = SoftLabelBatch(ids_btk, log_probs_btk, tail_bt, torch.tensor(frames))
    tokens_bu = torch.randint(1, 29, (3, 5))
    return Batch(
        ["a", "b", "c"], features_btf, torch.tensor(LENGTHS), tokens_bu, torch.tensor([5, 5, 5]), labels
    )


@pytest.mark.parametrize("index", [0, 1, 2], ids=["teacher", "conformer", "zipformer"])
def test_log_probs_and_tokens_are_those_of_the_cpu(index: int, device: torch.device) -> None:
    model, data = models()[index], batch()
    with torch.inference_mode():
        expected, lengths_b = model.offline(data.features_btf, data.feature_lengths_b)
        data.to(device)
        found, found_b = copy.deepcopy(model).to(device).offline(data.features_btf, data.feature_lengths_b)
    assert found_b.tolist() == lengths_b.tolist()
    for row, length in enumerate(lengths_b.tolist()):
        torch.testing.assert_close(found[row, :length].cpu(), expected[row, :length], atol=2e-3, rtol=0)
    # Decoding itself is exact: the same log-probs give the same tokens wherever they lie.
    assert greedy(found, found_b) == greedy(found.cpu(), lengths_b)


def test_losses_and_gradients_are_those_of_the_cpu(device: torch.device) -> None:
    student, data, values = models()[1], batch(), []
    for place in (torch.device("cpu"), device):
        model = copy.deepcopy(student).to(place)
        data.to(place)
        output = ModelOutput(*model.offline(data.features_btf, data.feature_lengths_b))
        loss = ctc(output, data) + soft_cross_entropy(output, data, delay_frames=2)
        loss.backward()
        gradients = [
            parameter.grad.norm().cpu() for parameter in model.parameters() if parameter.grad is not None
        ]
        values.append(torch.stack([loss.detach().cpu(), *gradients]))
    assert values[0][0] > 1.0 and len(values[0]) > 20
    torch.testing.assert_close(values[1], values[0], atol=1e-3, rtol=1e-2)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "expected_word_errors"])
def test_every_loss_of_a_teacher_is_that_of_the_cpu(name: str, device: torch.device) -> None:
    """Its value, and its gradient in what the student gives; learned losses with the same weights."""
    torch.manual_seed(2)
    given, values = random_batch(8.0), []
    frames, vocab = given.soft_labels.ids_btk.shape[1], 29  # type: ignore[union-attr]
    logits = torch.randn(2, len(given.keys), frames, vocab)
    layers = torch.randn(2, 4, len(given.keys), frames, 16)
    loss = LOSSES[name]()
    for place in (torch.device("cpu"), device):
        data, moved = copy.deepcopy(given).to(place), logits[0].to(place).requires_grad_()
        lengths_b = torch.full((len(given.keys),), frames, device=place)
        big = ModelOutput(logits[1].to(place).log_softmax(-1), lengths_b, tuple(layers[1].to(place)))
        data.teachers = {"big": big}
        inside = layers[0].to(place).requires_grad_()
        if isinstance(loss, nn.Module):
            loss.to(place)
        value = loss(ModelOutput(moved.log_softmax(-1), lengths_b, tuple(inside)), data)
        value.backward()
        gradients = [x.grad.norm().cpu() for x in (moved, inside) if x.grad is not None]
        values.append(torch.stack([value.detach().cpu(), *gradients]))
    assert float(values[0][0]) != 0.0
    torch.testing.assert_close(values[1], values[0], atol=1e-3, rtol=1e-2)


def test_expected_word_errors_are_those_of_the_cpu_but_for_chance(device: torch.device) -> None:
    """Paths are drawn by the device's own generator: of a sure model all are one, of any they are many."""
    torch.manual_seed(2)
    given, found = random_batch(40.0), []
    frames = given.soft_labels.ids_btk.shape[1]  # type: ignore[union-attr]
    logits = torch.randn(len(given.keys), frames, 29)
    for place in (torch.device("cpu"), device):
        data, lengths_b = copy.deepcopy(given).to(place), torch.full((len(given.keys),), frames, device=place)
        for said in (200.0 * functional.one_hot(logits.argmax(2), 29), logits):
            moved = said.clone().to(place).requires_grad_()
            value = expected_word_errors(ModelOutput(moved.log_softmax(-1), lengths_b), data, samples=16)
            value.backward()
            assert moved.grad is not None and moved.grad.isfinite().all()
            found.append(float(value.detach()))
            assert bool(moved.grad.any()) == (said is logits)
    assert found[2] == pytest.approx(found[0], abs=1e-6) and found[0] > 0.1
    assert found[3] == pytest.approx(found[1], rel=0.1)


@pytest.mark.parametrize(("frames", "width", "kernel_frames"), [(7, 64, 31), (130, 72, 5), (375, 512, 31)])
def test_a_depthwise_convolution_in_bf16_is_that_of_float32(
    frames: int, width: int, kernel_frames: int, device: torch.device
) -> None:
    """Its values and its gradients in frames, weights and bias: those of kdasr's kernels, which are for CUDA.
    Elsewhere it is torch's own, whose gradients in bf16 are as exact as the processor lets them be.
    """
    if device.type != "cuda":
        pytest.skip("kernels of convolutions are for CUDA")
    torch.manual_seed(3)
    convolution = nn.Conv1d(width, width, kernel_frames, groups=width).to(device)
    x_btd = torch.randn(3, frames + kernel_frames - 1, width, device=device).bfloat16()
    upstream_btd = torch.randn(3, frames, width, device=device).bfloat16()
    found = gradients(convolution, x_btd, upstream_btd, torch.bfloat16)
    expected = gradients(convolution, x_btd.float(), upstream_btd, None, by=as_torch_does)
    assert found[0].dtype == torch.bfloat16 and expected[0].dtype == torch.float32
    for ours, theirs in zip(found, expected, strict=True):
        bound = 0.01 * float(theirs.abs().max())
        torch.testing.assert_close(ours.float(), theirs, atol=bound, rtol=0)


def as_torch_does(convolution: nn.Conv1d, x_btd: torch.Tensor) -> torch.Tensor:
    return convolution(x_btd.transpose(1, 2)).transpose(1, 2)


def gradients(
    convolution: nn.Conv1d,
    x_btd: torch.Tensor,
    upstream_btd: torch.Tensor,
    dtype: torch.dtype | None,
    by: Callable[[nn.Conv1d, torch.Tensor], torch.Tensor] = over_time,
) -> list[torch.Tensor]:
    """The output, and the gradients in the frames, the weights and the bias."""
    x_btd = x_btd.clone().requires_grad_()
    convolution.zero_grad()
    with torch.autocast(x_btd.device.type, dtype) if dtype is not None else nullcontext():
        out = by(convolution, x_btd)
    out.backward(upstream_btd.to(out.dtype))
    assert convolution.weight.grad is not None and convolution.bias is not None
    assert x_btd.grad is not None and convolution.bias.grad is not None
    return [out.detach(), x_btd.grad, convolution.weight.grad.clone(), convolution.bias.grad.clone()]
