"""Independent random streams by name, the same on every machine and in every process."""

from __future__ import annotations

import zlib

import numpy as np


def rng_for(seed: int, *names: str | int) -> np.random.Generator:
    """The generator of one thing, e.g. `rng_for(seed, "synth", "test", 17)`.

    It depends on its arguments alone, so what is drawn for one utterance never shifts another.
    """
    words = [zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names]
    return np.random.default_rng([seed, *words])
