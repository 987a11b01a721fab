"""One summary of jobs that shared the shards."""

from __future__ import annotations

from typing import Any

import pytest

from kdasr.labelling import summary_of_all, summary_text
from kdasr.labelling.progress import MOST_NAMED, Totals
from kdasr.reasons import Kind


def part(**changes: Any) -> dict[str, Any]:
    return {**Totals(0, 0).summary(), **changes}


def test_parts_are_added_up_and_their_shares_weighed() -> None:
    long = part(
        shards=4, shards_done_before=1, shards_labelled=3, labelled=30, num_failed=1, frames=1000, bytes=2000,
        hours=3.5, hours_labelled=3.0, hours_heard=3.0, wall_s=1800.0, worker_hours=0.45, halved_batches=1,
        teacher_share=0.8, encode_share=0.2, fetch_share=0.1, padding=0.02,
        failed={"a": "too short"}, reasons=[Kind(1, "a", "too short")],
    )  # fmt: skip
    short = part(
        shards=3, shards_labelled=1, labelled=10, num_failed=2, frames=500, bytes=1300, hours=1.5,
        hours_labelled=1.0, hours_heard=1.0, wall_s=600.0, worker_hours=0.15, halved_batches=2,
        teacher_share=0.4, encode_share=0.6, fetch_share=0.5, padding=0.06,
        failed={"b": "too short", "c": "no words"},
        reasons=[Kind(1, "b", "too short"), Kind(1, "c", "no words")],
        shards_failed={"s-5": "the disk is full"}, shards_not_tried=["s-6"], log_problem="no room",
    )  # fmt: skip
    idle = part(shards=0)
    whole = summary_of_all([long, idle, short])
    assert whole.keys() == long.keys()
    assert whole == part(
        shards=7, shards_done_before=1, shards_labelled=4, labelled=40, num_failed=3, frames=1500, bytes=3300,
        hours=5.0, hours_labelled=4.0, hours_heard=4.0, wall_s=1800.0, worker_hours=pytest.approx(0.6),
        halved_batches=3, bytes_per_frame=2.2,
        times_real_time=8.0,  # four hours in the half of one that the longest took
        teacher_share=0.7, encode_share=0.3, fetch_share=0.2, padding=0.03,
        failed={"a": "too short", "b": "too short", "c": "no words"},
        reasons=[Kind(2, "a", "too short"), Kind(1, "c", "no words")],
        shards_failed={"s-5": "the disk is full"}, shards_not_tried=["s-6"], log_problem="no room",
    )  # fmt: skip
    assert "4 shards labelled, 1 were done before; 40 of 43 utterances" in summary_text(whole)
    assert "shard failed: s-5: the disk is full" in summary_text(whole)


def test_of_very_many_failures_the_first_are_named() -> None:
    failed = [{f"{name}{i}": "too short" for i in range(MOST_NAMED)} for name in "ab"]
    whole = summary_of_all([part(failed=one, num_failed=MOST_NAMED) for one in failed])
    assert whole["failed"] == failed[0] and whole["num_failed"] == 2 * MOST_NAMED


def test_jobs_that_had_nothing_to_do_have_a_summary() -> None:
    assert summary_of_all([part(), part()]) == part()
