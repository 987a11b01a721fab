"""torchaudio without its compiled extension."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own: torchaudio is imported once. A finder stands for the extension that raises.
IMPORT = """
import sys

class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name == "torchaudio._extension":
            raise {error}("Detected that PyTorch and TorchAudio were compiled with different CUDA versions.")

sys.meta_path.insert(0, Refuses())
from kdasr.compat import import_torchaudio, torchaudio_extension_works

print(import_torchaudio().functional.create_dct(2, 3, None).shape, torchaudio_extension_works())
"""


@pytest.mark.slow
@pytest.mark.parametrize("error", ["OSError", "RuntimeError"])
def test_an_extension_that_does_not_load_or_refuses_itself_is_not_needed(error: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT.format(error=error)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "torch.Size([3, 2]) False\n", done.stderr
