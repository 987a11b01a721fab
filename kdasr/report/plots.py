"""Plots of training logs, result rows and spike offsets, as PNG files. No other module draws."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kdasr.errors import ConfigError, MissingDependencyError
from kdasr.report.table import LABELS, Line
from kdasr.spikes import SpikeHistogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Log = list[dict[str, Any]]

_DPI = 130
_COLOURS = ("#1b6ca8", "#d1495b", "#2e933c", "#8a4f9e", "#e0912f", "#4d4d4d")
_STYLES = ("-", "--", ":")
# More panels in a row would be too small to read.
_MOST_COLUMNS = 2
# A mean loss over fewer steps depends more on their audio than on the student.
_LEAST_SMOOTHED_STEPS = 20
_REACH_FRAMES = 10


def read_log(path: Path) -> Log:
    """Rows of a training log. An incomplete last line, as during a run, is left out.

    Raises:
        ConfigError: another line is not a JSON object with a step.
    """
    rows: Log = []
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise ConfigError(
                "the line is not valid JSON", where=f"{path}:{number}", got=str(error)
            ) from error
        if not isinstance(row, dict) or "step" not in row:
            raise ConfigError(
                "the line is not from a training log",
                where=f"{path}:{number}",
                expected="an object with `step`",
            )
        rows.append(row)
    return rows


def plot_losses(path: Path, logs: Mapping[str, Log]) -> bool:
    """One panel for each training run: every loss term over the steps, smoothed over a fiftieth of them, at
    least 20. False if there is nothing to draw."""
    shown = {name: terms for name, log in logs.items() if (terms := _loss_terms(log))}
    if not shown:
        return False
    figure, panels = _figure(len(shown), width=4.6, height=3.8)
    for axes, (name, terms) in zip(panels, shown.items(), strict=True):
        last_step, lowest = max(steps[-1] for steps, _ in terms.values()), []
        for (term, (steps, values)), (colour, style) in zip(terms.items(), _looks(len(terms)), strict=True):
            smooth = _smooth(values, _window(steps))
            axes.plot(steps, values, color=colour, alpha=0.18, linewidth=0.7)
            axes.plot(steps, smooth, style, color=colour, linewidth=1.6, label=term)
            # A loss that fades out would stretch the axis over decades.
            lowest += [smooth.min()] if steps[-1] > 0.75 * last_step else []
        axes.set(title=LABELS.get(name, name), xlabel="step", ylabel="weighted loss", yscale="log")
        if min(lowest) > 0:
            axes.set_ylim(bottom=min(lowest) / 2)
        axes.yaxis.set_major_locator(_one_two_five())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.tick_params(axis="y", which="both", labelsize=8)
        # Below the axes: of seven terms, a legend inside would hide some curve.
        axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    _save(figure, path)
    return True


def plot_dev_wer(path: Path, logs: Mapping[str, Log]) -> bool:
    """Dev WER over the steps, all training runs in one panel. False if there is nothing to draw."""
    shown = {name: _column(log, "dev_wer") for name, log in logs.items()}
    shown = {name: curve for name, curve in shown.items() if len(curve[0])}
    if not shown:
        return False
    figure, (axes,) = _figure(1, width=6.4, height=3.6)
    for (name, (steps, values)), (colour, style) in zip(shown.items(), _looks(len(shown)), strict=True):
        axes.plot(steps, values, style, color=colour, marker="o", markersize=3, label=LABELS.get(name, name))
    axes.set(xlabel="step", ylabel="dev WER %")
    axes.set_ylim(bottom=0, top=min(105.0, axes.get_ylim()[1]))
    axes.legend(frameon=False, fontsize=8)
    _save(figure, path)
    return True


def plot_spikes(path: Path, histogram: SpikeHistogram) -> bool:
    """Spike offsets as bars, one for each frame. False if there is nothing to draw."""
    if not histogram.matched:
        return False
    shift, percent = histogram.frame_shift_ms, _percent_by_frame(histogram)
    figure, (axes,) = _figure(1, width=6.4, height=3.4)
    axes.bar(
        np.arange(-_REACH_FRAMES, _REACH_FRAMES + 1) * shift, percent, width=0.8 * shift, color=_COLOURS[0]
    )
    axes.axvline(0, color="#888888", linewidth=0.8)
    assert histogram.median_ms is not None
    axes.axvline(histogram.median_ms, color=_COLOURS[1], linewidth=1.2, linestyle="--")
    axes.set_title(
        f"Spikes of {histogram.whose}\nmedian {histogram.median_ms:+.0f} ms, "
        f"{histogram.matched} of {histogram.teacher_spikes} matched",
        fontsize=9,
    )
    axes.set(
        xlabel=f"student later → (ms; the outermost bars include all beyond ±{_REACH_FRAMES * shift:.0f})",
        ylabel="spikes %",
    )
    _save(figure, path)
    return True


def plot_spikes_over_steps(path: Path, logs: Mapping[str, Log]) -> bool:
    """One panel for each training run: the spike offsets at each dev set evaluation, as a column.
    False if there is nothing to draw."""
    watched = {name: _watched_spikes(log) for name, log in logs.items()}
    shown = {name: looks for name, looks in watched.items() if looks}
    if not shown:
        return False
    figure, panels = _figure(len(shown), width=5.6, height=3.6)
    from matplotlib.colors import PowerNorm

    for axes, (name, looks) in zip(panels, shown.items(), strict=True):
        steps, (_, last) = [step for step, _ in looks], looks[-1]
        percent = np.stack([_percent_by_frame(histogram) for _, histogram in looks], axis=1)
        reach_ms = (_REACH_FRAMES + 0.5) * last.frame_shift_ms
        columns = np.linspace(-reach_ms, reach_ms, 2 * _REACH_FRAMES + 2)
        seen = np.where(percent > 0, percent, np.nan)
        mesh = axes.pcolormesh([0, *steps], columns, seen, cmap="Blues", norm=PowerNorm(0.5, 0, 100))
        figure.colorbar(mesh, ax=axes, label="spikes %")
        middles = np.convolve([0, *steps], [0.5, 0.5], mode="valid")
        medians = [np.nan if spikes.median_ms is None else spikes.median_ms for _, spikes in looks]
        axes.axhline(0, color="#888888", linewidth=0.8, zorder=1.5)
        axes.plot(middles, medians, "o-", color=_COLOURS[1], markersize=4, linewidth=1.8, label="median")
        axes.grid(visible=False)
        axes.set(
            title=f"{LABELS.get(name, name)}: {last.matched} of {last.teacher_spikes} matched at the end",
            xlabel="step (each column ends where it was measured)",
            ylabel="student later → (ms)",
        )
        axes.title.set_fontsize(9)
        axes.legend(frameon=False, fontsize=8, loc="lower right")
    _save(figure, path)
    return True


def plot_error_rates(path: Path, lines: Sequence[Line]) -> bool:
    """WER of each model as a bar, each seed as a dot. False if there is nothing to draw."""
    if not lines:
        return False
    figure, (axes,) = _figure(1, width=7.2, height=0.9 + 0.45 * len(lines))
    places = np.arange(len(lines))[::-1]
    means = [line.mean("wer") or 0.0 for line in lines]
    axes.barh(places, means, color=_COLOURS[0], height=0.62)
    for place, mean, line in zip(places, means, lines, strict=True):
        seeds = line.values("wer")
        if len(seeds) > 1:
            axes.plot(seeds, [place] * len(seeds), "o", color="black", markersize=3.5)
        axes.annotate(
            f"{mean:.1f}",
            (max([mean, *seeds]), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set(yticks=places, yticklabels=[line.label for line in lines], xlabel="WER %")
    axes.margins(x=0.1)
    _save(figure, path)
    return True


def _percent_by_frame(histogram: SpikeHistogram) -> np.ndarray[Any, Any]:
    """(2 * _REACH_FRAMES + 1,) percent of the matched spikes at each offset in frames; larger offsets
    are counted at the ends."""
    percent = np.zeros(2 * _REACH_FRAMES + 1)
    for ms, count in zip(histogram.offsets_ms, histogram.counts, strict=True):
        frame = int(np.clip(round(ms / histogram.frame_shift_ms), -_REACH_FRAMES, _REACH_FRAMES))
        percent[frame + _REACH_FRAMES] += 100 * count / histogram.matched
    return percent


def _watched_spikes(log: Log) -> list[tuple[int, SpikeHistogram]]:
    return [(row["step"], SpikeHistogram(**row["spike_offsets"])) for row in log if "spike_offsets" in row]


def _loss_terms(log: Log) -> dict[str, tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    names = sorted({name for row in log for name in row if "/" in name})
    return {name: _column(log, name) for name in names}


def _column(log: Log, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rows = [(row["step"], row[name]) for row in log if row.get(name) is not None]
    steps, values = zip(*rows, strict=True) if rows else ((), ())
    return np.array(steps), np.array(values)


def _window(steps: np.ndarray[Any, Any]) -> int:
    """How many values of a loss to average; not every step need have one."""
    per_step = len(steps) / (steps[-1] - steps[0] + 1)
    return min(len(steps), max(1, len(steps) // 50, round(_LEAST_SMOOTHED_STEPS * per_step)))


def _smooth(values: np.ndarray[Any, Any], window: int) -> np.ndarray[Any, Any]:
    """Centred moving average; at the ends over the values that exist."""
    ones = np.ones(window)
    sums = np.convolve(values, ones, mode="same")
    return np.asarray(sums / np.convolve(np.ones(len(values)), ones, mode="same"))


def _looks(count: int) -> list[tuple[str, str]]:
    """A colour and a line style for each of several curves; where colours repeat, the style changes."""
    size = len(_COLOURS)
    return [(_COLOURS[index % size], _STYLES[index // size % len(_STYLES)]) for index in range(count)]


def _one_two_five() -> Any:
    """Ticks of a logarithmic axis that are readable over one decade and over five."""
    from matplotlib.ticker import LogLocator

    return LogLocator(subs=(1.0, 2.0, 5.0), numticks=16)


def _figure(panels: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of panels, two in a row, without a window, so that it also works without a screen."""
    try:
        from matplotlib import rcParams
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("matplotlib", "report") from error
    rcParams["text.parse_math"] = False  # names may have a $, which is no formula
    columns = min(panels, _MOST_COLUMNS)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, index + 1) for index in range(panels)]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="both", color="#dddddd", linewidth=0.6)
        panel.set_axisbelow(True)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
