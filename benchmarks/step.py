"""A training step on its own: the project's own Step, optimiser and precision, without the training loop.

This is what the loop, with its checkpoints, dev set evaluations and waiting for data, is compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdasr.augment import SpecAugment
from kdasr.features import FRAME_SHIFT_MS
from kdasr.interfaces import Batch
from kdasr.losses import ctc
from kdasr.training.compiled import compiled
from kdasr.training.muon import make_optimiser
from kdasr.training.step import Step, WeightedLosses

DTYPES = {"fp32": None, "bf16": torch.bfloat16}


class TrainingStep:
    """Forward, losses, backward, clipping and AdamW.

    Args:
        model: the model to train, which is moved to `device`.
        device: where the step runs.
        precision: "fp32" or "bf16" (autocast).
        compile: whether to compile the model's layers.
        losses: for each stream, weights and losses by name; by default CTC alone.
        augment: by default SpecAugment with its defaults.
    """

    def __init__(
        self,
        model: Any,
        device: str,
        precision: str = "fp32",
        *,
        compile: bool = False,
        losses: Mapping[str, WeightedLosses] | None = None,
        augment: nn.Module | None = None,
    ) -> None:
        self.device, self.dtype = torch.device(device), DTYPES[precision]
        losses = losses or {"labelled": {"ctc": (1.0, ctc)}}
        self.step = Step(model, losses, {}, augment or SpecAugment()).to(device).train()
        self.optimiser = make_optimiser(self.step, "adamw", weight_decay=1e-2, betas=(0.9, 0.98))
        for group in self.optimiser.param_groups:
            group["lr"] = 1e-4
        self._open = ExitStack()
        self._open.enter_context(compiled(model, compile))

    def __call__(self, *batches: Batch) -> Tensor:
        """Do a step over `batches`; returns the loss on its device, without waiting for the device."""
        total = torch.zeros((), device=self.device)
        with self._autocast():
            for batch in batches:
                stream = "labelled" if batch.tokens_bu is not None else "unlabelled"
                _, terms = self.step(batch.to(self.device, non_blocking=True), stream)
                loss = torch.stack(list(terms.values())).sum() / len(batches)
                with torch.autocast(self.device.type, enabled=False):
                    loss.backward()
                total += loss.detach()
        nn.utils.clip_grad_norm_(self.step.parameters(), 5.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return total

    def forward(self, batch: Batch) -> Tensor:
        """Log-probs as in labelling: no augmentation, no gradients."""
        self.step.eval()
        with torch.inference_mode(), self._autocast():
            output = self.step.student(batch.features_btf, batch.feature_lengths_b)
        self.step.train()
        log_probs_btv: Tensor = output.log_probs_btv
        return log_probs_btv

    @staticmethod
    def flops(batch: Batch, work: Callable[[Batch], Tensor]) -> float:
        """Floating-point operations of matrix products, convolutions and attention in `work`."""
        with FlopCounterMode(display=False) as counter:
            work(batch)
        return float(counter.get_total_flops())

    def close(self) -> None:
        self._open.close()
        self.step.student.close()

    def _autocast(self) -> Any:
        return nullcontext() if self.dtype is None else torch.autocast(self.device.type, self.dtype)


def synthetic_batch(
    utterances: int, seconds: float, vocab_size: int, device: str, *, units_per_second: float = 5.0
) -> Batch:
    """Utterances of equal length (so without padding), with random features and transcripts."""
    frames, units = int(seconds * 1000 / FRAME_SHIFT_MS), max(1, int(seconds * units_per_second))
    batch = Batch(
        [f"u{number}" for number in range(utterances)],
        torch.randn(utterances, frames, 80) * 3 - 8,
        torch.full((utterances,), frames),
        torch.randint(1, vocab_size, (utterances, units)),
        torch.full((utterances,), units),
    )
    return batch.to(device)


def seconds_of(batch: Batch) -> float:
    """Audio in a batch, without padding."""
    return float(batch.feature_lengths_b.sum()) * FRAME_SHIFT_MS / 1000


def seconds_each(work: Callable[[], Any], device: str, *, times: int, warm_up: int = 2) -> float:
    """Mean wall time over `times` calls in a row, after `warm_up` calls; this waits for the device."""
    for _ in range(warm_up):
        work()
    synchronise(device)
    started = time.perf_counter()
    for _ in range(times):
        work()
    synchronise(device)
    return (time.perf_counter() - started) / times


def synchronise(device: str) -> None:
    """Wait until an accelerator has finished its work."""
    if device != "cpu":
        torch.accelerator.synchronize()


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    """Print rows with the same keys, one line each."""
    names = list(rows[0])
    cells = [names, *([_text(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)), flush=True)


def _text(value: object) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
