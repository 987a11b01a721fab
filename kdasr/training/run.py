"""`Training`: everything that determines a training run, and the method that runs it."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from kdasr.arguments import described
from kdasr.devices import device_text
from kdasr.errors import ConfigError, TrainingError
from kdasr.interfaces import AcousticModel, BatchSource, Loss, OnlineTeacher, TrainableModel
from kdasr.loader import Stream, feature_statistics
from kdasr.models import count_parameters, read_card, refuse_other_content, save_model
from kdasr.ranks import Ranks, joined
from kdasr.reasons import counted, duration
from kdasr.schedule import ScheduledBatches
from kdasr.storage import commit_bytes, commit_file, naming, remove_leftovers, temporary_name
from kdasr.text import Units
from kdasr.training.compiled import compiled
from kdasr.training.lock import LOCK_FILE, used_alone
from kdasr.training.optimisation import Optimisation
from kdasr.training.step import DEV, Fading, Step, WeightedLosses, step_seed
from kdasr.training_log import LOG_FILE

FINGERPRINT_FILE = "fingerprint.txt"
_FINGERPRINT = re.compile("[0-9a-f]{12}")
LEFT_OUT_FILE = "left_out.json"
_OLD_LOG_FILE = f"{LOG_FILE}.old"
# Settings of the optimisation that do not change the steps taken.
_NO_MATTER = ("compile", "nonfinite_patience", "checkpoint_every")
# All that a folder of checkpoints may hold.
_OWN_FILES = (LOCK_FILE, FINGERPRINT_FILE, LEFT_OUT_FILE, f"{LOG_FILE}*", "CKPT*", "unfinished*", ".*")

Watch = Callable[[AcousticModel, torch.device | str], dict[str, Any]]


@dataclass(slots=True, kw_only=True)
class Training:
    """Everything that determines a training run; `run` trains and writes the model.

    Attributes:
        name: of the model, for people to read.
        model, units: the model to train, and its classes.
        streams: "labelled", "unlabelled" or both; features are normalised by the first of these.
        schedule: blocks of (stream, batches), repeated; see `ScheduledBatches`.
        losses: for each stream, loss functions and their weights by name; those of "labelled" that need no
            stored labels are also computed on the dev set, whether or not the schedule uses that stream.
        dev: folder stream with transcripts, to select the best checkpoint.
        dev_loss: computed on the dev set if none of the losses is.
        optimisation: how the weights are optimised.
        teachers: models that run beside the student, for losses that request them by name.
        augment: maps features to features, on training batches only; or None.
        start: identifies the weights of a model that is already trained, else None. Its normalisation is
            kept, and so are its weights if every dev set evaluation finds more errors by more than chance.
        watch: maps model and device to further facts for the training log, at every dev set evaluation; it
            must not draw random numbers.
        seed: of everything random.
        checkpoints: folder for checkpoints, the training log, and the names of utterances not used.
        num_workers: processes that load batches during training; 0 for none.
        device: e.g. "cpu" or "cuda".
    """

    name: str
    model: TrainableModel
    units: Units
    streams: Mapping[str, BatchSource]
    schedule: Sequence[tuple[str, int]]
    losses: Mapping[str, WeightedLosses]
    dev: Stream
    dev_loss: Loss
    optimisation: Optimisation
    teachers: Mapping[str, OnlineTeacher] = field(default_factory=dict)
    augment: nn.Module | None = None
    start: str | None = None
    watch: Watch | None = None
    seed: int = 1
    checkpoints: Path
    num_workers: int = 0
    device: str = "cpu"

    def run(self, out: Path, *, card: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Train (or resume a killed run) and write the model folder `out`.

        Processes started by `torchrun` train together; only rank 0 writes.

        Returns:
            Facts about the run: steps, dev WER, parameters.

        Raises:
            RankLostError: another process of this training has ended.
            NonFiniteLossError: the loss or its gradient stayed NaN or infinite; checkpoints are kept.
            ConfigError: the schedule, the losses and the data do not fit each other.
            TrainingError: another training uses the folder of checkpoints, the disk is full, or a batch
                does not fit into memory.
        """
        # Imported here because it imports SpeechBrain, which takes two seconds.
        from kdasr.training.brain import CtcBrain

        with joined() as ranks, _telling_of_a_full_disk(), contextlib.ExitStack() as held:
            refuse_other_content(out)
            _check_writable(out.absolute().parents, "model", out, "out")
            checkpoints = self.checkpoints.absolute()
            _check_writable(
                [checkpoints, *checkpoints.parents], "checkpoints", self.checkpoints, "checkpoints"
            )
            _check_apart(self.checkpoints, out)
            batches = ScheduledBatches(self.streams, self.schedule)
            self._check(ranks)
            # Before losses have weights, which may change their description.
            found, fingerprint = None, self.fingerprint()
            _check_all_alike(ranks.gather(fingerprint), self.name)
            if ranks.first:
                self._tell_what_begins(ranks)
                self._tell_what_is_heard(batches)
                found = self._lock_checkpoints(held)
            ranks.wait()
            # An error raised here comes before any checkpoints are moved.
            step = self._first_step()
            try:
                if ranks.first:
                    self._take_checkpoints(found, fingerprint, out, held)
                    self._tell_what_is_left_out()
                ranks.wait()
                brain = CtcBrain(self, step)
                with compiled(self.model, self.optimisation.compile):
                    brain.train_on(batches)
                best = ranks.from_first(brain.recover_best() if ranks.first else {})
                if ranks.first and best["step"] == 0:
                    _say(
                        f"{self.name}: every dev set evaluation found clearly more errors than the starting "
                        f"model has (WER {best['start_wer']:.1f} %), which is kept unchanged"
                    )
            finally:
                step.student.close()
            facts = {
                "name": self.name,
                "train_steps": self.optimisation.steps,
                "seed": self.seed,
                "dev_wer": best["wer" if best["step"] else "start_wer"],
                "best_step": best["step"],
                "params": count_parameters(cast(nn.Module, self.model)),
                "left_out": {name: len(stream.left_out) for name, stream in self._all_streams().items()},
            }
            if ranks.first:
                heard = {name: _described_audio(stream) for name, stream in self._used_streams().items()}
                about = {"training": facts, "learned_from": heard, **(card or {})}
                # The card has no times, so that the same training gives the same bytes, interrupted or not.
                save_model(out, self.model, self.units, extra=about)
            ranks.wait()
            weights_sha256 = ranks.from_first(read_card(out)["weights_sha256"] if ranks.first else "")
        return {**facts, "weights_sha256": weights_sha256, "model": str(out)}

    def fingerprint(self) -> str:
        """A hash of all that determines the course of training; checkpoints with another are not resumed."""
        content = {
            "model": [type(self.model).__qualname__, self.model.config],
            "units": self.units.hash,
            # Includes the dev set, which decides which checkpoint becomes the model.
            "streams": {name: stream.fingerprint() for name, stream in self._all_streams().items()},
            "schedule": [list(block) for block in self.schedule],
            "losses": {name: _described(terms) for name, terms in self.losses.items()},
            "optimisation": {k: v for k, v in asdict(self.optimisation).items() if k not in _NO_MATTER},
            "augment": [str(self.augment), getattr(self.augment, "config", None)],
            "seed": self.seed,
        }
        if self.start is not None:
            content["start"] = self.start
        if self.teachers:
            content["teachers"] = {
                name: [type(teacher).__qualname__, teacher.config] for name, teacher in self.teachers.items()
            }
        return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:12]

    def _first_step(self) -> Step:
        """Everything that learns, with its initial weights, which a resumed run overwrites."""
        # A generated stream, which says nothing about the statistics of audio, is never used alone.
        known = self.streams.get("labelled", self.streams.get("unlabelled"))
        statistics = feature_statistics(cast(Stream, known))
        if self.start is None:
            self.model.set_statistics(*statistics)
        torch.manual_seed(step_seed(self.seed, "teachers"))
        for teacher in self.teachers.values():
            teacher.attach(self.model, units_hash=self.units.hash, statistics=statistics)
        step = Step(self.model, self.losses, self.teachers, self.augment, self.units.decode).to(self.device)
        used = dict.fromkeys(stream for stream, _ in self.schedule)
        first = ((stream, self.streams[stream].batch(0).to(self.device)) for stream in used)
        step.initialise(step_seed(self.seed, "losses"), first, self.dev.batch(0).to(self.device))
        return step

    def _tell_what_begins(self, ranks: Ranks) -> None:
        """Print what is trained, on which device, and the time that processes spend waiting in each step."""
        parameters = count_parameters(cast(nn.Module, self.model))
        facts = [f"on {device_text(self.device)}", self.optimisation.precision, f"{parameters:,} parameters"]
        used = sorted({stream for stream, _ in self.schedule})
        facts += ["with labelled and unlabelled audio" if len(used) > 1 else f"with {used[0]} audio only"]
        facts += [] if ranks.alone else [f"{ranks.count} processes"]
        _say(f"{self.name}: {', '.join(facts)}")
        how = self.optimisation
        if not how.phases and how.warmup_steps > how.steps:
            _say(
                f"{self.name}: the learning rate never reaches its peak: {how.warmup_steps} warm-up steps "
                f"in a run of {how.steps} steps (optimisation.warmup_steps)"
            )
        if idle := self.optimisation.idle_share(ranks.count):
            _say(
                f"{self.name}: {ranks.count} processes share the {self.optimisation.accumulate} batches of a "
                f"step and idle for {100 * idle:.0f} % of it; set optimisation.accumulate to a "
                f"multiple of {ranks.count}"
            )

    def _tell_what_is_heard(self, batches: ScheduledBatches) -> None:
        """Print each stream's amount of audio, its number of passes, and its teachers if it has several."""
        read = batches.batches_before(self.optimisation.steps * self.optimisation.accumulate)
        for name, stream in self._used_streams().items():
            audio = f"{duration(stream.seconds)} in {counted(len(stream.items), 'utterance')}"
            passes = f"{read[name] / stream.batches_per_epoch:.1f} passes"
            _say(f"{self.name}: {name}: {audio}, {passes}")
            teachers = sorted({(one["teacher"], one["teacher_hash"][:12]) for one in stream.taught_by})
            if len(teachers) > 1:
                _say(
                    f"{self.name}: {name}: its labels are from {len(teachers)} teachers: "
                    + ", ".join(f"{teacher} ({hashed})" for teacher, hashed in teachers)
                )

    def _used_streams(self) -> dict[str, Stream]:
        """The streams in the schedule that read audio."""
        used = {name: self.streams[name] for name in sorted({name for name, _ in self.schedule})}
        return {name: stream for name, stream in used.items() if isinstance(stream, Stream)}

    def _lock_checkpoints(self, held: contextlib.ExitStack) -> str | None:
        """Lock the folder of checkpoints for as long as `held` lasts, and return the fingerprint of its
        checkpoints, "" if it has none; None, and no lock, if there is no such folder."""
        _check_not_nested(self.checkpoints)
        if not self.checkpoints.exists():
            return None
        held.enter_context(used_alone(self.checkpoints))
        marker = self.checkpoints / FINGERPRINT_FILE
        if marker.exists():
            found = marker.read_text(encoding="utf-8", errors="replace").strip()
            if not _FINGERPRINT.fullmatch(found):
                raise TrainingError(
                    "the settings and data of these checkpoints are unknown, as their fingerprint is damaged",
                    where=marker,
                    expected="12 hexadecimal digits",
                    got=repr(found[:40]),
                    fix="Restore the file, or move the folder away: training then starts from the beginning.",
                )
            return found
        _refuse_other_files(self.checkpoints)
        return ""

    def _take_checkpoints(
        self, found: str | None, fingerprint: str, out: Path, held: contextlib.ExitStack
    ) -> None:
        """Make the folder of checkpoints, for which `_lock_checkpoints` returned `found`, one for the
        settings and data of `fingerprint`."""
        from kdasr.training.checkpoints import WholeCheckpoints

        while found not in ("", fingerprint):
            if found is not None:
                self._set_aside(found, fingerprint, out)  # the lock moves with it
            self._take_back(fingerprint)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            # Another training may have made the folder meanwhile, and may still use it.
            found = self._lock_checkpoints(held)
        if found != fingerprint:
            commit_bytes(self.checkpoints / FINGERPRINT_FILE, f"{fingerprint}\n".encode())
        if not (self.checkpoints / LOG_FILE).exists():
            # They were taken back, or a kill kept them from being set aside.
            with contextlib.suppress(FileNotFoundError):
                (self.checkpoints / _OLD_LOG_FILE).replace(self.checkpoints / LOG_FILE)
        remove_leftovers(self.checkpoints)
        WholeCheckpoints(self.checkpoints).remove_unfinished()

    def _set_aside(self, found: str, fingerprint: str, out: Path) -> None:
        """Move checkpoints of other settings, with fingerprint `found`, out of the way of `fingerprint`'s."""
        aside = _free_name(self._aside(found))
        # Rename the log, or the report would take it for the log of a further training. If the process is
        # killed after that, `_take_checkpoints` renames it back.
        with contextlib.suppress(FileNotFoundError):
            (self.checkpoints / LOG_FILE).replace(self.checkpoints / _OLD_LOG_FILE)
        self.checkpoints.replace(aside)
        begins = "" if self._aside(fingerprint).exists() else "starting from the beginning: "
        replaced = f"; this run will replace the model in {out}" if out.exists() else ""
        _say(
            f"{self.name}: {begins}checkpoints of other settings or data are now in {aside} "
            f"(with those settings and data, training resumes from there){replaced}"
        )

    def _take_back(self, fingerprint: str) -> None:
        """Move checkpoints of these settings back if they were set aside earlier."""
        own = self._aside(fingerprint)
        if not own.exists() or self.checkpoints.exists():
            return
        own.replace(self.checkpoints)
        _say(f"{self.name}: resuming with checkpoints of these settings from {own}")

    def _aside(self, fingerprint: str) -> Path:
        return self.checkpoints.with_name(f"{self.checkpoints.name}.{fingerprint}")

    def _all_streams(self) -> dict[str, BatchSource]:
        return {**self.streams, DEV: self.dev}

    def _tell_what_is_left_out(self) -> None:
        """Write which utterances of the streams are not used and why, and print how many."""
        path = self.checkpoints / LEFT_OUT_FILE
        attempt = temporary_name(path)
        try:
            with naming(path), attempt.open("w", encoding="utf-8") as file:
                file.writelines(_left_out_json(self._all_streams()))
            commit_file(attempt, path)
        finally:
            attempt.unlink(missing_ok=True)
        for name, stream in self._all_streams().items():
            if stream.left_out:
                left_out = counted(len(stream.left_out), "utterance")
                _say(f"{self.name}: {left_out} of {name} left out, {len(stream.items)} used (see {path})")

    def _check(self, ranks: Ranks) -> None:
        self.optimisation.check_shared_by(ranks.count, self.name)
        if self.optimisation.precision == "fp16" and torch.device(self.device).type != "cuda":
            raise ConfigError(
                "fp16 needs a GPU",
                where="optimisation.precision",
                expected="fp32 or bf16 here",
                got=self.device,
            )
        for name in {stream for stream, _ in self.schedule}:
            if not self.losses.get(name):
                raise ConfigError(
                    f"the schedule uses the {name} stream but no loss is given for it",
                    where=self.name,
                    fix=f"Add a loss to {name}_losses, or remove {name} from the schedule.",
                )


def _check_all_alike(fingerprints: Sequence[str], name: str) -> None:
    """Raise ConfigError if ranks would train with other data or settings than rank 0: a machine may have
    another copy of the shards or labels."""
    others = [str(rank) for rank, one in enumerate(fingerprints) if one != fingerprints[0]]
    if others:
        raise ConfigError(
            "the processes of this job do not see the same data, labels or settings",
            where=name,
            expected=f"what process 0 has ({fingerprints[0]}) on all of them",
            got=f"something else on process {', '.join(others)}",
            fix="Compare the shards and labels on their machines: `kdasr verify`.",
        )


@contextlib.contextmanager
def _telling_of_a_full_disk() -> Iterator[None]:
    """Raise TrainingError if the disk of a file is full. (Shared memory may be full, too, but is no file.)"""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is None:
            raise
        raise TrainingError(
            "the disk is full",
            where=error.filename,
            got=error.strerror,
            fix="Free some space and run the same command again: it resumes from the last checkpoint.",
        ) from error


def _check_apart(checkpoints: Path, out: Path) -> None:
    """Raise ConfigError if one of a model's folder and its checkpoints' contains the other: each is replaced
    or moved away as a whole."""
    inner, outer = checkpoints.resolve(), out.resolve()
    if inner.is_relative_to(outer) or outer.is_relative_to(inner):
        raise ConfigError(
            "the folders of a model and of its checkpoints must not contain each other",
            where="checkpoints",
            expected=f"a folder separate from {out}",
            got=checkpoints,
        )


def _check_writable(folders: Sequence[Path], what: str, place: Path, key: str) -> None:
    """Raise ConfigError at the start, not after hours, if the first of `folders` that exists is not
    writable."""
    there = next(folder for folder in folders if folder.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return
    got = f"no permission to write in {there}" if there.is_dir() else f"{there}, which is a file"
    fix = f"Choose another --{key}."
    raise ConfigError(f"the {what} cannot be written there", where=place, got=got, fix=fix)


def _check_not_nested(checkpoints: Path) -> None:
    """Raise ConfigError if the checkpoints of one training lie within another's: they would be moved together
    with those."""
    folders = [
        *checkpoints.absolute().parents,
        *(path.parent for path in checkpoints.glob(f"*/{FINGERPRINT_FILE}")),
    ]
    if other := next((folder for folder in folders if (folder / FINGERPRINT_FILE).exists()), None):
        raise ConfigError(
            "the checkpoints of one training run must not be inside those of another",
            where="checkpoints",
            expected=f"a folder separate from {other}, which has those of another training run",
            got=checkpoints,
            fix="Choose another --checkpoints.",
        )


def _refuse_other_files(checkpoints: Path) -> None:
    """Raise ConfigError if a folder without checkpoints holds other files, which would later be moved away
    with the checkpoints."""
    others = [
        path.name
        for path in sorted(checkpoints.iterdir())
        if not any(path.match(pattern) for pattern in _OWN_FILES)
    ]
    if others:
        raise ConfigError(
            "checkpoints need a folder of their own",
            where="checkpoints",
            expected=f"an empty folder instead of {checkpoints}",
            got=", ".join(others[:5]) + (", …" if len(others) > 5 else ""),
        )


def _free_name(path: Path) -> Path:
    """`path`, or if it exists, `path` with the first free number appended."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(one for one in itertools.chain([path], numbered) if not one.exists())


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _left_out_json(streams: Mapping[str, BatchSource]) -> Iterator[str]:
    """Pieces of JSON: how many utterances each stream uses, and the names of those it does not. There may be
    millions, whose JSON as a whole would take gigabytes of memory."""
    before = "{"
    for name, stream in streams.items():
        counts = f'"used": {len(stream.items)},\n  "count": {len(stream.left_out)}'
        yield f'{before}\n "{name}": {{\n  {counts},\n  "left_out": '
        before = "{"
        for pair in stream.left_out.items():
            key, reason = (json.dumps(text, ensure_ascii=False) for text in pair)
            yield f"{before}\n   {key}: {reason}"
            before = ","
        yield "\n  }\n }" if stream.left_out else "{}\n }"
        before = ","
    yield "\n}\n"


def _described_audio(stream: Stream) -> dict[str, Any]:
    """The model card's entry for a stream: how much audio, and whose labels."""
    facts = {"utterances": len(stream.items), "hours": round(stream.seconds / 3600, 3)}
    return {**facts, "labels": stream.taught_by} if stream.taught_by else facts


def _described(terms: WeightedLosses) -> dict[str, list[Any]]:
    """Losses as weight, function and settings; two runs with the same description compute the same."""
    entries: dict[str, list[Any]] = {}
    for name, (weight, loss) in terms.items():
        function: Any = loss
        settings: Any = getattr(loss, "config", {})
        if isinstance(loss, nn.Module) and not settings:
            settings = str(loss)
        if isinstance(loss, functools.partial):
            function, settings = loss.func, {k: described(v) for k, v in loss.keywords.items()}
        value = astuple(weight) if isinstance(weight, Fading) else weight
        entries[name] = [value, getattr(function, "__qualname__", type(function).__qualname__), settings]
    return entries
