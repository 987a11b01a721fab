"""SpeechBrain's loop around a step: optimiser, checkpoints, dev set evaluation, progress, log."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.data import DataLoader

from kdasr.compat import import_torchaudio
from kdasr.decoding import greedy
from kdasr.error_rates import count_errors
from kdasr.errors import ConfigError, KdasrError, NonFiniteLossError, TrainingError
from kdasr.interfaces import Batch, ModelOutput
from kdasr.ranks import ranks
from kdasr.schedule import ScheduledBatches
from kdasr.training.average import WeightAverage
from kdasr.training.checkpoints import WholeCheckpoints
from kdasr.training.muon import make_optimiser
from kdasr.training.order import OneEpoch, RankSteps, StepSampler
from kdasr.training.position import Position
from kdasr.training.step import DEV, Step, step_seed
from kdasr.training.sums import GradientSums, StepNews, StepSums, means
from kdasr.training_log import LOG_FILE, TrainingLog

if TYPE_CHECKING:
    from kdasr.training.run import Training

import_torchaudio()
import speechbrain as sb  # noqa: E402  (needs torchaudio to import)
from speechbrain.utils.epoch_loop import EpochCounter  # noqa: E402

logging.getLogger("speechbrain").setLevel(logging.WARNING)

# Interval between two progress lines if there is no terminal for a progress bar.
QUIET_S = 60.0
# Checkpoint meta key for the dev WER of the initial model; that of trained weights is under "wer".
_START_WER = "start_wer"
# Kept are the checkpoints with the fewest errors by each of these, and the latest one, to resume from.
_KEPT_BY = ["wer", _START_WER]
# Each overflowing gradient halves fp16's scale, initially 65,536; after so many, overflow is not the cause.
_MOST_HALVINGS = 24
Outputs = tuple[ModelOutput, dict[str, Tensor]]


class _Mean:
    """The mean of the finite losses; NaN, printed as "–", if there are none."""

    def __init__(self, total: float = 0.0, count: int = 0) -> None:
        self.total, self.count = total, count

    def add(self, loss: float) -> None:
        if math.isfinite(loss):
            self.total, self.count = self.total + loss, self.count + 1

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else math.nan

    def __str__(self) -> str:
        return f"{self.value:.3f}" if self.count else "–"


class _Loader(DataLoader[Any]):
    """A DataLoader that raises errors returned by its workers; torch would prepend a worker's traceback."""

    def __iter__(self) -> Any:
        for item in super().__iter__():
            if isinstance(item, KdasrError):
                raise item
            yield item


class CtcBrain(sb.Brain):
    """The steps of a `Training`; an epoch is the interval between two dev set evaluations.

    Each rank runs its own instance on its part of every step; only rank 0 writes files and messages.
    """

    def __init__(self, training: Training, step: Step) -> None:
        optimisation = training.optimisation
        self.training, self.optimisation, self.step_module = training, optimisation, step
        self.interval, self.last_step = optimisation.eval_every, optimisation.steps
        self.counter = EpochCounter(math.ceil(self.last_step / self.interval))
        self.log = TrainingLog(training.checkpoints / LOG_FILE)
        self.ranks = ranks()
        self.names = [f"{stream}/{name}" for stream, terms in training.losses.items() for name in terms]
        self.unread: deque[StepNews] = deque()
        self.steps_not_taken = 0  # consecutively, up to the latest step
        self.train_mean, self.dev_mean = _Mean(), _Mean()
        self.said_at = time.monotonic()
        super().__init__(
            modules={"step": step},
            opt_class=lambda parameters: make_optimiser(
                step,
                optimisation.optimiser,
                weight_decay=optimisation.weight_decay,
                betas=optimisation.betas,
            ),
            run_opts={
                "device": training.device,
                "precision": optimisation.precision,
                "ckpt_interval_steps": optimisation.checkpoint_every,
                "ckpt_interval_minutes": 0,
                "noprogressbar": True,
            },
            checkpointer=WholeCheckpoints(training.checkpoints),
        )
        self.checkpointer.add_recoverables({"model": training.model, "counter": self.counter})
        if len(step.learned) > 0:
            self.checkpointer.add_recoverable("learned", step.learned)
        self.average: WeightAverage | None = None
        if optimisation.ema_decay > 0:
            self.average = WeightAverage(step.student, optimisation.ema_decay)
            self.checkpointer.add_recoverable("average", self.average)
        # On a GPU, losses are read one step late: reading one waits for all work queued before it.
        self.steps_unread = 1 if self.device_type == "cuda" else 0

    @property
    def epoch_start(self) -> int:
        """The first step of the current epoch."""
        return (self.counter.current - 1) * self.interval

    def steps_to_look(self) -> range:
        """Steps left until the next dev set evaluation; none if the run was killed during that evaluation
        and its checkpoint is of the last step before it."""
        return range(self.epoch_start + self.step, min(self.epoch_start + self.interval, self.last_step))

    def train_on(self, batches: ScheduledBatches) -> None:
        """`fit`, with this project's data order and progress display.

        Raises:
            TrainingError: a process that loads batches has died.
        """
        console = Console(stderr=True)
        name = TextColumn("{task.description}", markup=False)
        columns = (name, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.steps = RankSteps(batches, self.optimisation.accumulate, self.ranks)
        self.checkpointer.add_recoverable(
            "position",
            Position(batches, self.optimisation.accumulate),
            custom_load_hook=lambda position, path, end_of_epoch: self._go_on_from(position, Path(path)),
            custom_save_hook=lambda position, path: position.save(
                Path(path), self.optimizer_step, self._so_far()
            ),
        )
        batches_ahead = max(1, 4 // len(self.steps.positions(0)))
        loader = _Loader(
            self.steps,
            batch_size=None,
            sampler=StepSampler(self.steps_to_look),
            num_workers=self.training.num_workers,
            prefetch_factor=batches_ahead if self.training.num_workers else None,
            pin_memory=self.device_type == "cuda",
        )
        one_epoch = OneEpoch(self.training.dev)
        self.dev = _Loader(
            one_epoch,
            batch_size=None,
            sampler=self.ranks.share(range(len(one_epoch))),
            # Workers end with each evaluation, and anything they have cached is lost.
            num_workers=0 if self.training.dev.fits_cache else self.training.num_workers,
        )
        self.ranks.wait()
        shown = self.ranks.first and console.is_terminal
        learning = [parameter for parameter in self.step_module.parameters() if parameter.requires_grad]
        with (
            Progress(*columns, console=console, transient=True, disable=not shown) as self.progress,
            GradientSums(learning, self.ranks) as self.gradients,
        ):
            self.task = self.progress.add_task(self.training.name, total=self.last_step)
            try:
                self.fit(self.counter, loader, self.dev)
            except RuntimeError as error:
                if not str(error).startswith("DataLoader worker"):
                    raise
                raise TrainingError(
                    "a process that loads batches has died",
                    where=self.training.name,
                    got=str(error).splitlines()[0].strip(),
                    fix="It may have run out of memory, or of shared memory in a container: give it more, or "
                    f"lower num_workers (now {self.training.num_workers}). The same command then resumes "
                    "from the last checkpoint.",
                ) from error

    def _so_far(self) -> dict[str, float]:
        """Counts that a resumed run needs: without them its mean loss would lack the steps before the
        checkpoint, and a job that is often restarted could skip `nonfinite_patience` bad steps each time."""
        mean = self.train_mean
        return {"steps_not_taken": self.steps_not_taken, "loss_total": mean.total, "losses": mean.count}

    def _go_on_from(self, position: Position, path: Path) -> None:
        so_far = position.check(path)
        self.steps_not_taken = int(so_far.get("steps_not_taken", 0))
        self.train_mean = _Mean(so_far.get("loss_total", 0.0), int(so_far.get("losses", 0)))

    def recover_best(self) -> dict[str, Any]:
        """Load the weights with the lowest dev WER (the latest of equals); its meta.

        The initial weights are kept only if all later ones have more errors by more than a standard error:
        on a dev set of a few hundred words, two more errors would otherwise reject most runs that make
        fewer errors on a test set.
        """
        checkpoint = self.checkpointer.find_checkpoint(min_key="wer")
        start = self.checkpointer.find_checkpoint(min_key=_START_WER)
        if start is not None and _more_by_more_than_chance(checkpoint.meta["errors"], start.meta["errors"]):
            checkpoint = start
        self.checkpointer.load_checkpoint(checkpoint)
        self._swap_average()
        meta: dict[str, Any] = checkpoint.meta
        return meta

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._check_ranks()
        begins = self.optimizer_step == 0
        if self.ranks.first:
            # Within an epoch, or at its end, its evaluation is still to come.
            self.log.cut(self.optimizer_step, with_look=self.step == 0 and not begins)
            # A kill may have come between the last save and this.
            self.checkpointer.delete_checkpoints(num_to_keep=1, min_keys=_KEPT_BY)
        if self.optimizer_step == self.last_step and self.step == 0:
            self._say(f"all {self.last_step} steps are already done")
        elif self.optimizer_step:
            self._say(f"resuming after step {self.optimizer_step}/{self.last_step}")
        self.progress.update(self.task, completed=self.optimizer_step)
        if begins and self.training.start is not None:
            # The baseline that training has to improve on; it is kept if all later weights are worse.
            self._fit_valid(self.dev, epoch=self.counter.current, enable=False)

    def on_stage_start(self, stage: sb.Stage, epoch: int | None = None) -> None:
        self.hypotheses: list[str] = []
        self.references: list[str] = []
        self.said_at_once = 0
        if stage == sb.Stage.TRAIN and self.step == 0:  # else the run resumes within an epoch
            self.train_mean = _Mean()
        if stage == sb.Stage.VALID:
            self.dev_mean = _Mean()
            # Set here, since a run resumed at this point has not run a step that sets it.
            self.step_module.progress = self.optimizer_step / self.last_step
            self._swap_average()

    def _swap_average(self) -> None:
        """Swap the weights and their average: the average is evaluated and becomes the model."""
        if self.average is not None:
            self.average.swap()

    def fit_batch(self, batch: list[Batch]) -> Tensor:
        """One step: run this rank's batches, then sum the gradients over all ranks.

        The loss of a step is the mean over its batches. Each batch is seeded by its position, so the step
        is the same whichever ranks run its batches.

        Raises:
            TrainingError: a batch does not fit into the memory of the device.
        """
        try:
            return self._take_step(batch)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"step {self.optimizer_step + 1} does not fit into the memory of {self.device}",
                where=self.training.name,
                got=(str(error) or repr(error)).splitlines()[0],
                fix="If no other program uses that memory (nvidia-smi), halve batch_seconds and double "
                f"optimisation.accumulate (now {self.optimisation.accumulate}): a step then has the same "
                "amount of audio, in smaller batches. Training then starts from the beginning.",
            ) from error

    def _take_step(self, batch: list[Batch]) -> Tensor:
        step = self.epoch_start + self.step - 1
        for group in self.optimizer.param_groups:
            group["lr"] = self.optimisation.learning_rate(step)
        self.step_module.progress = step / self.last_step
        positions = self.steps.positions(step)
        sums = StepSums(self.names, self.device)
        # One context for all batches, or autocast would cast the same weights to 16 bits for each batch.
        with self.training_ctx:
            for position, part in zip(positions, batch, strict=True):
                torch.manual_seed(step_seed(self.training.seed, position))
                outputs = self.compute_forward(part, sb.Stage.TRAIN)
                loss = self.compute_objectives(outputs, part, sb.Stage.TRAIN)
                if position == positions[-1]:
                    self.gradients.send_as_made()
                with torch.autocast(self.device_type, enabled=False):
                    self.scaler.scale(loss / self.optimisation.accumulate).backward()
                loss = loss.detach()
                sums.add(loss, outputs[1])
                del outputs  # of every layer; else they use memory until the next batch replaces them
        keys = [key for one in batch for key in one.keys]
        news = StepNews(step, keys, sums.values.clone())
        self.gradients.finish(sums.values)
        self.optimizers_step()
        news.steps_not_taken = self.steps_not_taken
        self.step_module.after_step()
        if self.average is not None:
            self.average.update()
        self.unread.append(news.with_sums(sums.values))
        self._read(keep=self.steps_unread)
        return loss

    def optimizers_step(self) -> None:
        """As SpeechBrain's, but clip all parameter groups: it clips only the first, and Muon has two.

        A step whose gradient is not finite is skipped. All ranks see the same sum, so all skip it.
        """
        parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.optimisation.max_gradient_norm)
        is_finite = bool(norm.isfinite())
        if is_finite or self.scaler.is_enabled():  # fp16's scaler checks for itself, to adapt its scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.steps_not_taken = 0 if is_finite else self.steps_not_taken + 1
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer_step += 1

    def compute_forward(self, batch: Batch, stage: sb.Stage) -> Outputs:
        # Batches without transcripts are unlabelled.
        stream = "labelled" if batch.tokens_bu is not None else "unlabelled"
        if stage != sb.Stage.TRAIN:
            stream = DEV
            # Some losses draw random numbers, which must not depend on the rank.
            seed = step_seed(self.training.seed, f"{DEV}/{self.optimizer_step}/{batch.keys[0]}")
            torch.manual_seed(seed)
        output, terms = self.modules["step"](batch.to(self.device, non_blocking=True), stream)
        return output, {f"{stream}/{name}": term for name, term in terms.items()}

    def compute_objectives(self, predictions: Outputs, batch: Batch, stage: sb.Stage) -> Tensor:
        output, terms = predictions
        if stage != sb.Stage.TRAIN:
            self._collect(output, batch)
            if not terms:
                return self.training.dev_loss(output, batch)
        return torch.stack(list(terms.values())).sum()

    def update_average(self, loss: Tensor, avg_loss: float) -> float:
        """The mean so far; in training `_read` updates it, which may be a step behind."""
        if self.modules.training:
            return self.train_mean.value
        self.dev_mean.add(float(loss))
        return self.dev_mean.value

    def _read(self, keep: int) -> None:
        """Log all but the last `keep` steps, and check that their losses are finite."""
        while len(self.unread) > keep:
            news = self.unread.popleft()
            loss, terms = means(self.names, news.arrived())
            step = news.step + 1
            # An fp16 gradient may overflow, which halves the scale; the audio of such a step is not to blame.
            patience = _MOST_HALVINGS if self.scaler.is_enabled() else 0
            if math.isfinite(loss) and news.steps_not_taken <= patience:
                self.train_mean.add(loss)
                row: dict[str, Any] = {"step": step, **terms}
            else:
                row = self._not_finite(news, loss, terms)
            if self.ranks.first:
                self.log.write(row)
            self.progress.update(self.task, completed=step)
            self._say_now_and_then(step)

    def _say_now_and_then(self, step: int) -> None:
        """Print a progress line if there is no terminal for a bar and nothing was printed for a while."""
        if self.progress.console.is_terminal or time.monotonic() - self.said_at < QUIET_S:
            return
        left_s = self.progress.tasks[0].time_remaining
        left = "" if left_s is None else f"  {timedelta(seconds=round(left_s))} left"
        self._say(f"step {step}/{self.last_step}  train loss {self.train_mean}{left}")

    def _say(self, text: str) -> None:
        if self.ranks.first:
            # Soft wrap, or lines in files are broken at 80 columns.
            self.progress.console.print(f"{self.training.name}: {text}", markup=False, soft_wrap=True)
        self.said_at = time.monotonic()

    def _not_finite(self, news: StepNews, loss: float, terms: dict[str, float]) -> dict[str, Any]:
        """The log entry of a step that was skipped.

        Raises:
            NonFiniteLossError: it is one too many in a row, or it was not skipped.
        """
        own_loss, _ = means(self.names, news.own_values.cpu())
        suspects = self.ranks.gather([] if math.isfinite(own_loss) else news.keys)
        keys = [key for found in suspects for key in found] or [
            key for found in self.ranks.gather(news.keys) for key in found
        ]
        if not 0 < news.steps_not_taken <= self.optimisation.nonfinite_patience:
            raise NonFiniteLossError(
                f"the loss ({loss}) or its gradient is not finite in step {news.step + 1}",
                where=self.training.name,
                got=terms,
                fix=f"The last good checkpoint, if one was due before, is in {self.training.checkpoints}. "
                "Start again with a lower peak_learning_rate, or check the audio of this batch: "
                + ", ".join(keys),
            )
        self._say(
            f"step {news.step + 1} was skipped: its loss ({loss:.4g}) or gradient is not finite "
            f"(see {self.log.path})"
        )
        not_finite = {name: str(value) for name, value in terms.items() if not math.isfinite(value)}
        return {"step": news.step + 1, "left_out": keys, "not_finite": not_finite}

    def _check_ranks(self) -> None:
        """Check that all ranks start at the same step, as they do if they see the same checkpoints."""
        steps = self.ranks.gather(self.optimizer_step)
        if len(set(steps)) > 1:
            raise ConfigError(
                "the processes of this job do not see the same checkpoints",
                where=self.training.checkpoints,
                expected="one folder for all, on a file system that all machines share",
                got="steps " + ", ".join(map(str, steps)),
            )

    def _wrap_distributed(self) -> None:
        """Do nothing; `kdasr.training.sums` says why."""

    def _should_save_intra_epoch_ckpt(self, last_ckpt_time: float, steps_since_ckpt: int) -> bool:
        """By steps alone, which all ranks count alike; SpeechBrain's version asks rank 0 in each step."""
        return 0 < self.optimisation.checkpoint_every <= steps_since_ckpt

    def _save_intra_epoch_ckpt(self) -> None:
        # Read every loss first: a run that ends because losses are not finite must not save its weights.
        self._read(keep=0)
        if self.ranks.first:
            super()._save_intra_epoch_ckpt()

    def on_stage_end(self, stage: sb.Stage, stage_loss: float, epoch: int | None = None) -> None:
        if stage != sb.Stage.VALID:
            self._read(keep=0)
            return
        watched: dict[str, Any] = {}
        if self.ranks.first and self.training.watch is not None:
            watched = self.training.watch(self.training.model, self.device)
        self._swap_average()
        looked = (self.dev_mean, self.said_at_once, self.references, self.hypotheses)
        parts = self.ranks.gather(looked)
        if not self.ranks.first:
            return
        means_of_ranks, at_once, references, hypotheses = zip(*parts, strict=True)
        mean = _Mean()
        mean.total = sum(one.total for one in means_of_ranks)
        mean.count = sum(one.count for one in means_of_ranks)
        step = min(self.counter.current * self.interval, self.last_step)
        counts = count_errors(_joined(references), _joined(hypotheses))
        wer = counts.wer
        finite = {"dev_loss": mean.value} if mean.count else {}
        self.log.write({"step": step, **finite, "dev_wer": wer, **watched})
        trained = f"  train loss {self.train_mean}" if step else ""
        self._say(f"step {step}/{self.last_step}{trained}  dev loss {mean}  dev WER {wer:.1f} %")
        early, count = sum(at_once), sum(map(len, hypotheses))
        if step == self.last_step and 2 * early > count:
            self._say(
                f"{early} of {count} dev utterances begin with a unit in their first output frame, "
                'whether it was said or not (docs/distillation.md, "The first unit")'
            )
        # Keep the best checkpoint, the latest, to resume from, and that of the initial model.
        name = "wer" if step else _START_WER
        meta = {name: wer, "errors": counts.errors, "step": step}
        self.checkpointer.save_and_keep_only(meta=meta, num_to_keep=1, min_keys=_KEPT_BY)

    def _collect(self, output: ModelOutput, batch: Batch) -> None:
        units = self.training.units
        for tokens in greedy(output.log_probs_btv, output.lengths_b):
            self.said_at_once += bool(tokens) and tokens[0].frame == 0
            self.hypotheses.append(units.decode([token.id for token in tokens]))
        assert batch.tokens_bu is not None and batch.token_lengths_b is not None
        for ids, length in zip(batch.tokens_bu.tolist(), batch.token_lengths_b.tolist(), strict=True):
            self.references.append(units.decode(ids[:length]))


def _more_by_more_than_chance(errors: int, others: int) -> bool:
    """Whether `errors` exceeds `others` by more than a standard error of two counts."""
    return errors - others > math.sqrt(errors + others)


def _joined(parts: Sequence[list[str]]) -> list[str]:
    return [text for part in parts for text in part]
