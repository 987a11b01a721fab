"""Shards, a model, losses and a schedule in; the best checkpoint as a model folder out.

One loop for teachers and students: what is trained, on which streams of batches and with which
losses all arrive as arguments. SpeechBrain's Brain runs the steps and keeps the checkpoints.

Each step seeds torch from (seed, step) and reads the batch of that step number, so training that was
killed and resumed gives the same losses, to the bit, as training that was not.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from kdasr.compat import import_torchaudio
from kdasr.decoding import greedy
from kdasr.error_rates import error_rates
from kdasr.errors import ConfigError, NonFiniteLossError
from kdasr.interfaces import Batch, TrainableModel
from kdasr.loader import ScheduledBatches, Stream, feature_statistics
from kdasr.models import count_parameters, save_model
from kdasr.text import Units
from kdasr.training_log import LOG_FILE, TrainingLog

import_torchaudio()
import speechbrain as sb  # noqa: E402  (needs torchaudio to import)
from speechbrain.utils.checkpoints import Checkpointer  # noqa: E402
from speechbrain.utils.epoch_loop import EpochCounter  # noqa: E402

FINGERPRINT_FILE = "fingerprint.txt"

Loss = Callable[[Tensor, Tensor, Batch], Tensor]
WeightedLosses = Mapping[str, tuple[float, Loss]]

logging.getLogger("speechbrain").setLevel(logging.WARNING)


@dataclass(slots=True, kw_only=True)
class Optimisation:
    """How the weights move.

    Attributes:
        steps: training steps (batches) in all.
        eval_every: steps between two looks at the dev set, each with a checkpoint.
        checkpoint_every: steps between two further checkpoints for resuming; 0 for none.
        peak_learning_rate: reached after `warmup_steps`, linearly; then a cosine down to zero.
        weight_decay, betas: of AdamW.
        max_gradient_norm: gradients are scaled down to this norm.
        keep_best: checkpoints kept; the one with the lowest dev WER becomes the model.
        precision: "fp32", "bf16" or "fp16" (autocast).
    """

    steps: int
    eval_every: int = 200
    checkpoint_every: int = 0
    peak_learning_rate: float = 2e-3
    warmup_steps: int = 150
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.98)
    max_gradient_norm: float = 5.0
    keep_best: int = 3
    precision: str = "fp32"

    def learning_rate(self, step: int) -> float:
        """Learning rate of step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak_learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.peak_learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(slots=True, kw_only=True)
class Training:
    """Everything a training run is made of; `run` trains and writes the model.

    Attributes:
        name: of the model, for people.
        model, units: what is trained and its classes.
        streams: "labelled" and, where it is used, "unlabelled".
        schedule: blocks of (stream, batches), repeated; see `ScheduledBatches`.
        losses: for each stream, loss functions and their weights by name.
        dev: folder stream with transcripts, for selection.
        optimisation: how the weights move.
        augment: features to features, on training batches only; or None.
        seed: of everything random.
        checkpoints: folder for checkpoints and the training log.
        num_workers: processes that load batches beside training; 0 for none.
        device: e.g. "cpu" or "cuda".
    """

    name: str
    model: TrainableModel
    units: Units
    streams: dict[str, Stream]
    schedule: Sequence[tuple[str, int]]
    losses: Mapping[str, WeightedLosses]
    dev: Stream
    optimisation: Optimisation
    augment: nn.Module | None = None
    seed: int = 1
    checkpoints: Path
    num_workers: int = 0
    device: str = "cpu"

    def run(self, out: Path, *, card: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Train (or go on where a killed run stopped) and write the model folder `out`.

        Returns:
            Facts about the run: steps, dev WER, parameters.

        Raises:
            NonFiniteLossError: the loss became NaN or infinite; checkpoints are kept.
            ConfigError: the schedule, the losses and the data do not fit each other.
        """
        self._check()
        batches = ScheduledBatches(self.streams, self.schedule)
        self._set_aside_other_checkpoints()
        brain = CtcBrain(self)
        if not brain.has_checkpoint():
            self.model.set_statistics(*feature_statistics(self.streams["labelled"]))
        brain.train_on(batches)
        best = brain.recover_best()
        facts = {
            "name": self.name,
            "train_steps": self.optimisation.steps,
            "seed": self.seed,
            "dev_wer": best["wer"],
            "best_step": best["step"],
            "params": count_parameters(brain.model),
        }
        # No times in the card: the same training gives the same bytes, interrupted or not.
        save_model(out, self.model, self.units, extra={"training": facts, **(card or {})})
        return facts

    def fingerprint(self) -> str:
        """A hash of all that decides the course of training; checkpoints of another are not resumed."""
        content = {
            "model": [type(self.model).__qualname__, self.model.config],
            "units": self.units.hash,
            "streams": {name: stream.fingerprint() for name, stream in self.streams.items()},
            "schedule": [list(block) for block in self.schedule],
            "losses": {name: _described(terms) for name, terms in self.losses.items()},
            "optimisation": asdict(self.optimisation),
            "augment": [str(self.augment), getattr(self.augment, "config", None)],
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def _set_aside_other_checkpoints(self) -> None:
        """Move checkpoints that belong to other settings or data out of the way; they are kept."""
        marker, fingerprint = self.checkpoints / FINGERPRINT_FILE, self.fingerprint()
        found = marker.read_text().strip() if marker.exists() else None
        if found is not None and found != fingerprint:
            aside = self.checkpoints.with_name(f"{self.checkpoints.name}.{found}")
            shutil.rmtree(aside, ignore_errors=True)
            self.checkpoints.replace(aside)
            (aside / LOG_FILE).unlink(missing_ok=True)
            Console(stderr=True).print(f"{self.name}: checkpoints of other settings are now in {aside}")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        marker.write_text(fingerprint + "\n")

    def _check(self) -> None:
        for name in {stream for stream, _ in self.schedule}:
            if not self.losses.get(name):
                raise ConfigError(
                    f"the schedule uses the {name} stream but no loss is given for it",
                    where=self.name,
                    fix=f"Name a loss under {name}_losses, or take {name} out of the schedule.",
                )


class StepSampler(Sampler[int]):
    """Step numbers of one Brain epoch (an interval between two looks at the dev set), from the step
    within it at which a resumed run stands."""

    def __init__(self, brain: CtcBrain) -> None:
        self.brain = brain

    def __iter__(self) -> Iterator[int]:
        first = self.brain.epoch_start
        return iter(range(first + self.brain.step, min(first + self.brain.interval, self.brain.last_step)))

    def __len__(self) -> int:
        return min(self.brain.interval, self.brain.last_step - self.brain.epoch_start)


class Offline(nn.Module):
    """A model whose `forward` is `offline`: what a wrapper for data parallel or compile can take."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, features_btf: Tensor, lengths_b: Tensor) -> tuple[Tensor, Tensor]:
        result: tuple[Tensor, Tensor] = self.model.offline(features_btf, lengths_b)
        return result


class CtcBrain(sb.Brain):
    """The steps of a `Training`; an epoch is the interval between two looks at the dev set."""

    def __init__(self, training: Training) -> None:
        optimisation = training.optimisation
        self.training, self.optimisation = training, optimisation
        self.model: Any = training.model
        self.interval, self.last_step = optimisation.eval_every, optimisation.steps
        self.counter = EpochCounter(math.ceil(self.last_step / self.interval))
        self.log = TrainingLog(training.checkpoints / LOG_FILE)
        super().__init__(
            modules={"offline": Offline(self.model)},
            opt_class=lambda parameters: torch.optim.AdamW(
                parameters, lr=0.0, betas=optimisation.betas, weight_decay=optimisation.weight_decay
            ),
            run_opts={
                "device": training.device,
                "precision": optimisation.precision,
                "max_grad_norm": optimisation.max_gradient_norm,
                "ckpt_interval_steps": optimisation.checkpoint_every,
                "ckpt_interval_minutes": 0,
                "noprogressbar": True,
            },
            checkpointer=Checkpointer(training.checkpoints),
        )
        self.checkpointer.add_recoverables({"model": self.model, "counter": self.counter})

    @property
    def epoch_start(self) -> int:
        """The first step of the current epoch."""
        return (self.counter.current - 1) * self.interval

    def has_checkpoint(self) -> bool:
        return self.checkpointer.find_checkpoint() is not None

    def train_on(self, batches: ScheduledBatches) -> None:
        """`fit`, with this project's data order and progress display."""
        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        loader = DataLoader(
            batches,
            batch_size=None,
            sampler=StepSampler(self),
            num_workers=self.training.num_workers,
            prefetch_factor=4 if self.training.num_workers else None,
        )
        dev = DataLoader(_OneEpoch(self.training.dev), batch_size=None)
        with Progress(*columns, console=console, transient=True) as self.progress:
            self.task = self.progress.add_task(self.training.name, total=self.last_step)
            self.fit(self.counter, loader, dev)

    def recover_best(self) -> dict[str, Any]:
        """Load the weights with the lowest dev WER (the later of equals); its facts."""
        checkpoint = self.checkpointer.find_checkpoint(min_key="wer")
        self.checkpointer.load_checkpoint(checkpoint)
        meta: dict[str, Any] = checkpoint.meta
        return meta

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.log.cut(self.optimizer_step)
        self.progress.update(self.task, completed=self.optimizer_step)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        self.hypotheses: list[str] = []
        self.references: list[str] = []

    def on_fit_batch_start(self, batch: Batch, should_step: bool) -> None:
        step = self.epoch_start + self.step - 1
        torch.manual_seed(_step_seed(self.training.seed, step))
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimisation.learning_rate(step)

    def compute_forward(self, batch: Batch, stage: sb.Stage) -> tuple[Tensor, Tensor]:
        batch = batch.to(self.device)
        features = batch.features_btf
        if stage == sb.Stage.TRAIN and self.training.augment is not None:
            features = self.training.augment(features)
        result: tuple[Tensor, Tensor] = self.modules["offline"](features, batch.feature_lengths_b)
        return result

    def compute_objectives(self, predictions: tuple[Tensor, Tensor], batch: Batch, stage: sb.Stage) -> Tensor:
        log_probs_btv, lengths_b = predictions
        stream = "labelled" if batch.soft_labels is None else "unlabelled"
        if stage != sb.Stage.TRAIN:
            self._collect(log_probs_btv, lengths_b, batch)
            stream = "labelled"
        terms = {
            name: weight * loss(log_probs_btv, lengths_b, batch)
            for name, (weight, loss) in self.training.losses[stream].items()
        }
        if stage == sb.Stage.TRAIN:
            self.terms = {f"{stream}/{name}": term.detach() for name, term in terms.items()}
            self.keys = batch.keys
        return torch.stack(list(terms.values())).sum()

    def check_loss_isfinite(self, loss: Tensor) -> None:
        if torch.isfinite(loss):
            return
        step = self.epoch_start + self.step - 1
        raise NonFiniteLossError(
            f"the loss became {loss.item()} in step {step}",
            where=self.training.name,
            got={name: float(value) for name, value in self.terms.items()},
            fix=f"The last good checkpoint is kept in {self.training.checkpoints}. Lower "
            f"peak_learning_rate, or look at the audio of this batch: {', '.join(self.keys)}",
        )

    def on_fit_batch_end(self, batch: Batch, outputs: Any, loss: Tensor, should_step: bool) -> None:
        step = self.epoch_start + self.step
        terms = {name: float(value) for name, value in self.terms.items()}
        self.log.write({"step": step, **terms})
        self.progress.update(self.task, completed=step)

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        if stage != sb.Stage.VALID:
            self.train_loss = stage_loss
            return
        step = min(self.counter.current * self.interval, self.last_step)
        wer, _ = error_rates(self.references, self.hypotheses)
        self.log.write({"step": step, "dev_loss": stage_loss, "dev_wer": wer})
        self.progress.console.print(
            f"{self.training.name}: step {step}/{self.last_step}  train loss {self.train_loss:.3f}  "
            f"dev loss {stage_loss:.3f}  dev WER {wer:.1f} %"
        )
        self.checkpointer.save_and_keep_only(
            meta={"wer": wer, "step": step}, num_to_keep=self.optimisation.keep_best, min_keys=["wer"]
        )

    def _collect(self, log_probs_btv: Tensor, lengths_b: Tensor, batch: Batch) -> None:
        units = self.training.units
        for tokens in greedy(log_probs_btv, lengths_b):
            self.hypotheses.append(units.decode([token.id for token in tokens]))
        assert batch.tokens_bu is not None and batch.token_lengths_b is not None
        for ids, length in zip(batch.tokens_bu.tolist(), batch.token_lengths_b.tolist(), strict=True):
            self.references.append(units.decode(ids[:length]))


class _OneEpoch(torch.utils.data.Dataset[Batch]):
    """The batches of a stream's first epoch, as a map-style dataset."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __len__(self) -> int:
        return len(self.stream.epoch_batches(0))

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self):
            raise IndexError(index)
        return self.stream.batch(index)


def _described(terms: WeightedLosses) -> dict[str, list[Any]]:
    """Losses by what they are called with; two runs with the same description compute the same."""
    described: dict[str, list[Any]] = {}
    for name, (weight, loss) in terms.items():
        function, settings = loss, {}
        if isinstance(loss, functools.partial):
            function, settings = loss.func, dict(loss.keywords)
        described[name] = [weight, getattr(function, "__qualname__", type(function).__qualname__), settings]
    return described


def _step_seed(seed: int, step: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=7).digest())
