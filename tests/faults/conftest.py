"""What the tests here share: undamaged shards, an undisturbed labelling job, and a server of victims."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from kdasr.shards import write_shards
from tests.faults import shard_victim
from tests.faults.label_job import label_files, make_shards, run


@pytest.fixture(scope="session")
def audio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("audio"))


@pytest.fixture(scope="session")
def wanted(audio: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a job that nobody disturbs."""
    out = tmp_path_factory.mktemp("wanted")
    run(audio, out)
    return label_files(out)


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Undamaged shards. Tests damage copies."""
    folder = tmp_path_factory.mktemp("pristine")
    write_shards(shard_victim.utterances(), folder, max_utterances=3)
    return folder


@pytest.fixture(scope="session")
def forkserver() -> Any:
    """Forks victims: importing what they need takes seconds, and a server has done so already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.label_victim", "tests.faults.train_victim"])
    return context
