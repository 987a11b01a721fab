"""The HTML page about a work folder: the table, the plots, and what was misheard."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path

from kdasr import version
from kdasr.errors import ConfigError
from kdasr.report.misheard import errors_text, speaker_rates, word_errors
from kdasr.report.plots import (
    Log,
    plot_dev_wer,
    plot_error_rates,
    plot_losses,
    plot_spikes,
    plot_spikes_over_steps,
    read_log,
)
from kdasr.report.table import (
    COLUMNS,
    LABELS,
    Line,
    best_students,
    improvement,
    left_out,
    lines_of,
    measured_how,
    of_a_part,
    of_several_trainings,
)
from kdasr.results import RESULTS_FILE, hypotheses_file, read_hypotheses, read_results
from kdasr.spikes import SPIKES_FILE, read_histogram
from kdasr.storage import commit_bytes, remove_leftovers

PAGE_FILE, PLOTS_FOLDER = "report.html", "plots"
_WORST_UTTERANCES = 8
_MOST_WORDS, _MOST_SPEAKERS = 12, 20

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
table.text td, table.text th { text-align: left; vertical-align: top }
table.words td, table.words th { text-align: left }
table.words td:last-child, table.words th:last-child { text-align: right }
div.beside { display: flex; flex-wrap: wrap; gap: 0 3rem; align-items: flex-start }
p.caption { color: #555; margin: 0 }
img { max-width: 100%; margin: .5rem 0 }
"""


def write_report(work_dir: Path) -> Path:
    """Write report.html and its plots from the present content of a work folder.

    Returns:
        The path of the page.

    Raises:
        ConfigError: there are neither results nor training logs, or a file has other content.
        MissingDependencyError: matplotlib is not installed.
    """
    work_dir = Path(work_dir)
    rows = read_results(work_dir / RESULTS_FILE)
    lines = lines_of(rows)
    logs = {name: read_log(path) for name, path in _training_logs(work_dir).items()}
    if not rows and not logs:
        raise ConfigError(
            "there is nothing to report",
            where=work_dir,
            expected=f"{RESULTS_FILE} or a training log train.jsonl",
            fix="Run `kdasr run` first, or give the work folder of a run.",
        )
    plots = work_dir / PLOTS_FOLDER
    sections = [
        _introduction(lines, work_dir / RESULTS_FILE),
        _results(lines, work_dir / RESULTS_FILE),
        *(f"<p>{html.escape(sentence)}</p>" for sentence in left_out(rows)),
    ]
    if plot_error_rates(plots / "wer.png", lines):
        sections.append(_picture("Word error rates", "wer.png"))
    if plot_losses(plots / "losses.png", logs):
        sections.append(_picture("Losses", "losses.png", _of_losses(logs)))
    if plot_dev_wer(plots / "dev_wer.png", logs):
        sections.append(_picture("Dev WER during training", "dev_wer.png", _of_dev_wer(logs)))
    when = "Spike times of the student, relative to the teacher's"
    if plot_spikes_over_steps(plots / "spikes_over_steps.png", logs):
        sections.append(_picture(f"{when}, during training", "spikes_over_steps.png"))
    spikes = work_dir / SPIKES_FILE
    if spikes.exists() and plot_spikes(plots / "spikes.png", read_histogram(spikes)):
        sections.append(_picture(when, "spikes.png"))
    sections += _word_errors(work_dir / RESULTS_FILE, lines)
    sections += _misheard(work_dir / RESULTS_FILE, lines)
    title = html.escape(f"kdasr: {work_dir.name}")
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )
    commit_bytes(work_dir / PAGE_FILE, page.encode())
    remove_leftovers(work_dir, PAGE_FILE)
    return work_dir / PAGE_FILE


def _training_logs(work_dir: Path) -> dict[str, Path]:
    """Logs by the name of their folder, or by its path if several have that name; models in LABELS come
    first, in its order."""
    paths = sorted(work_dir.glob("**/train.jsonl"))
    names = Counter(path.parent.name for path in paths)
    logs = {
        str(path.parent.relative_to(work_dir)) if names[path.parent.name] > 1 else path.parent.name: path
        for path in paths
    }
    known = {name: logs[name] for name in LABELS if name in logs}
    return known | logs


def _introduction(lines: Sequence[Line], results: Path) -> str:
    """What was measured, the meaning of terms, and the kdasr version and date."""
    heard = dict[str, str]()
    for line in lines:
        for row in line.rows:
            name = ", ".join(filter(None, (line.test, f"seed {row['seed']}")))
            if name not in heard and (path := hypotheses_file(results, row)).exists():
                said = [one["reference"].split() for one in read_hypotheses(path)]
                heard[name] = f"{len(said):,} test utterances, {sum(map(len, said)):,} words"
    audio = list(heard.values()) if len(heard) == 1 else [f"{name}: {what}" for name, what in heard.items()]
    greedy = lines and measured_how(lines) is None
    sentences = (
        "; ".join(audio) + (", greedy decoding without a language model" if greedy else "") if audio else "",
        "WER, CER: word and character error rate",
        "RTF: processing time / audio time, on one core",
        "Latency: audio that must arrive before output, without processing time",
        "A spike is the frame in which a unit is recognised",
        f"Written by kdasr {version()} on {date.today().isoformat()}",
    )
    return f"<p>{html.escape(' '.join(f'{one}.' for one in sentences if one))}</p>"


def _results(lines: Sequence[Line], results: Path) -> str:
    if not lines:
        return "<p>No model has been evaluated yet.</p>"
    seeds = sorted({row["seed"] for line in lines for row in line.rows})
    notes = (measured_how(lines), of_a_part(lines), of_several_trainings(lines))
    said = (*notes, improvement(lines, results))
    note = f"<p>Seeds: {', '.join(map(str, seeds))}. {html.escape(' '.join(filter(None, said)))}</p>"
    return _table(COLUMNS, [line.cells() for line in lines]) + note


def _picture(title: str, name: str, caption: str = "") -> str:
    heading = html.escape(title)
    below = _caption(caption) if caption else ""
    return f'<h2>{heading}</h2><img src="{PLOTS_FOLDER}/{name}" alt="{heading}">{below}'


def _caption(text: str) -> str:
    return f'<p class="caption">{html.escape(text)}</p>'


def _of_losses(logs: Mapping[str, Log]) -> str:
    fades = any(name.endswith("/silent_start") for log in logs.values() for row in log for name in row)
    return "Thin: each step; bold: smoothed." + (" silent_start fades out by design." if fades else "")


def _of_dev_wer(logs: Mapping[str, Log]) -> str:
    goes_on = {"student_mwer", "student_distilled"} <= logs.keys()
    return "MWER training (student_mwer) starts from the finished student_distilled." if goes_on else ""


def _word_errors(results: Path, lines: Sequence[Line]) -> Iterator[str]:
    """The word errors of the best student on each test set, and its WER by speaker."""
    for line, heard in best_students(lines, results):
        errors, name = word_errors(heard), html.escape(line.label)
        most = max(len(errors.substituted), len(errors.deleted), len(errors.inserted))
        shown = f" Shown are the {_MOST_WORDS} most frequent of each kind." if most > _MOST_WORDS else ""
        yield f"<h2>Word errors of {name}</h2>{_caption(errors_text(errors, most=0) + shown)}"
        yield '<div class="beside">'
        yield _most_frequent(("reference", "recognised"), errors.substituted)
        yield _most_frequent(("deleted",), [((word,), count) for word, count in errors.deleted])
        yield _most_frequent(("inserted",), [((word,), count) for word, count in errors.inserted])
        yield "</div>"
        if rates := speaker_rates(heard):
            yield f"<h2>WER by speaker: {name}</h2>"
            if len(rates) > _MOST_SPEAKERS:
                yield _caption(f"The {_MOST_SPEAKERS} of {len(rates)} speakers with the highest WER.")
            cells = [(one.speaker, f"{one.words:,}", f"{one.wer:.1f}") for one in rates[:_MOST_SPEAKERS]]
            yield _table(("speaker", "words", "WER %"), cells)


def _most_frequent(columns: Sequence[str], counts: Sequence[tuple[Sequence[str], int]]) -> str:
    if not counts:
        return ""
    cells = [(*words, str(count)) for words, count in counts[:_MOST_WORDS]]
    return _table((*columns, "count"), cells, "words")


def _misheard(results: Path, lines: Iterable[Line]) -> Iterator[str]:
    """For each model in the table, the utterances with the most word errors; only one line for a model with
    the same transcripts as an earlier one."""
    names = dict[tuple[str, ...], str]()
    for line, row in ((one, row) for one in lines for row in one.rows):
        if not (path := hypotheses_file(results, row)).exists():
            continue
        heard = read_hypotheses(path)
        wrong = sorted((one for one in heard if one["errors"]), key=lambda one: (-one["errors"], one["key"]))
        label = LABELS.get(line.model, line.model)
        name = html.escape(f"{label}, seed {row['seed']}" + (f", on {line.test}" if line.test else ""))
        texts = tuple(sorted(f"{one['key']}\t{one['reference']}\t{one['hypothesis']}" for one in heard))
        if texts in names:
            yield f"<p>{name}: the same texts as {names[texts]}.</p>"
            continue
        names[texts] = name
        most = (
            f"; the {_WORST_UTTERANCES} with the most word errors" if len(wrong) > _WORST_UTTERANCES else ""
        )
        yield f"<h2>Misrecognised by {name}: {len(wrong)} of {len(heard)} utterances{most}</h2>"
        if wrong:
            shown = wrong[:_WORST_UTTERANCES]
            cells = [(one["key"], one["reference"], one["hypothesis"], str(one["errors"])) for one in shown]
            yield _table(("utterance", "reference", "recognised", "word errors"), cells, "text")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], css_class: str = "numbers") -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f'<table class="{css_class}">{row(columns, "th")}\n{body}</table>'
