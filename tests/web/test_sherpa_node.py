"""The npm build of sherpa-onnx decodes an exported folder to the text of our own session."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from export.npm import npm_package
from kdasr.streaming import TorchChunkModel
from tests.export.test_sherpa import assert_same, exported, sessions

__all__ = ["exported"]  # the fixture: one export and its WAV files for each kind of student

pytestmark = pytest.mark.web

PROGRAM = Path(__file__).with_name("sherpa_decode.js")
SHERPA_VERSION = "1.13.8"


def test_node_gives_the_same_text_tokens_and_times(exported: Any) -> None:
    student, folder, wavs = exported
    node = shutil.which("node")
    assert node, "install Node.js: apt-get install nodejs npm"
    package = npm_package("sherpa-onnx", SHERPA_VERSION)
    command = [node, PROGRAM, package, folder / "model.onnx", folder / "tokens.txt", *wavs]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2_000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for session, result in zip(sessions(TorchChunkModel(student)), results, strict=True):
        assert_same(session, result)
