"""The table of results: one line for each model on each test set, over all of its seeds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from kdasr.error_rates import gain_interval
from kdasr.errors import printable
from kdasr.reasons import left_out_text
from kdasr.report.misheard import errors_text, word_errors
from kdasr.results import MISSING, RESULTS_FILE, hypotheses_file, read_hypotheses, read_results
from kdasr.spikes import SPIKES_FILE, draw, read_histogram
from kdasr.training_log import LOG_FILE

COLUMNS = ("model", "WER %", "CER %", "params", "size", "RTF (1 core)", "latency")
LABELS = {
    "teacher": "teacher (full context)",
    "student_labelled_only": "student, transcripts only",
    "student_distilled": "student, distilled",
    "student_mwer": "student, distilled, then MWER",
    "student_mwer_streaming": "student, MWER, chunk by chunk",
    "student_mwer_after_noise": "student, MWER, after 2 s of noise",
    "onnx_float32": "exported ONNX float32",
    "onnx_int8": "exported ONNX int8",
}
# The steps that improve a student: name, models before and after, and how the former was trained.
_GAINS = (
    ("Distillation", "student_labelled_only", "student_distilled", "transcripts alone"),
    ("Sequence training", "student_distilled", "student_mwer", "distillation alone"),
)
_NOTHING = "–"
# Rich assumes that a pipe is 80 columns wide, which would break the table's lines.
_MIN_COLUMNS = 110


@dataclass(frozen=True, slots=True)
class Line:
    """The rows of one model on one test set.

    Attributes:
        model: its name in the results.
        rows: one for each seed, in the order they were written.
        test: the name of the test set, if it has one.
    """

    model: str
    rows: list[dict[str, Any]]
    test: str | None = None

    @property
    def label(self) -> str:
        label = LABELS.get(self.model, self.model)
        return f"{self.test}: {label}" if self.test else label

    def values(self, field: str) -> list[float]:
        """The values of `field` for all seeds that have it."""
        return [row[field] for row in self.rows if row[field] is not None]

    def mean(self, field: str) -> float | None:
        """Mean over the seeds, or None if no seed has the field."""
        values = self.values(field)
        return statistics.fmean(values) if values else None

    def cells(self) -> tuple[str, ...]:
        """The cells, in the order of COLUMNS; error rates of several seeds as `mean ± standard deviation`."""
        return (
            self.label,
            _spread(self.values("wer")),
            _spread(self.values("cer")),
            _count(self.mean("params")),
            _size(self.mean("bytes")),
            _format(self.mean("rtf"), ".4f"),
            _format(self.mean("latency_ms"), ".0f", " ms"),
        )


def lines_of(rows: Sequence[dict[str, Any]]) -> list[Line]:
    """Rows with figures, grouped by test set, in order of appearance, and model: those in LABELS in its
    order, then the others in order of appearance."""
    gathered: dict[tuple[str | None, str], list[dict[str, Any]]] = {}
    for row in rows:
        if MISSING in row:
            continue
        gathered.setdefault((row.get("test"), row["model"]), []).append(row)
    tests = list(dict.fromkeys(test for test, _ in gathered))
    models = list(dict.fromkeys([*LABELS, *(model for _, model in gathered)]))
    return [
        Line(model, gathered[test, model], test)
        for test in tests
        for model in models
        if (test, model) in gathered
    ]


def left_out(rows: Sequence[dict[str, Any]]) -> list[str]:
    """A sentence for each row without figures that says why it has none."""
    return [
        f"{Line(row['model'], [row], row.get('test')).label} (seed {row['seed']}) is left out: {row[MISSING]}"
        for row in rows
        if MISSING in row
    ]


def best_students(lines: Sequence[Line], results: Path) -> list[tuple[Line, list[dict[str, Any]]]]:
    """For each test set, the student's line with the lowest WER (of equal ones the last, which is usually an
    exported model), and the hypotheses of all of its seeds. Without students, a teacher's. Lines without a
    file of hypotheses are skipped.

    Raises:
        ConfigError: a file of hypotheses has other content.
    """
    best = []
    for test in dict.fromkeys(line.test for line in lines):
        known = [line for line in lines if line.test == test and _heard_files(line, results)]
        # Lines without RTF are of pretrained teachers.
        students = [line for line in known if line.model != "teacher" and line.values("rtf")] or known
        if not students:
            continue
        first = min(reversed(students), key=lambda line: line.mean("wer") or 0.0)
        if heard := [row for file in _heard_files(first, results) for row in read_hypotheses(file)]:
            best.append((first, heard))
    return best


def _heard_files(line: Line, results: Path) -> list[Path]:
    return [file for row in line.rows if (file := hypotheses_file(results, row)).exists()]


def measured_how(lines: Sequence[Line]) -> str | None:
    """A sentence on the decoder, unless it is the greedy one."""
    beams = [row for line in lines for row in line.rows if row.get("decoder") == "beam"]
    if not beams:
        return None
    words = beams[0].get("lexicon")
    return "Decoded by beam search" + (f", restricted to the words of {', '.join(words)}." if words else ".")


def of_a_part(lines: Sequence[Line]) -> str | None:
    """A sentence on the test sets that `kdasr prepare` left utterances out of: the error rates are those of
    the rest."""
    parts = {line.test: row for line in lines for row in line.rows if row.get("left_out")}
    said = [left_out_text(test or "Test set", row["left_out"], row["listed"]) for test, row in parts.items()]
    return f"{'; '.join(said)}." if said else None


def of_several_trainings(lines: Sequence[Line]) -> str | None:
    """A sentence that names the models whose average is over rows with different sizes or steps."""
    mixed = [
        line.label for line in lines if len({(row["params"], row["train_steps"]) for row in line.rows}) > 1
    ]
    if not mixed:
        return None
    return (
        f"Averaged over models of different sizes or numbers of training steps: {', '.join(mixed)}; give "
        "each its own --work-dir for separate tables."
    )


def improvement(lines: Sequence[Line], results: Path) -> str | None:
    """The gains of distillation and of sequence training, one line each for each test set, with an interval
    computed over the utterances in the hypotheses beside `results`; None if neither is known.

    Raises:
        ConfigError: a file of hypotheses has other content.
    """
    tests = dict.fromkeys(line.test for line in lines)
    sentences = (
        _gain(test, [line for line in lines if line.test == test], results, *step)
        for test in tests
        for step in _GAINS
    )
    return "\n".join(sentence for sentence in sentences if sentence) or None


def _gain(
    test: str | None, lines: Sequence[Line], results: Path, what: str, before: str, after: str, had: str
) -> str | None:
    rows = {line.model: {row["seed"]: row for row in line.rows} for line in lines}
    olds, news = rows.get(before, {}), rows.get(after, {})
    # Only seeds that both have tell the difference.
    seeds = sorted(olds.keys() & news.keys())
    if not seeds or (mean := statistics.fmean(olds[seed]["wer"] for seed in seeds)) == 0:
        return None
    mean_after = statistics.fmean(news[seed]["wer"] for seed in seeds)
    relative = round(100 * (mean - mean_after) / mean)
    verdict = (
        f"{abs(relative)} % {'fewer' if relative > 0 else 'more'} word errors than with"
        if relative
        else "within 1 % of"
    )
    some = olds.keys() != news.keys()
    of_seeds = f" (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})" if some else ""
    return (
        f"{what} took the student from {mean:.1f} to {mean_after:.1f} % WER"
        f"{f' on {test}' if test else ''}{of_seeds}: {verdict} {had}"
        f"{_chance(results, [(olds[seed], news[seed]) for seed in seeds], relative != 0)}."
    )


def _chance(results: Path, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], is_gain: bool) -> str:
    """The interval of the gain between each seed's two rows, and whether it may be chance; empty if their
    utterances are unknown or differ."""
    # By key and reference: an utterance used with several seeds counts as one.
    before, after, times = Counter[tuple[str, str]](), Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for pair in pairs:
        files = [hypotheses_file(results, row) for row in pair]
        if not all(file.exists() for file in files):
            return ""
        old, new = (
            {(one["key"], one["reference"]): one["errors"] for one in read_hypotheses(file)} for file in files
        )
        if old.keys() != new.keys():
            return ""
        before.update(old)
        after.update(new)
        times.update(old.keys())
    words = [len(reference.split()) * count for (_, reference), count in times.items()]
    if not any(words):
        return ""
    interval = gain_interval([before[said] for said in times], [after[said] for said in times], words)
    low, high = (round(bound, 2) + 0.0 for bound in interval)  # no -0.00
    verdict = ", which may be chance" if is_gain and low <= 0 <= high else ""
    return f"{verdict} (95 % interval of the gain over the utterances: {low:+.2f} to {high:+.2f} points)"


def print_results(work_dir: Path, console: Console | None = None) -> None:
    """Print the results of a work folder, and its spike offsets if it has any. Prints nothing if there are
    neither results nor training logs: `write_report` refuses such a folder.

    Raises:
        ConfigError: results.json, a file of hypotheses or the histogram has other content.
    """
    console = console or Console()
    if console.width < _MIN_COLUMNS and not console.is_terminal:
        console.width = _MIN_COLUMNS
    path = Path(work_dir) / RESULTS_FILE
    rows = read_results(path)
    if not rows:
        if next(Path(work_dir).rglob(LOG_FILE), None):
            console.print(f"no results in {path} yet", markup=False, soft_wrap=True)
        return
    if lines := lines_of(rows):
        _print_table(path, lines, console)
    for sentence in left_out(rows):
        console.print(printable(sentence), markup=False, highlight=False)
    _print_spikes(Path(work_dir) / SPIKES_FILE, console)


def _print_table(path: Path, lines: Sequence[Line], console: Console) -> None:
    seeds = sorted({row["seed"] for line in lines for row in line.rows})
    table = Table(title=escape(f"{path} (seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))})"))
    for index, column in enumerate(COLUMNS):
        # In a narrow terminal, wrap the names rather than cutting figures.
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for line in lines:
        table.add_row(*map(escape, line.cells()))
    console.print(table)
    for sentence in (
        measured_how(lines),
        of_a_part(lines),
        of_several_trainings(lines),
        improvement(lines, path),
    ):
        if sentence:
            console.print(printable(sentence), markup=False, highlight=False)
    for line, heard in best_students(lines, path):
        text = f"Word errors of {line.label}: {errors_text(word_errors(heard))}"
        console.print(printable(text), markup=False, highlight=False)


def _print_spikes(path: Path, console: Console) -> None:
    if not path.exists():
        return
    histogram = read_histogram(path)
    median = "" if histogram.median_ms is None else f"; median {histogram.median_ms:+.0f} ms"
    console.print(
        f"\nSpikes of {printable(str(histogram.whose))} (later is +): {histogram.matched} of "
        f"{histogram.teacher_spikes} matched{median}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for line in draw(histogram):
        console.print(line, markup=False, highlight=False)


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return _format(values[0] if values else None, ".1f")
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def _format(value: float | None, form: str, unit: str = "") -> str:
    return _NOTHING if value is None else f"{value:{form}}{unit}"


def _count(value: float | None) -> str:
    return _NOTHING if value is None else f"{value / 1e6:.2f} M" if value >= 1e5 else f"{value:,.0f}"


def _size(value: float | None) -> str:
    return _NOTHING if value is None else f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"
