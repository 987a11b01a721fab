"""What a recogniser hears in files, for tests that compare with it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from export.sources import PIECE_MS, pieces_of
from export.transcribe import open_recogniser
from kdasr.audio import load


def texts_of(
    files: Iterable[Path], model: Path, *, stream: bool = False, piece_ms: int = PIECE_MS
) -> list[str]:
    """The text of each file, by the model at `model`; with `stream` chunk by chunk, as the audio arrives."""
    recogniser, texts = open_recogniser(model), []
    for file in files:
        samples = load(file)
        if stream:
            *_, final = recogniser.listen(pieces_of(samples, piece_ms), str(file))
            assert final.final
            texts.append(final.text)
        else:
            texts.append(recogniser.transcribe(samples, str(file)))
    return texts
