"""Parts of the page in Node.js, with a model that says the classes it was given."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from kdasr.text import write_tokens_txt
from tests.export.small_models import UNITS

HERE = Path(__file__).parent
FRAMES = 8  # of 40 ms in a chunk


def write_model(folder: Path, ids: list[int], fails: dict[str, int | None] | None = None) -> None:
    """Into a copy of the page, a model that says these classes and what runs it.

    Args:
        fails: the weights that there are, and the class at which each fails.
    """
    (folder / "ort").mkdir()
    shutil.copyfile(HERE / "runtime_of_classes.mjs", folder / "ort" / "ort.wasm.min.mjs")
    (folder / "model").mkdir()
    files = {}
    for precision, fails_at in (fails or {"int8": None}).items():
        said = {"ids": ids, "frames": FRAMES, "classes": UNITS.vocab_size, "fails": fails_at}
        weights = json.dumps(said).encode()
        (folder / "model" / f"{precision}.onnx").write_bytes(weights)
        files[precision] = {
            "file": f"{precision}.onnx",
            "bytes": len(weights),
            "sha256": hashlib.sha256(weights).hexdigest(),
        }
    metadata = {
        "vocab_size": UNITS.vocab_size,
        "T": 4 * FRAMES,
        "decode_chunk_len": 4 * FRAMES,
        "subsampling": 4,
        "state_floats": 0,
        "num_samples": 640 * FRAMES + 240,
    }
    card = {"format": "kdasr-export", "version": 1, "file_format": "wave-onnx", "metadata": metadata}
    (folder / "model" / "model.json").write_text(json.dumps({**card, "files": files}))
    write_tokens_txt(UNITS, folder / "model" / "tokens.txt")


def run(program: str, *arguments: object, **given: Any) -> Any:
    node = shutil.which("node")
    assert node, "install Node.js: apt-get install nodejs"
    done = subprocess.run(
        [node, HERE / program, *map(str, arguments)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return json.loads(done.stdout)
