"""The table by hand, the plots as pixels, the page as HTML, and what is refused."""

from __future__ import annotations

import io
import json
import struct
import sys
from datetime import date
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from kdasr import version
from kdasr.decoding import Token
from kdasr.errors import ConfigError, MissingDependencyError
from kdasr.report import page, print_results, write_report
from kdasr.report.misheard import speaker_rates
from kdasr.report.plots import _window, plot_dev_wer, plot_losses, read_log
from kdasr.report.table import improvement, lines_of, of_a_part, of_several_trainings
from kdasr.results import append_result, hypotheses_file
from kdasr.spikes import spike_histogram, write_histogram

WER = {
    "teacher": 3.0,
    "student_labelled_only": 30.0,
    "student_distilled": 21.0,
    "onnx_int8": 21.25,
    "mine": 50.0,
}


def result(model: str, seed: int, wer: float, **more: Any) -> dict[str, Any]:
    row = {"model": model, "seed": seed, "wer": wer, "cer": wer / 2, "train_steps": 600, "params": 905_000}
    return {**row, "bytes": 3_650_000, "rtf": 0.01234, "latency_ms": 345.0, **more}


def work_folder(folder: Path, seeds: tuple[int, ...] = (1,)) -> Path:
    """A finished run: results, two training logs, spikes, hypotheses."""
    for model in ("mine", "onnx_int8", "student_distilled", "student_labelled_only", "teacher"):
        for seed in seeds:
            whole = {"latency_ms": None} if model == "teacher" else {}
            append_result(folder / "results.json", result(model, seed, WER[model] + seed, **whole))
    for name, streams in [
        ("teacher", ["labelled/ctc"]),
        ("student", ["labelled/ctc", "unlabelled/soft_labels"]),
    ]:
        log = folder / "checkpoints" / name / "train.jsonl"
        log.parent.mkdir(parents=True)
        rows: list[dict[str, Any]] = []
        for step in range(1, 301):
            rows.append({"step": step, streams[step % len(streams)]: 3 * 0.99**step + 0.1 * (step % 7)})
            if step % 100 == 0:
                offsets = {"frame_shift_ms": 40.0, "offsets_ms": [0.0, 40.0], "counts": [5, step // 100]}
                spikes = {**offsets, "teacher_spikes": 9, "student_spikes": 9} if name == "student" else None
                watched = {"spike_offsets": spikes} if spikes else {}
                rows.append({"step": step, "dev_loss": 1.0, "dev_wer": 100 - step / 4, **watched})
        log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    teacher = [Token(unit, 10 * unit, -0.1) for unit in range(1, 9)]
    late = [token._replace(frame=token.frame + token.id % 4) for token in teacher]
    write_histogram(folder / "spike_offsets.json", spike_histogram([(teacher, late)], 40.0))
    heard = [("u-1", "one two", "one two", 0), ("u-2", "three <b>", "tree", 2)]
    (folder / "hypotheses").mkdir()
    (folder / "hypotheses" / "student_distilled-1.jsonl").write_text(
        "".join(
            json.dumps({"key": key, "reference": said, "hypothesis": got, "errors": errors}) + "\n"
            for key, said, got, errors in heard
        )
    )
    return folder


def printed(folder: Path) -> str:
    stream = io.StringIO()
    print_results(folder, Console(file=stream))
    return stream.getvalue()


def cells(text: str) -> list[list[str]]:
    """The rows of the printed table."""
    return [
        [cell.strip() for cell in line.strip("│").split("│")]
        for line in text.splitlines()
        if line[0:1] == "│"
    ]


def test_the_table_has_a_line_for_each_model_in_order(tmp_path: Path) -> None:
    text = printed(work_folder(tmp_path))
    assert cells(text) == [
        ["teacher (full context)", "4.0", "2.0", "0.91 M", "3.6 MB", "0.0123", "–"],
        ["student, transcripts only", "31.0", "15.5", "0.91 M", "3.6 MB", "0.0123", "345 ms"],
        ["student, distilled", "22.0", "11.0", "0.91 M", "3.6 MB", "0.0123", "345 ms"],
        ["exported ONNX int8", "22.2", "11.1", "0.91 M", "3.6 MB", "0.0123", "345 ms"],
        ["mine", "51.0", "25.5", "0.91 M", "3.6 MB", "0.0123", "345 ms"],
    ]
    assert "from 31.0 to 22.0 % WER: 29 % fewer word errors than with transcripts alone" in text
    assert "8 of 8 matched; median +60 ms" in text
    assert "+80 ms" in text and "25.0 % ███" in text


def test_several_seeds_give_mean_and_spread(tmp_path: Path) -> None:
    text = printed(work_folder(tmp_path, seeds=(1, 2, 3)))
    assert cells(text)[0][:2] == ["teacher (full context)", "5.0 ± 1.0"]
    assert "(seeds 1, 2, 3)" in " ".join(text.split())  # the line is wrapped where its folder ends


@pytest.mark.parametrize(
    ("distilled", "verdict"),
    [(25.0, "25 % more word errors than with"), (20.0, "within 1 % of"), (20.08, "within 1 % of")],
)
def test_worse_is_called_worse_and_alike_alike(distilled: float, verdict: str) -> None:
    lines = lines_of([result("student_labelled_only", 1, 20.0), result("student_distilled", 1, distilled)])
    sentence = improvement(lines, Path("results.json"))
    assert sentence is not None and sentence.endswith(f"% WER: {verdict} transcripts alone.")
    assert improvement(lines[:1], Path("results.json")) is None


def test_sequence_training_is_told_beside_distillation() -> None:
    wers = {"student_labelled_only": 20.0, "student_distilled": 10.0, "student_mwer": 8.0}
    lines = lines_of([result(model, 1, wer) for model, wer in wers.items()])
    assert improvement(lines, Path("results.json")) == (
        "Distillation took the student from 20.0 to 10.0 % WER: 50 % fewer word errors than with transcripts "
        "alone.\n"
        "Sequence training took the student from 10.0 to 8.0 % WER: 20 % fewer word errors than with "
        "distillation alone."
    )
    said = improvement(lines[1:], Path("results.json"))
    assert said is not None and said.startswith("Sequence training took")


def test_distillation_is_judged_by_the_seeds_that_both_students_have() -> None:
    alone = [result("student_labelled_only", seed, wer) for seed, wer in ((1, 8.0), (2, 12.0))]
    sentence = improvement(lines_of([*alone, result("student_distilled", 2, 9.0)]), Path("results.json"))
    assert sentence is not None and "from 12.0 to 9.0 % WER (seed 2): 25 % fewer word errors" in sentence
    assert improvement(lines_of([*alone, result("student_distilled", 3, 9.0)]), Path("results.json")) is None


@pytest.mark.parametrize(
    ("errors", "chance"),
    [
        # Where every utterance has an error fewer, so has every draw of them.
        (
            [(2, 1)] * 30,
            "transcripts alone (95 % interval of the gain over the utterances: +50.00 to +50.00 points).",
        ),
        (
            [(4, 3), (3, 4)] * 30,
            "transcripts alone, which may be chance (95 % interval of the gain over the utter",
        ),
        (
            [(1, 0), *[(0, 0)] * 29],
            "alone, which may be chance (95 % interval of the gain over the utterances: +0",
        ),
    ],
)
def test_how_far_a_gain_is_chance_is_told_from_the_utterances(
    errors: list[tuple[int, int]], chance: str, tmp_path: Path
) -> None:
    path = tmp_path / "results.json"
    rows, file = heard_by_two(path, errors, seeds=(1, 2))
    sentence = improvement(lines_of(rows), path)
    assert sentence is not None and chance in sentence
    assert "25 % fewer word errors than with transcripts alone" in sentence
    # An utterance that several seeds have heard is one, and tells no more.
    (tmp_path / "one").mkdir()
    alone, _ = heard_by_two(tmp_path / "one/results.json", errors, seeds=(1,))
    assert sentence == improvement(lines_of(alone), tmp_path / "one/results.json")
    alike = [{**row, "wer": 20.0} for row in rows]
    assert ": within 1 % of transcripts alone (95 %" in (improvement(lines_of(alike), path) or "")
    file.write_text(file.read_text().replace('"u1"', '"other"'))
    assert (improvement(lines_of(rows), path) or "").endswith("transcripts alone.")
    file.write_text("{}\n")
    with pytest.raises(ConfigError, match="not a file of hypotheses"):
        improvement(lines_of(rows), path)


def heard_by_two(
    results: Path, errors: list[tuple[int, int]], seeds: tuple[int, ...]
) -> tuple[list[dict[str, Any]], Path]:
    """Rows of two students, and the last of the files of what they heard, two words an utterance."""
    rows = []
    for seed in seeds:
        for place, model in enumerate(("student_labelled_only", "student_distilled")):
            rows.append(result(model, seed, (20.0, 15.0)[place]))
            file = hypotheses_file(results, rows[-1])
            file.parent.mkdir(exist_ok=True)
            heard = [
                {"key": f"u{n}", "reference": "a b", "hypothesis": "", "errors": pair[place]}
                for n, pair in enumerate(errors)
            ]
            file.write_text("".join(json.dumps(one) + "\n" for one in heard))
    return rows, file


def test_rows_of_different_trainings_are_told(tmp_path: Path) -> None:
    alike = [result("teacher", 1, 3.0), result("teacher", 2, 4.0)]
    assert of_several_trainings(lines_of(alike)) is None
    mixed = [
        *alike,
        result("student_distilled", 1, 2.0),
        result("student_distilled", 2, 40.0, train_steps=50),
    ]
    said = of_several_trainings(lines_of(mixed))
    assert said is not None and "student, distilled" in said and "teacher" not in said
    for row in mixed:
        append_result(tmp_path / "results.json", row)
    out = io.StringIO()
    print_results(tmp_path, Console(file=out, width=200))
    assert "Averaged over models of different sizes or numbers of training steps" in out.getvalue()


def test_what_prepare_left_out_of_the_test_sets_is_said_once_for_each(tmp_path: Path) -> None:
    whole, part = (result("teacher", 1, 3.0, **more) for more in ({}, {"left_out": 105, "listed": 1_232}))
    student, digits = (
        result("student", 1, 9.0, left_out=2, listed=4, test=name) for name in (None, "digits")
    )
    assert of_a_part(lines_of([whole])) is None
    told = "listed utterances were left out by prepare (dropped.json says why)"
    assert of_a_part(lines_of([whole, part])) == f"Test set: 105 of 1,232 {told}."
    assert of_a_part(lines_of([student, digits])) == f"Test set: 2 of 4 {told}; digits: 2 of 4 {told}."
    append_result(tmp_path / "results.json", part)
    out = io.StringIO()
    print_results(tmp_path, Console(file=out, width=200))
    assert f"Test set: 105 of 1,232 {told}.\n" in out.getvalue()
    assert f"Test set: 105 of 1,232 {told}." in write_report(tmp_path).read_text()


def test_a_narrow_terminal_cuts_no_figure(tmp_path: Path) -> None:
    stream = io.StringIO()
    folder = work_folder(tmp_path, seeds=(1, 2))
    print_results(folder, Console(file=stream, force_terminal=True, color_system=None, width=80))
    text = stream.getvalue()
    assert "…" not in text
    for figure in ("WER %", "RTF (1 core)", "latency", "4.5 ± 0.7", "0.91 M", "3.6 MB", "0.0123", "345 ms"):
        assert figure in text
    assert max(len(line) for line in text.splitlines() if line[:1] in "┏┃│└") <= 80


def test_a_dollar_in_a_name_begins_no_formula(tmp_path: Path) -> None:
    assert plot_dev_wer(tmp_path / "dev.png", {"a$\\frac$": [{"step": 1, "dev_wer": 5.0}]})


@pytest.mark.slow
def test_many_trainings_are_drawn_two_in_a_row(tmp_path: Path) -> None:
    log = [{"step": step, "labelled/ctc": 1.0 / step, "dev_wer": 50.0} for step in range(1, 9)]
    assert plot_losses(tmp_path / "losses.png", {f"run {i}": log for i in range(7)})
    assert plot_dev_wer(tmp_path / "dev.png", {f"run {i}": log for i in range(7)})
    width, height = png_size(tmp_path / "losses.png")
    assert width == round(2 * 4.6 * 130) and height == round(4 * 3.8 * 130)


def png_size(path: Path) -> tuple[int, int]:
    """Of the header of a PNG: width and height in pixels."""
    return struct.unpack(">II", path.read_bytes()[16:24])  # type: ignore[return-value]


def test_test_sets_are_told_apart() -> None:
    wers = {"clean": (20.0, 15.0, 12.0), "other": (40.0, 32.0, 24.0)}
    rows = [
        result(model, 1, wers[test][place], test=test)
        for place, model in enumerate(("student_labelled_only", "student_distilled", "student_mwer"))
        for test in wers
    ]
    lines = lines_of(rows)
    assert [line.cells()[:2] for line in lines] == [
        ("clean: student, transcripts only", "20.0"),
        ("clean: student, distilled", "15.0"),
        ("clean: student, distilled, then MWER", "12.0"),
        ("other: student, transcripts only", "40.0"),
        ("other: student, distilled", "32.0"),
        ("other: student, distilled, then MWER", "24.0"),
    ]
    sentences = improvement(lines, Path("results.json"))
    assert sentences is not None
    assert "from 20.0 to 15.0 % WER on clean: 25 % fewer word errors than with transcripts alone" in sentences
    assert "from 40.0 to 32.0 % WER on other: 20 % fewer word errors than with transcripts alone" in sentences
    assert (
        "from 15.0 to 12.0 % WER on clean: 20 % fewer word errors than with distillation alone" in sentences
    )
    assert (
        "from 32.0 to 24.0 % WER on other: 25 % fewer word errors than with distillation alone" in sentences
    )


def test_what_was_left_out_is_said_with_its_reason(tmp_path: Path) -> None:
    folder = work_folder(tmp_path, seeds=(1, 2))
    append_result(folder / "results.json", {"model": "onnx_int8", "seed": 2, "missing": "too bad <1 %"})
    text = printed(folder)
    assert "exported ONNX int8 (seed 2) is left out: too bad <1 %" in text
    # The other seed alone.
    assert ["exported ONNX int8", "22.2", "11.1", "0.91 M", "3.6 MB", "0.0123", "345 ms"] in cells(text)
    append_result(folder / "results.json", {"model": "onnx_int8", "seed": 1, "missing": "too bad <1 %"})
    assert not [line for line in cells(printed(folder)) if line[0] == "exported ONNX int8"]
    page = write_report(folder).read_text()
    assert "<p>exported ONNX int8 (seed 1) is left out: too bad &lt;1 %</p>" in page


def test_an_empty_folder_is_said_to_be_empty_once(tmp_path: Path) -> None:
    assert printed(tmp_path) == ""
    with pytest.raises(ConfigError, match="there is nothing to report"):
        write_report(tmp_path)


def read_png(path: Path) -> NDArray[np.float32]:
    from matplotlib.image import imread

    pixels: NDArray[np.float32] = imread(path)[..., :3]
    return pixels


def coverage(pixels: NDArray[np.float32], colour: str) -> float:
    """Share of the pixels that have a colour."""
    wanted = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return float((np.abs(pixels - wanted).max(axis=-1) < 0.02).mean())


class Page(HTMLParser):
    """Collects the images and the text of a page, and checks that its tags close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(str(dict(attrs)["src"]))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_shows_table_plots_and_what_was_misheard(tmp_path: Path) -> None:
    path = write_report(work_folder(tmp_path / "mini", seeds=(1, 2)))
    page = Page(path.read_text(encoding="utf-8"))
    assert path == tmp_path / "mini" / "report.html" and page.open == []
    names = ["wer", "losses", "dev_wer", "spikes_over_steps", "spikes"]
    assert page.images == [f"plots/{name}.png" for name in names]
    assert {"student, distilled", "22.5 ± 0.7", "u-2", "three <b>", "tree"} <= set(page.words)
    assert "u-1" not in page.words  # it was heard right
    pictures = {name: read_png(path.parent / name) for name in page.images}
    # Bars and curves are there, in their colours, and leave most of the picture white.
    assert coverage(pictures["plots/wer.png"], "#1b6ca8") > 0.1
    assert coverage(pictures["plots/spikes.png"], "#1b6ca8") > 0.05
    assert all(
        coverage(pixels, "#d1495b") > 0.0005 for name, pixels in pictures.items() if name[6:] != "wer.png"
    )
    assert all(coverage(pixels, "#ffffff") > 0.3 for pixels in pictures.values())


def hypotheses(folder: Path, model: str, heard: list[tuple[str, str, int]], seed: int = 1) -> None:
    """What a model heard of utterances u-01, u-02, … as (said, heard, word errors)."""
    file = hypotheses_file(folder / "results.json", {"model": model, "seed": seed})
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"key": f"u-{number:02}", "reference": said, "hypothesis": got, "errors": errors}
        for number, (said, got, errors) in enumerate(heard, start=1)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_was_measured_is_said_before_the_table(tmp_path: Path) -> None:
    append_result(tmp_path / "results.json", result("teacher", 1, 10.0))
    hypotheses(tmp_path, "teacher", [("one two", "one two", 0), ("three", "tree", 1)])
    words = Page(write_report(tmp_path).read_text()).words
    (introduction,) = [one for one in words if "RTF: processing time / audio time" in one]
    assert introduction.startswith(
        "2 test utterances, 3 words, greedy decoding without a language model. WER, CER: word and character"
    )
    assert f"Written by kdasr {version()} on {date.today().isoformat()}." in introduction
    # Two seeds have test sets of their own; a search is no greedy decoding.
    append_result(tmp_path / "results.json", result("teacher", 2, 10.0, decoder="beam", lexicon=["a"]))
    hypotheses(tmp_path, "teacher", [("one two", "one two", 0)], seed=2)
    text = write_report(tmp_path).read_text()
    assert "<p>seed 1: 2 test utterances, 3 words; seed 2: 1 test utterances, 2 words. WER" in text
    assert "greedy" not in text and "Decoded by beam search, restricted to the words of a." in text


def test_what_was_heard_alike_is_shown_once(tmp_path: Path) -> None:
    for model in ("onnx_float32", "student_mwer", "mine"):
        append_result(tmp_path / "results.json", result(model, 1, 10.0))
    heard = [("one two", f"one {'x' * number}", 1) for number in range(1, 11)]
    hypotheses(tmp_path, "student_mwer", heard)
    hypotheses(tmp_path, "onnx_float32", heard)
    hypotheses(tmp_path, "mine", [("one two", "one", 1)] * 10)
    text = write_report(tmp_path).read_text()
    named = "student, distilled, then MWER, seed 1"
    assert f"Misrecognised by {named}: 10 of 10 utterances; the 8 with the most word errors</h2>" in text
    assert f"<p>exported ONNX float32, seed 1: the same texts as {named}.</p>" in text
    assert (
        "Misrecognised by mine, seed 1: 10 of 10 utterances" in text
        and "Misrecognised by exported" not in text
    )
    # Eight of each of the two.
    assert text.count("<td>one two</td>") == 16


def test_the_word_errors_of_the_best_student_are_shown_by_word(tmp_path: Path) -> None:
    """The teacher hears better, the pretrained one too, and of equal students the last is the exported."""
    wers = {"teacher": 1.0, "whisper": 0.5, "student_mwer": 20.0, "onnx_float32": 20.0, "mine": 30.0}
    for model, wer in wers.items():
        rtf = {"rtf": None} if model == "whisper" else {}
        append_result(tmp_path / "results.json", result(model, 1, wer, **rtf))
        hypotheses(tmp_path, model, [("one two", "one two", 0)])
    heard = [("five <b>", "nine", 2), ("five", "nine", 1), ("one two", "one oh two uh", 2)]
    hypotheses(tmp_path, "onnx_float32", [*heard, *[("five", word, 1) for word in "abcdefghijkl"]])
    text = write_report(tmp_path).read_text()
    assert Page(text).open == []
    section = text[text.index("<h2>Word errors of") : text.index("<h2>Misrecognised")]
    assert section.startswith(
        "<h2>Word errors of exported ONNX float32</h2>"
        '<p class="caption">14 substituted, 1 deleted, 2 inserted in 17 words. '
        "Shown are the 12 most frequent of each kind.</p>"
    )
    first = (
        "<th>reference</th><th>recognised</th><th>count</th></tr>\n"
        "<tr><td>five</td><td>nine</td><td>2</td></tr>"
    )
    assert first in section and section.count("<td>five</td>") == 12
    assert "<th>deleted</th><th>count</th></tr>\n<tr><td>&lt;b&gt;</td><td>1</td></tr>" in section
    assert "<tr><td>oh</td><td>1</td></tr>\n<tr><td>uh</td><td>1</td></tr>" in section
    assert "WER by speaker" not in text
    assert (
        "Word errors of exported ONNX float32: 14 substituted, 1 deleted, 2 inserted in 17 words; "
        "most often five → nine (2)."
    ) in " ".join(printed(tmp_path).split())


def test_texts_from_elsewhere_do_not_direct_the_terminal(tmp_path: Path) -> None:
    row = result("mine", 1, 50.0, decoder="beam", lexicon=["\x1b[2Jwords"])
    append_result(tmp_path / "results.json", row)
    hypotheses(tmp_path, "mine", [("five \x1b[2J", "five \x9b2J", 1)] * 2)
    said = printed(tmp_path)
    assert r"most often \u001b[2J → \u009b2J (2)" in " ".join(said.split())
    assert r"the words of \u001b[2Jwords" in said and "\x1b" not in said and "\x9b" not in said


def test_each_test_set_has_its_best_student_over_all_seeds(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for test, best in (("clean", "a"), ("other", "b")):
        for model, seed in (("a", 1), ("a", 2), ("b", 1)):
            row = result(model, seed, 10.0 if model == best else 20.0, test=test)
            append_result(path, row)
            file = hypotheses_file(path, row)
            file.parent.mkdir(parents=True, exist_ok=True)
            heard = {"key": "u", "reference": f"{test} one", "hypothesis": "one", "errors": 1}
            file.write_text(json.dumps(heard) + "\n")
    append_result(path, result("unheard", 1, 0.0, test="clean"))
    said = " ".join(printed(tmp_path).split())
    assert "Word errors of clean: a: 0 substituted, 2 deleted, 0 inserted in 4 words." in said
    assert "Word errors of other: b: 0 substituted, 1 deleted, 0 inserted in 2 words." in said


def test_the_speakers_heard_worst_come_first(tmp_path: Path) -> None:
    append_result(tmp_path / "results.json", result("mine", 1, 10.0))
    file = hypotheses_file(tmp_path / "results.json", {"model": "mine", "seed": 1})
    file.parent.mkdir()

    def speakers(count: int) -> list[str]:
        """The cells of the table where each speaker has had one word more misheard than the one before."""
        said = " ".join(["one"] * count)
        rows = [
            {"key": f"u-{n}", "speaker": f"s<{n}", "reference": said, "hypothesis": "", "errors": n}
            for n in range(count)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        text = write_report(tmp_path).read_text()
        if "<h2>WER by speaker: mine</h2>" not in text:
            return []
        section = text[text.index("<h2>WER by speaker: mine</h2>") : text.index("<h2>Misrecognised")]
        assert ("The 20 of" in section) == (count > 20)
        return [word for word in Page(section).words if word.strip()][1:]

    assert speakers(1) == []
    head = ["speaker", "words", "WER %"]
    assert speakers(2) == [*head, "s<1", "2", "50.0", "s<0", "2", "0.0"]
    many = speakers(200)
    assert many[:7] == ["The 20 of 200 speakers with the highest WER.", *head, "s<199", "200", "99.5"]
    assert len(many) == 1 + 3 + 3 * 20
    assert speakers(201) == []


def test_an_utterance_without_words_gives_a_speaker_no_rate() -> None:
    heard = [
        {"speaker": "a", "reference": "one", "errors": 0},
        {"speaker": "b", "reference": "one two", "errors": 1},
        {"speaker": "b", "reference": "", "errors": 1},
        {"speaker": "c", "reference": "", "errors": 1},
        {"reference": "one", "errors": 1},
    ]
    assert speaker_rates(heard) == [("b", 2, 100.0), ("a", 1, 0.0)]


def test_speakers_of_other_tools_may_be_numbers() -> None:
    heard = [{"speaker": who, "reference": "one", "errors": 1} for who in ("a", 10, 0, "", None)]
    assert speaker_rates(heard) == [("0", 1, 100.0), ("10", 1, 100.0), ("a", 1, 100.0)]


def test_runs_are_drawn_in_the_order_of_the_table_with_what_has_to_be_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("student_distilled", "student_mwer", "another", "teacher", "student_labelled_only"):
        log = tmp_path / "checkpoints" / name / "train.jsonl"
        log.parent.mkdir(parents=True)
        log.write_text('{"step": 1, "labelled/ctc": 2.0}\n{"step": 1, "dev_wer": 90.0}\n')
    drawn: list[str] = []
    plot = page.plot_losses
    monkeypatch.setattr(page, "plot_losses", lambda path, logs: drawn.extend(logs) or plot(path, logs))
    text = write_report(tmp_path).read_text()
    assert drawn == ["teacher", "student_labelled_only", "student_distilled", "student_mwer", "another"]
    assert "Dev WER during training" in text and "silent_start" not in text
    assert "MWER training (student_mwer) starts from the finished student_distilled." in text
    log.write_text('{"step": 1, "labelled/ctc": 2.0, "labelled/silent_start": 1.0}\n')
    assert "silent_start fades out by design." in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("steps", "window"),
    [
        (range(1, 201), 20),
        (range(4, 201, 4), 5),  # a value in every fourth step
        (range(1, 1601), 32),  # a fiftieth
        (range(1, 9), 8),  # no more than there are
    ],
)
def test_losses_are_smoothed_over_20_steps_at_least(steps: range, window: int) -> None:
    assert _window(np.array(steps)) == window


def test_a_longer_bar_is_a_higher_error_rate(tmp_path: Path) -> None:
    append_result(tmp_path / "results.json", result("teacher", 1, 10.0))
    append_result(tmp_path / "results.json", result("mine", 1, 40.0))
    write_report(tmp_path)
    blue = (
        np.abs(read_png(tmp_path / "plots" / "wer.png") - np.array([0x1B, 0x6C, 0xA8]) / 255).max(axis=-1)
        < 0.02
    )
    widths = blue.sum(axis=1)
    upper, lower = (widths[blue.any(axis=1)][index] for index in (3, -3))
    assert lower == pytest.approx(4 * upper, rel=0.05)


def test_a_run_in_progress_can_be_reported_on(tmp_path: Path) -> None:
    log = tmp_path / "checkpoints" / "teacher" / "train.jsonl"
    log.parent.mkdir(parents=True)
    log.write_text('{"step": 1, "labelled/ctc": 2.0}\n{"step": 2, "labelled/ctc": 1.5}\n{"step": 3, "labe')
    assert [row["step"] for row in read_log(log)] == [1, 2]
    page = Page(write_report(tmp_path).read_text())
    assert page.images == ["plots/losses.png"]
    assert "No model has been evaluated yet." in page.words
    assert printed(tmp_path) == f"no results in {tmp_path}/results.json yet\n"


def test_a_damaged_row_of_a_training_log_is_named(tmp_path: Path) -> None:
    log = tmp_path / "train.jsonl"
    log.write_bytes(b'{"step": 1}\n{"step": 2, "labelled/ctc": \xb1.5}\n{"step": 3}\n')
    with pytest.raises(ConfigError, match=r"train\.jsonl:2: the line is not valid JSON"):
        read_log(log)


def test_names_in_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    for model in ("mine [beam]", "mine [/greedy]"):
        append_result(tmp_path / "results.json", result(model, 1, 5.0))
    assert [row[0] for row in cells(printed(tmp_path))] == ["mine [beam]", "mine [/greedy]"]


def test_logs_in_folders_of_one_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a/checkpoints", "b/checkpoints", "c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "train.jsonl").write_text('{"step": 1, "labelled/ctc": 2.0}\n')
    drawn: list[str] = []
    monkeypatch.setattr(page, "plot_losses", lambda _, logs: drawn.extend(logs))
    write_report(tmp_path)
    assert drawn == ["a/checkpoints", "b/checkpoints", "c"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("checkpoints/a/train.jsonl", '{"step": 1}\nnonsense\n{"step": 3}\n'),
        ("checkpoints/a/train.jsonl", '{"loss": 1}\n'),
        ("hypotheses/teacher-1.jsonl", '{"key": "u"}\n'),
        ("hypotheses/teacher-1.jsonl", "nonsense\n"),
        ("spike_offsets.json", "{}"),
        ("results.json", "{}"),
    ],
)
def test_a_foreign_file_is_named(name: str, content: str, tmp_path: Path) -> None:
    append_result(tmp_path / "results.json", result("teacher", 1, 10.0))
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError) as refusal:
        write_report(tmp_path)
    assert name in str(refusal.value)


def test_without_matplotlib_the_pip_line_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work_folder(tmp_path)
    for module in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"pip install -c .*\[report\]'"):
        write_report(tmp_path)
    assert "teacher (full context)" in printed(tmp_path)
