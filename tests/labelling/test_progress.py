"""What a job says while it runs, and one summary of jobs that shared the shards."""

from __future__ import annotations

from typing import Any

import pytest

from kdasr.labelling import ShardResult, summary_text
from kdasr.labelling.foreman import Outcome
from kdasr.labelling.progress import MOST_NAMED, Display, Totals, all_together
from kdasr.reasons import Kind, Reasons


def test_of_jobs_that_shared_the_shards_all_adds_up() -> None:
    long = Totals(
        shards=4, done_before=1, tried={"s-1", "s-2", "s-3"}, labelled=30, num_failed=1, frames=1000,
        bytes=2000, seconds=12600.0, labelled_seconds=10800.0, heard_seconds=10800.0, wall_s=1800.0,
        worker_s=1620.0, teacher_s=1296.0, encode_s=324.0, fetch_s=162.0, padding_s=216.0, halved=1,
        failed={"a": "too short"}, reasons=Reasons([("a", "too short")]),
    )  # fmt: skip
    short = Totals(
        shards=3, done_before=0, tried={"s-4", "s-5"}, labelled=10, num_failed=2, frames=500, bytes=1300,
        seconds=5400.0, labelled_seconds=3600.0, heard_seconds=3600.0, wall_s=600.0, worker_s=540.0,
        teacher_s=216.0, encode_s=324.0, fetch_s=270.0, padding_s=216.0, halved=2,
        failed={"b": "too short", "c": "no words"}, reasons=Reasons([("b", "too short"), ("c", "no words")]),
        failed_shards={"s-5": "the disk is full"}, not_tried=["s-6"], log_problem="no room",
    )  # fmt: skip
    whole = all_together([long, Totals(0, 0), short]).summary()
    assert whole == {
        "shards": 7, "shards_done_before": 1, "shards_labelled": 4, "labelled": 40, "num_failed": 3,
        "hours": 5.0, "hours_labelled": 4.0, "hours_heard": 4.0, "frames": 1500, "bytes": 3300,
        "bytes_per_frame": 2.2,
        "wall_s": 1800.0,  # of the longest
        "times_real_time": 8.0, "worker_hours": 0.6, "teacher_share": 0.7, "encode_share": 0.3,
        "fetch_share": 0.2, "padding": 0.03, "halved_batches": 3,
        "failed": {"a": "too short", "b": "too short", "c": "no words"},
        "reasons": [Kind(2, "a", "too short"), Kind(1, "c", "no words")],
        "shards_failed": {"s-5": "the disk is full"}, "shards_not_tried": ["s-6"], "log_problem": "no room",
    }  # fmt: skip
    assert all_together([short, long]).log_problem == "no room"
    assert "4 shards labelled, 1 already done; 40 of 43 utterances" in summary_text(whole)
    assert "shard failed: s-5: the disk is full" in summary_text(whole)
    assert len(long.tried) == 3 and len(long.failed) == 1  # the parts are left as they were


def test_of_very_many_failures_the_first_are_named() -> None:
    parts = []
    for name in "ab":
        failed = {f"{name}{i}": "too short" for i in range(MOST_NAMED)}
        parts.append(Totals(1, 0, failed=failed, num_failed=MOST_NAMED))
    whole = all_together(parts).summary()
    assert whole["failed"] == parts[0].failed and whole["num_failed"] == 2 * MOST_NAMED


def test_jobs_that_had_nothing_to_do_have_a_summary() -> None:
    assert all_together([Totals(0, 0), Totals(0, 0)]).summary() == Totals(0, 0).summary()


def test_reasons_from_elsewhere_do_not_direct_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Reasons may come from manifests of labels that somebody else wrote."""
    odd, shown = "\x1b]0;title\x07 \x9b2J", r"\u001b]0;title\u0007 \u009b2J"
    totals = Totals(1, 0, num_failed=1, reasons=Reasons([("a", odd)]), failed_shards={"s": odd})
    text = summary_text(totals.summary())
    assert f"not labelled: a: {shown}" in text and f"shard failed: s: {shown}" in text
    Display(1.0, quiet=True).note(odd, problem=True)
    assert capsys.readouterr().err == f"{shown}\n"


def shard(name: str, **facts: Any) -> Outcome:
    """A shard that was labelled."""
    manifest = {"labelled": 1, "failed": [], "frames": 25, "bytes": 50, "sha256": "s"}
    given = {"seconds": 100.0, "labelled_seconds": 30.0, "heard_seconds": 40.0, **facts}
    return Outcome(name, ShardResult(name, manifest, **given), attempts=2)


def test_what_shards_took_adds_up_and_is_told_of_each() -> None:
    totals = Totals(2, 0)
    times = {"wall_s": 10.0, "teacher_s": 6.0, "encode_s": 2.0, "fetch_s": 1.0}
    line = totals.add(shard("a", heard_seconds=30.0, padding=0.1, halved=1, **times), 12.5)
    totals.add(shard("b", seconds=10.0, heard_seconds=10.0, padding=0.4, halved=2, **times), 25.0)
    assert line == {
        "audio": "a", "attempts": 2, "elapsed_s": 12.5, "event": "labelled", "seconds": 100.0,
        "labelled_seconds": 30.0, "heard_seconds": 30.0, **times, "padding": 0.1, "halved_batches": 1,
        "labelled": 1, "failed": {}, "frames": 25, "bytes": 50, "sha256": "s",
    }  # fmt: skip
    found = totals.summary()
    assert (found["teacher_share"], found["encode_share"], found["fetch_share"]) == (0.6, 0.2, 0.1)
    assert ", fetching audio 10%; " in summary_text(found)
    assert "fetching" not in summary_text({**found, "fetch_share": 0.004})
    # A tenth of 30 s and four tenths of 10 s, of what the teacher heard.
    assert (found["padding"], found["times_real_time"], found["halved_batches"]) == (0.175, 1.6, 3)


def test_without_a_terminal_a_line_tells_now_and_then_how_far_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    totals, display = Totals(9, 0), Display(1_000.0, quiet=False)
    told = []
    for number, elapsed_s in enumerate((59.0, 60.0, 61.0, 119.0, 121.0)):
        outcome = shard(f"s-{number}")
        totals.add(outcome, elapsed_s)
        display.show(totals, outcome)
        told.append(capsys.readouterr().err.partition(",")[0])
    assert told == ["", "3.3 min of 16.7 min", "", "", "8.3 min of 16.7 min"]


@pytest.mark.parametrize("quiet", [False, True])
def test_what_went_wrong_is_said_even_where_all_else_is_not(
    quiet: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    totals, display = Totals(3, 0), Display(1_000.0, quiet)
    display.note("3 shards to label")
    for outcome in (
        Outcome("a", None, "the disk is full"),
        shard("b", halved=2, batch_seconds=60.0),
        shard("c", halved=1, batch_seconds=30.0),
    ):
        totals.add(outcome, 1.0)
        display.show(totals, outcome)
    memory = "not enough memory for the requested batch size: batches are now at most 60 s"
    said = ["3 shards to label"] * (not quiet) + ["failed: a: the disk is full", memory]
    assert capsys.readouterr().err.splitlines() == said


def test_a_password_in_the_address_of_audio_is_in_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    url, shown = "https://me:s3cr3t@host/shard-000000.tar", "https://me:***@host/shard-000000.tar"
    totals, outcome = Totals(1, 0), Outcome(url, None, f"{url}: it is away")
    line = totals.add(outcome, 1.0)
    assert (line["audio"], line["reason"]) == (shown, f"{shown}: it is away")
    assert totals.summary()["shards_failed"] == {shown: f"{shown}: it is away"} and totals.tried == {url}
    with Display(1.0, quiet=True) as display:
        display.show(totals, outcome)
    assert f"failed: {shown}: {shown}: it is away" in capsys.readouterr().err
