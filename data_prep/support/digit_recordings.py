"""Find and load the recordings of a checkout of the Free Spoken Digit Dataset."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data_prep.support.dropped import Dropped
from kdasr.audio import load_with_rate
from kdasr.errors import AudioError, CorpusError
from kdasr.noise import Samples

_NAME = re.compile(r"(\d)_([A-Za-z0-9-]+)_(\d+)\.wav")


@dataclass(frozen=True, slots=True)
class Recording:
    """One spoken digit."""

    digit: int
    speaker: str
    samples: Samples


def find_recordings(corpus: Path, dropped: Dropped) -> dict[str, list[Path]]:
    """The files of each speaker, sorted by name; files with other names are counted as dropped.

    Raises:
        CorpusError: there are no recordings.
    """
    folder = corpus / "recordings" if (corpus / "recordings").is_dir() else corpus
    found: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.glob("*.wav")):
        match = _NAME.fullmatch(path.name)
        if match:
            found[match[2]].append(path)
        else:
            dropped.add(str(path.relative_to(corpus)), "the name is not {digit}_{speaker}_{number}.wav")
    if not found:
        raise CorpusError(
            "this is not a checkout of the Free Spoken Digit Dataset",
            where=corpus,
            expected="recordings/{digit}_{speaker}_{number}.wav",
            got=f"{len(dropped.items)} other wav files",
            fix="Check --corpus.",
        )
    return found


def load_recordings(paths: Iterable[Path], corpus: Path, rate_hz: int, dropped: Dropped) -> list[Recording]:
    """The files decoded at `rate_hz`; files that cannot be decoded are counted as dropped."""
    recordings = []
    for path in paths:
        match = _NAME.fullmatch(path.name)
        assert match is not None, "find_recordings gives no other names"
        try:
            samples, source_rate_hz, _ = load_with_rate(path, rate_hz)
        except AudioError as error:
            dropped.add_error(str(path.relative_to(corpus)), error)
            continue
        dropped.note_rate(source_rate_hz, rate_hz)
        recordings.append(Recording(int(match[1]), match[2], samples))
    return recordings
