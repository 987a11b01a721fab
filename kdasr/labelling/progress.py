"""Progress of a labelling job: live on the terminal, a log line per shard, a summary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from itertools import islice
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kdasr.errors import printable, without_passwords
from kdasr.labelling.foreman import Outcome
from kdasr.labelling.settings import ShardResult
from kdasr.reasons import Kind, Reasons, counted, duration, lines_of

#: Utterances without labels that are listed by name; the manifests list all.
MOST_NAMED = 1000
#: Time between two lines of progress if there is no terminal for a bar.
_QUIET_S = 60.0


@dataclass
class Totals:
    """Sums over the shards of one run, to which those of earlier runs are added at the end.

    Attributes:
        shards: audio shards assigned to this run.
        done_before: those that were labelled already when it began.
        not_tried: shards that were not started because the job stopped.
        tried: shards whose outcome is known.
        worker_s: time that workers spent on shards that got labels, including fetching them; without
            startup, idle time and shards that failed.
        log_problem: why writing the log stopped.
        seconds, labelled_seconds, heard_seconds: audio in the shards; in utterances that got labels; in those
            that the teacher heard.
        failed: reasons by utterance without labels, for the first `MOST_NAMED` of them.
        num_failed: number of all utterances without labels.
        reasons: their reasons, by kind.
        halved: batches that were halved because they did not fit into memory.
    """

    shards: int
    done_before: int
    not_tried: list[str] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    log_problem: str | None = None
    seconds: float = 0.0
    labelled_seconds: float = 0.0
    heard_seconds: float = 0.0
    wall_s: float = 0.0
    worker_s: float = 0.0
    teacher_s: float = 0.0
    encode_s: float = 0.0
    fetch_s: float = 0.0
    padding_s: float = 0.0
    frames: int = 0
    bytes: int = 0
    labelled: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    num_failed: int = 0
    reasons: Reasons = field(default_factory=Reasons)
    halved: int = 0
    failed_shards: dict[str, str] = field(default_factory=dict)

    @property
    def times_real_time(self) -> float:
        """Speed over the audio that the teacher heard, which excludes utterances filtered out before."""
        return self.heard_seconds / self.wall_s if self.wall_s else 0.0

    @property
    def bytes_per_frame(self) -> float:
        return self.bytes / self.frames if self.frames else 0.0

    def add(self, outcome: Outcome, elapsed_s: float) -> dict[str, Any]:
        """Add the outcome of one shard and return its log line."""
        self.tried.add(outcome.audio)
        self.wall_s = elapsed_s
        audio = without_passwords(outcome.audio)
        line = {"audio": audio, "attempts": outcome.attempts, "elapsed_s": round(elapsed_s, 3)}
        result = outcome.result
        if result is None:
            reason = without_passwords(outcome.reason)
            self.failed_shards[audio] = reason
            return {**line, "event": "failed", "reason": reason}
        manifest = result.manifest
        self.add_labels(result)
        self.heard_seconds += result.heard_seconds
        self.worker_s += result.wall_s
        self.teacher_s += result.teacher_s
        self.encode_s += result.encode_s
        self.fetch_s += result.fetch_s
        self.padding_s += result.padding * result.heard_seconds
        self.halved += result.halved
        return {
            **line,
            "event": "labelled",
            "seconds": result.seconds,
            "labelled_seconds": round(result.labelled_seconds, 3),
            "heard_seconds": round(result.heard_seconds, 3),
            "wall_s": round(result.wall_s, 3),
            "teacher_s": round(result.teacher_s, 3),
            "encode_s": round(result.encode_s, 3),
            "fetch_s": round(result.fetch_s, 3),
            "padding": round(result.padding, 4),
            "halved_batches": result.halved,
            "labelled": manifest["labelled"],
            "failed": dict(manifest["failed"]),
            "frames": manifest["frames"],
            "bytes": manifest["bytes"],
            "sha256": manifest["sha256"],
        }

    def add_labels(self, result: ShardResult) -> None:
        """Add the labels of a shard, which may come from an earlier run."""
        manifest = result.manifest
        self.seconds += result.seconds
        self.labelled_seconds += result.labelled_seconds
        self.labelled += manifest["labelled"]
        self.num_failed += len(manifest["failed"])
        self.failed.update(dict(manifest["failed"][: max(0, MOST_NAMED - len(self.failed))]))
        for key, reason in manifest["failed"]:
            self.reasons.add(Kind(1, key, reason))
        self.frames += manifest["frames"]
        self.bytes += manifest["bytes"]

    def summary(self) -> dict[str, Any]:
        """The run in figures.

        Counts of utterances, frames and bytes, `hours` of audio and `hours_labelled` include earlier runs;
        `hours_heard` (by the teacher) and speeds are of this run alone.
        """
        return {
            "shards": self.shards,
            "shards_done_before": self.done_before,
            "shards_labelled": len(self.tried) - len(self.failed_shards),
            "shards_failed": self.failed_shards,
            "shards_not_tried": self.not_tried,
            "labelled": self.labelled,
            "failed": self.failed,
            "num_failed": self.num_failed,
            "reasons": self.reasons.commonest(),
            "hours": self.seconds / 3600,
            "hours_labelled": self.labelled_seconds / 3600,
            "hours_heard": self.heard_seconds / 3600,
            "frames": self.frames,
            "bytes": self.bytes,
            "bytes_per_frame": round(self.bytes_per_frame, 3),
            "wall_s": round(self.wall_s, 3),
            "times_real_time": round(self.times_real_time, 1),
            "worker_hours": self.worker_s / 3600,
            "teacher_share": round(self.teacher_s / self.worker_s, 4) if self.worker_s else 0.0,
            "encode_share": round(self.encode_s / self.worker_s, 4) if self.worker_s else 0.0,
            "fetch_share": round(self.fetch_s / self.worker_s, 4) if self.worker_s else 0.0,
            "padding": round(self.padding_s / self.heard_seconds, 4) if self.heard_seconds else 0.0,
            "halved_batches": self.halved,
            "log_problem": self.log_problem,
        }


def all_together(parts: Sequence[Totals]) -> Totals:
    """The combined totals of jobs that ran at the same time, each on its own shards."""
    whole = Totals(0, 0)
    for part in parts:
        for name in _SUMS:
            setattr(whole, name, getattr(whole, name) + getattr(part, name))
        whole.wall_s = max(whole.wall_s, part.wall_s)
        whole.not_tried += part.not_tried
        whole.tried |= part.tried
        whole.failed |= dict(islice(part.failed.items(), MOST_NAMED - len(whole.failed)))
        whole.failed_shards |= part.failed_shards
        for kind in part.reasons.commonest():
            whole.reasons.add(kind)
        whole.log_problem = whole.log_problem or part.log_problem
    return whole


# Fields that are summed; the wall time of concurrent jobs is that of the longest.
_SUMS = [one.name for one in fields(Totals) if one.type in ("int", "float") and one.name != "wall_s"]


class Display:
    """A progress bar over the hours of audio to label; without a terminal, a line now and then. If `quiet`,
    only problems are shown."""

    def __init__(self, seconds: float, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._alarm = Console(stderr=True) if quiet else self._console
        self._seconds, self._said_s = seconds, 0.0
        self._progress = Progress(
            TextColumn("labelling"),
            BarColumn(20),  # so that the line fits into 80 columns
            TextColumn("{task.fields[so_far]}"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._bar = self._progress.add_task("labelling", total=seconds, so_far="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def note(self, text: str, *, problem: bool = False) -> None:
        """Print a line above the bar."""
        console = self._alarm if problem else self._console
        console.print(printable(without_passwords(text)), markup=False, highlight=False, soft_wrap=True)

    def show(self, totals: Totals, outcome: Outcome) -> None:
        """Update the bar after a shard."""
        if outcome.result is None:
            self.note(f"failed: {outcome.audio}: {outcome.reason}", problem=True)
        elif 0 < outcome.result.halved == totals.halved:  # the first shard with halved batches
            self.note(
                "not enough memory for the requested batch size: batches are now at most "
                f"{outcome.result.batch_seconds:.0f} s",
                problem=True,
            )
        so_far = progress_text(totals, self._seconds)
        self._progress.update(self._bar, completed=totals.seconds, so_far=so_far)
        if not self._console.is_terminal and totals.wall_s - self._said_s >= _QUIET_S:
            self._said_s = totals.wall_s
            self.note(so_far)


def progress_text(totals: Totals, seconds: float) -> str:
    """Audio done, speed and estimated time left, for `seconds` of audio in all.

    Not computed by rich, whose estimate is over the last half minute: a shard may take longer.
    """
    text = f"{duration(totals.seconds)} of {duration(seconds)}, {totals.times_real_time:,.0f} × real time"
    if not totals.seconds:
        return text
    # Over all audio: assume that filters drop the same share of the rest.
    left_s = round(max(0.0, seconds - totals.seconds) * totals.wall_s / totals.seconds)
    return f"{text}, {timedelta(seconds=left_s)} left"


def summary_text(summary: dict[str, Any]) -> str:
    """A summary as printable text."""
    utterances = summary["labelled"] + summary["num_failed"]
    lines = [
        f"{counted(summary['shards_labelled'], 'shard')} labelled,"
        f" {summary['shards_done_before']} already done;"
        f" {summary['labelled']:,} of {utterances:,} utterances have labels,"
        f" {duration(3600 * summary['hours_labelled'])} of {duration(3600 * summary['hours'])}",
        f"{summary['bytes']:,} bytes"
        + (f", {summary['bytes_per_frame']:.2f} per frame" if summary["frames"] else ""),
    ]
    if summary["shards_labelled"]:
        teacher, codec = summary["teacher_share"], summary["encode_share"]
        shares = f"teacher {teacher:.0%} of the time, codec {codec:.0%} in parallel"
        if summary["fetch_share"] >= 0.005:  # about 0 for audio on this machine
            shares += f", fetching audio {summary['fetch_share']:.0%}"
        hours_heard = duration(3600 * summary["hours_heard"])
        heard = f"{summary['times_real_time']:,.0f} × real time over {hours_heard} processed"
        if not summary["hours_heard"]:
            heard = "the teacher processed no audio"
        lines.append(f"{heard}; {shares}; {summary['padding']:.1%} padding")
    if summary["halved_batches"]:
        lines.append(
            f"{summary['halved_batches']} batches did not fit into memory and were halved: "
            "a smaller batch_seconds would avoid the failed attempts"
        )
    if summary.get("compared_with_plan"):
        lines.append(summary["compared_with_plan"])
    lines += lines_of(summary["reasons"], "not labelled")
    lines += [f"shard failed: {audio}: {reason}" for audio, reason in summary["shards_failed"].items()]
    if summary.get("log_problem"):
        lines.append(f"the log is incomplete: {summary['log_problem']}")
    if summary["shards_not_tried"]:
        not_tried = counted(len(summary["shards_not_tried"]), "shard")
        lines.append(f"{not_tried} not attempted: run it again once this is fixed")
    return printable("\n".join(lines))
