"""A work folder in, one HTML page out: the table, the plots, and what was misheard."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdasr.errors import ConfigError
from kdasr.report.plots import (
    plot_dev_wer,
    plot_error_rates,
    plot_losses,
    plot_spikes,
    plot_spikes_over_steps,
    read_log,
)
from kdasr.report.table import (
    COLUMNS,
    Line,
    improvement,
    left_out,
    lines_of,
    measured_how,
    of_several_trainings,
)
from kdasr.results import RESULTS_FILE, hypotheses_file, read_hypotheses, read_results
from kdasr.spikes import SPIKES_FILE, read_histogram
from kdasr.storage import commit_bytes

PAGE_FILE, PLOTS_FOLDER = "report.html", "plots"
_WORST_UTTERANCES = 8

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; text-align: right }
th:first-child, td:first-child { text-align: left } tr { border-bottom: 1px solid #ddd }
table.text td, table.text th { text-align: left; vertical-align: top }
img { max-width: 100%; margin: .5rem 0 }
"""


def write_report(work_dir: Path) -> Path:
    """Write report.html and its plots from what a work folder holds by now.

    Returns:
        The path of the page.

    Raises:
        ConfigError: there are neither results nor training logs, or a file is something else.
        MissingDependencyError: matplotlib is not installed.
    """
    work_dir = Path(work_dir)
    rows = read_results(work_dir / RESULTS_FILE)
    lines = lines_of(rows)
    logs = {name: read_log(path) for name, path in _training_logs(work_dir).items()}
    if not rows and not logs:
        raise ConfigError(
            "nothing to report on",
            where=work_dir,
            expected=f"{RESULTS_FILE} or a training log train.jsonl",
            fix="Run `kdasr run` first, or name the folder it worked in.",
        )
    plots = work_dir / PLOTS_FOLDER
    drawn = {
        "Word error rates": plot_error_rates(plots / "wer.png", lines) and "wer.png",
        "Losses": plot_losses(plots / "losses.png", logs) and "losses.png",
        "Learning": plot_dev_wer(plots / "dev_wer.png", logs) and "dev_wer.png",
    }
    if plot_spikes_over_steps(plots / "spikes_over_steps.png", logs):
        drawn["Spikes while learning"] = "spikes_over_steps.png"
    if (spikes := work_dir / SPIKES_FILE).exists():
        drawn["Spikes"] = plot_spikes(plots / "spikes.png", read_histogram(spikes)) and "spikes.png"
    sections = [
        _results(lines, work_dir / RESULTS_FILE),
        *(f"<p>{html.escape(sentence)}</p>" for sentence in left_out(rows)),
    ]
    sections += [*(_picture(title, name) for title, name in drawn.items() if name)]
    sections += _misheard(work_dir / RESULTS_FILE, rows)
    title = html.escape(f"kdasr: {work_dir.name}")
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        + "\n".join(sections)
        + "\n</body></html>\n"
    )
    commit_bytes(work_dir / PAGE_FILE, page.encode())
    return work_dir / PAGE_FILE


def _training_logs(work_dir: Path) -> dict[str, Path]:
    """Logs by their folder, with those above it where two have the same name."""
    paths = sorted(work_dir.glob("**/train.jsonl"))
    names = Counter(path.parent.name for path in paths)
    return {
        str(path.parent.relative_to(work_dir)) if names[path.parent.name] > 1 else path.parent.name: path
        for path in paths
    }


def _results(lines: Sequence[Line], results: Path) -> str:
    if not lines:
        return "<p>No model has been evaluated yet.</p>"
    seeds = sorted({row["seed"] for line in lines for row in line.rows})
    said = (measured_how(lines), of_several_trainings(lines), improvement(lines, results))
    note = f"<p>Seeds: {', '.join(map(str, seeds))}. {html.escape(' '.join(filter(None, said)))}</p>"
    return _table(COLUMNS, [line.cells() for line in lines]) + note


def _picture(title: str, name: str) -> str:
    heading = html.escape(title)
    return f'<h2>{heading}</h2><img src="{PLOTS_FOLDER}/{name}" alt="{heading}">'


def _misheard(results: Path, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """For each model in the table, the utterances with the most word errors."""
    for row in rows:
        if not (path := hypotheses_file(results, row)).exists():
            continue
        heard = read_hypotheses(path)
        wrong = sorted((one for one in heard if one["errors"]), key=lambda one: (-one["errors"], one["key"]))
        name = f"{row['model']}, seed {row['seed']}" + (f", on {row['test']}" if row.get("test") else "")
        yield f"<h2>Misheard by {html.escape(name)}: {len(wrong)} of {len(heard)} utterances</h2>"
        if wrong:
            shown = wrong[:_WORST_UTTERANCES]
            cells = [(one["key"], one["reference"], one["hypothesis"], str(one["errors"])) for one in shown]
            yield _table(("utterance", "said", "heard", "word errors"), cells, "text")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], css_class: str = "numbers") -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(row(cells, "td") for cells in rows)
    return f'<table class="{css_class}">{row(columns, "th")}\n{body}</table>'
