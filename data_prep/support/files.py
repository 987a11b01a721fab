"""Find all files below a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(corpus: Path, *, without: Path | None = None) -> Iterator[Path]:
    """All files below a folder, sorted by folder and name; hidden folders and `without` are left out.

    Links to folders are followed, but no folder is entered twice, since links may form cycles.
    """
    entered = {os.path.realpath(corpus)}
    if without is not None:
        entered.add(os.path.realpath(without))
    for parent, folders, files in os.walk(corpus, followlinks=True):
        following = []
        for name in sorted(folders):
            place = os.path.realpath(Path(parent, name))
            if not name.startswith(".") and place not in entered:
                entered.add(place)
                following.append(name)
        folders[:] = following
        yield from (Path(parent, name) for name in sorted(files))
