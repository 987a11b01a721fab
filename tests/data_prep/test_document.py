"""The program of docs/your-data.md runs as it stands there, and `kdasr prepare manifest` takes what it
writes."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import prepare
from tests.data_prep.fakes import dropped_in, places_in, read_folder

DOCUMENT = Path(__file__).parents[2] / "docs/your-data.md"
SRT = """\ufeff1\r
00:00:01,000 --> 00:00:02,500\r
<i>Good evening,</i>\r
everybody.\r
\r
2\r
00:00:04,000 --> 00:00:05,250  X1:40 X2:600\r
{\\an8}It's late.\r
\r
3\r
00:00:06,000 --> 00:00:07,000\r
Room 12\r
"""
VTT = """WEBVTT

NOTE 00:01 is when it begins

greeting
00:01.000 --> 00:03.250 align:start
<v Ann>Hello there

01:00:00.000 --> 01:00:01.000
after the end
"""
STM = """;; LABEL "o" "Overall" "Overall"
talk A ann 2.00 3.50 <o,f0,female> one two
talk\tA\tbob\t4\t5.25\tthree
talk A inter_segment_gap 5.25 6 <o,,> ignore_time_segment_in_scoring
talk A cat 7 8
"""


def program() -> str:
    (found,) = re.findall(
        r"^ {4}import json, pathlib, re\n(?:(?: {4}.*)?\n)+", DOCUMENT.read_text("utf-8"), re.MULTILINE
    )
    return textwrap.dedent(found)


def test_subtitles_and_segment_lists_become_json_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "talks"
    (corpus / "a").mkdir(parents=True)
    seconds = np.repeat(np.arange(10, dtype=np.float32) / 20, 16_000)  # each has its own level
    for name in ("a/one", "a/two", "talk"):
        soundfile.write(corpus / f"{name}.wav", seconds, 16_000, subtype="FLOAT")
    for name, text in (("a/one.SRT", SRT), ("a/two.vtt", VTT), ("talk.stm", STM)):
        (corpus / name).write_bytes(text.encode())
    monkeypatch.chdir(corpus)
    exec(program(), {})
    prepare("manifest", corpus=corpus, out=tmp_path / "out")
    folder = tmp_path / "out/train"
    utterances = read_folder(folder)
    assert [(one.text, one.speaker, len(one.samples)) for one in utterances] == [
        ("good evening everybody", None, 24_000),
        ("it's late", None, 20_000),
        ("hello there", None, 36_000),
        ("one two", "ann", 24_000),
        ("three", "bob", 20_000),
    ]
    assert places_in(folder) == [("a/one.wav", 1), ("a/one.wav", 4), ("a/two.wav", 1), ("talk.wav", 2),
                                 ("talk.wav", 4)]  # fmt: skip
    levels = [round(float(one.samples[8_000]) * 20) for one in utterances]
    assert levels == [1, 4, 1, 2, 4]
    reasons = {what: why.split(";")[0] for what, why in dropped_in(folder).items()}
    assert reasons == {
        "train.jsonl:3 a/one.wav": "the character '1' cannot be normalised",
        "train.jsonl:5 a/two.wav": "the cut is not within the audio",
    }
