"""The undisturbed labelling job, done once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

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
