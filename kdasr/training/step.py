"""One training step without its optimiser: the terms of the loss for a batch.

Everything that learns is in this one module, including losses and online teachers that learn, so that
a wrapper for several processes sees all of it.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from kdasr.errors import ConfigError, MissingLabelsError
from kdasr.interfaces import Batch, Loss, ModelOutput, OnlineTeacher
from kdasr.recording import Recorded, WhenAsked


@dataclass(frozen=True, slots=True)
class Fading:
    """The weight of a loss that helps only in the first part of training.

    Attributes:
        first: weight at the first step.
        until: share of the training after which it is 0, having fallen linearly.
    """

    first: float
    until: float

    def at(self, progress: float) -> float:
        """The weight when the share `progress` of all steps is done."""
        return self.first * max(0.0, 1.0 - progress / self.until)


# The dev set's name as a stream; it has transcripts and never stored labels.
DEV = "dev"

WeightedLosses = Mapping[str, tuple[float | Fading, Loss]]


class Step(nn.Module):
    """The student with its augmentation, losses and online teachers.

    Args:
        model: the student.
        losses: for each stream, loss functions and their weights by name.
        teachers: online teachers by name, attached to the student.
        augment: maps features to features, in training only, drawing independently for each utterance
            (two views of a batch go through as one batch); or None.
        decode: maps ids of the student's units to text, for losses that count words.

    Attributes:
        learned: the losses and teachers that have parameters or state, by name.
        progress: the share of the training that is done.
    """

    progress = 0.0

    def __init__(
        self,
        model: Any,
        losses: Mapping[str, WeightedLosses],
        teachers: Mapping[str, OnlineTeacher],
        augment: nn.Module | None,
        decode: Callable[[Sequence[int]], str] | None = None,
    ) -> None:
        super().__init__()
        self.student = Recorded(model)
        self.augment = augment
        named: dict[str, Any] = {
            f"{stream}/{name}": loss for stream in losses for name, (_, loss) in losses[stream].items()
        }
        named |= {f"teachers/{name}": teacher for name, teacher in teachers.items()}
        self.learned = nn.ModuleDict(
            {place: part for name, one in named.items() for place, part in _modules_of(one, name)}
        )
        self._losses, self._teachers, self._decode = losses, teachers, decode

    def forward(self, batch: Batch, stream: str) -> tuple[ModelOutput, dict[str, Tensor]]:
        """The student's output for a batch on the module's device, and each weighted loss of its stream; for
        `DEV`, those of "labelled" that need no stored labels and are not for training only, possibly none.

        Raises:
            MissingLabelsError: a loss needs stored labels, and the stream has none.
        """
        losses = self._losses_of(stream)
        compares = self.training and any(asks_for_views(loss) for _, loss in losses.values())
        features_btf, lengths_b, views = batch.features_btf, batch.feature_lengths_b, 1
        if compares:  # both views in one pass: small batches leave a GPU idle
            features_btf, lengths_b, views = features_btf.repeat(2, 1, 1), lengths_b.repeat(2), 2
        heard_btf = self._heard(features_btf)
        output, *others = _parts(self.student(heard_btf, lengths_b), views)
        first_btf = heard_btf[: len(batch.keys)]
        batch.teachers = WhenAsked[str](lambda name: self._teacher(name)(batch, first_btf))
        batch.views = WhenAsked[int](
            lambda _: (
                self.student(self._heard(batch.features_btf), batch.feature_lengths_b)
                if self.training
                else output
            )
        )
        batch.views.update(enumerate(others))
        batch.decode = self._decode
        terms = {}
        for name, (weight, loss) in losses.items():
            try:
                value = loss(output, batch)
            except MissingLabelsError as error:
                if stream != DEV:
                    where = f"{stream}_losses.{name}"
                    raise MissingLabelsError(error.what, where=where, fix=error.fix) from error
                continue
            if not isinstance(value, Tensor) or value.dim() != 0:
                found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                where = f"{'labelled' if stream == DEV else stream}_losses.{name}"
                raise ConfigError(
                    "a loss is no scalar", where=where, expected="a tensor without axes", got=found
                )
            terms[name] = weight * value
        # Break the reference cycle with the batch, whose memory would wait for the garbage collector.
        batch.teachers, batch.views = {}, {}
        return output, terms

    def _losses_of(self, stream: str) -> dict[str, tuple[float, Loss]]:
        """A stream's losses and their present weights, without those that have faded, to save time."""
        found = {}
        for name, (weight, loss) in self._losses["labelled" if stream == DEV else stream].items():
            if isinstance(weight, Fading) and self.progress >= weight.until:
                continue
            if stream == DEV and getattr(innermost(loss), "in_training_only", False):
                continue
            found[name] = (weight.at(self.progress) if isinstance(weight, Fading) else weight, loss)
        return found

    def after_step(self) -> None:
        """Notify the teachers that the student's weights have changed."""
        for teacher in self._teachers.values():
            teacher.after_step(self.student.model)

    def initialise(self, seed: int, batches: Iterable[tuple[str, Batch]], dev_batch: Batch) -> None:
        """Draw the weights of the losses that learn, with the widths that `batches` of (stream, batch) need,
        and check that every loss can be computed, also on the dev set, before training begins.

        Raises:
            ConfigError: a loss that learns is never used, or needs something that its stream lacks.
        """
        learned = [part for name, part in self.learned.items() if not name.startswith("teachers/")]
        torch.manual_seed(seed)
        for part in (part for loss in learned for part in loss.modules()):
            if callable(reset := getattr(part, "reset_parameters", None)):
                reset()
        was_training = self.training
        self.eval()
        for stream, batch in batches:  # created with gradients enabled, which impressions need
            with torch.no_grad():
                self(batch, stream)
        for name, part in self.learned.items():
            if any(is_lazy(parameter) for parameter in part.parameters()):
                raise ConfigError("no stream in the schedule uses this loss", where=name)
        with torch.no_grad():
            self(dev_batch, DEV)
        self.train(was_training)

    def _teacher(self, name: str) -> OnlineTeacher:
        if name not in self._teachers:
            raise ConfigError(
                f"a loss uses the teacher {name!r}, which this training does not have",
                where="teachers",
                expected=", ".join(self._teachers) or "the name of a teacher under `teachers:`",
            )
        return self._teachers[name]

    def _heard(self, features_btf: Tensor) -> Tensor:
        if not self.training or self.augment is None:
            return features_btf
        augmented: Tensor = self.augment(features_btf)
        return augmented


def _parts(stacked: ModelOutput, count: int) -> list[ModelOutput]:
    """The output of each of `count` views that went through the model as one batch."""
    if count == 1:
        return [stacked]
    tensors = (stacked.log_probs_btv, stacked.lengths_b, *stacked.layers_btd)
    parts = zip(*(tensor.chunk(count) for tensor in tensors), strict=True)
    return [ModelOutput(log_probs_btv, lengths, tuple(layers)) for log_probs_btv, lengths, *layers in parts]


def asks_for_views(loss: Any) -> bool:
    """Whether a loss, or a loss that it wraps, compares two views of a batch."""
    is_partial = isinstance(loss, functools.partial)
    within = [loss.func, *loss.keywords.values()] if is_partial else [getattr(loss, "loss", None)]
    return getattr(loss, "asks_for_views", False) or any(
        asks_for_views(one) for one in within if callable(one)
    )


def innermost(loss: Any) -> Any:
    """The function of a loss without the settings of the recipe; for a loss that wraps another one (such as
    `both_views`), the function of the inner one."""
    while isinstance(loss, functools.partial):
        loss = loss.keywords.get("loss", loss.func)
    return loss


def _modules_of(loss: Any, name: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a loss that learn, with their paths; they may be among its arguments."""
    if isinstance(loss, nn.Module):
        yield name, loss
    elif isinstance(loss, functools.partial):
        for key, value in loss.keywords.items():
            yield from _modules_of(value, f"{name}/{key}")


def step_seed(seed: int, step: int | str) -> int:
    """The seed for a step (or for something else with a name)."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=7).digest())
