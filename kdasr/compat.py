"""The one place that works around a broken dependency.

torchaudio's x86-64 wheel links the CUDA runtime. With a CPU build of torch, its compiled extension cannot
be loaded and `import torchaudio` raises OSError; with a torch for another CUDA version, it is loaded but
raises RuntimeError. Its pure-Python parts (which SpeechBrain imports) do not need the extension. In these
cases `import_torchaudio` replaces `torchaudio._extension` with a stub and imports again; otherwise it
changes nothing. Every module that needs torchaudio or SpeechBrain calls it first, so that it also works in
spawned workers.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import NoReturn

MISSING_WITHOUT_EXTENSION = ("forced_align", "rnnt_loss", "cuda_ctc_decoder")


def _refuse(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("torchaudio's compiled extension does not work with this torch build")


def _stand_in() -> types.ModuleType:
    module = types.ModuleType("torchaudio._extension")
    module.__dict__.update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        fail_if_no_align=lambda function: _refuse,
        _check_cuda_version=lambda: None,
    )
    return module


def import_torchaudio() -> types.ModuleType:
    """Import torchaudio, with its compiled extension if that can be loaded, else without."""
    try:
        return importlib.import_module("torchaudio")
    except (OSError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
            del sys.modules[name]
        sys.modules["torchaudio._extension"] = _stand_in()
        return importlib.import_module("torchaudio")


def torchaudio_extension_works() -> bool:
    """Whether the compiled parts (`MISSING_WITHOUT_EXTENSION`) can be used."""
    import_torchaudio()
    return bool(sys.modules["torchaudio._extension"].__dict__["_IS_TORCHAUDIO_EXT_AVAILABLE"])
