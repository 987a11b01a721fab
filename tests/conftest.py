"""What every test shares: one thread and fixed seeds, so that results do not depend on the machine.

Imports are in functions: the process that hands tests to others reads this file too, and needs nothing of
what the tests import. They would begin three seconds later.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    import torch

# A busy machine is no reason to fail; pytest's own timeout catches what hangs.
hypothesis.settings.register_profile("kdasr", deadline=None)
hypothesis.settings.load_profile("kdasr")


def pytest_configure() -> None:
    """No test pulls the plug, and some ten thousand files would be waited for until they are on the disk."""
    os.fsync = lambda _: None


def pytest_collectstart() -> None:
    """Before the first module of tests is imported."""
    _prepare_libraries()


@functools.cache
def _prepare_libraries() -> None:
    import torch

    from kdasr.compat import import_torchaudio

    # One thread a process: tests that run side by side would otherwise slow one another down.
    torch.set_num_threads(1)
    # hypothesis looks at `__file__` of every module, and SpeechBrain's lazy modules answer any look by
    # importing what may not be installed. Not every machine with an accelerator has SpeechBrain.
    with contextlib.suppress(ImportError):
        import_torchaudio()
        from speechbrain.utils.importutils import LazyModule

        LazyModule.__file__ = None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: at the end, quick ones keep all processes busy."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Some million objects of torch and of the tests stay to the end: to look through them costs a fifth of a
    second, several times in a test of a run of stages."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed_everything() -> None:
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Audio to learn from and audio to measure with, unless a file has its own."""
    from tests.speech import shards

    root = tmp_path_factory.mktemp("data")
    shards(root / "labelled", 60)
    shards(root / "dev", 12, first_seed=1_000)
    return root


@pytest.fixture(scope="session")
def accelerator() -> torch.device:
    """The one of this machine, for tests that are marked `gpu`."""
    import torch

    if not torch.accelerator.is_available():
        pytest.fail("there is no accelerator here; `make test` runs everything that needs none")
    found = torch.accelerator.current_accelerator()
    assert found is not None
    return found


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Python's own Ctrl-C: a shell that starts the tests in the background lets them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
