"""Tables with a header: each NAME.tsv or NAME.csv in the corpus folder is a split NAME. As in Common Voice:

    CORPUS/train.tsv       client_id   path            sentence   …
    CORPUS/clips/a.mp3     what the column `path` names

(Ardila et al., "Common Voice: A Massively-Multilingual Speech Corpus", LREC 2020.) Settings name other
columns. Cells of a .tsv are taken as they stand; those of a .csv may be quoted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from data_prep.support.dropped import Dropped
from data_prep.support.listed import Listed, key_of
from data_prep.support.lists import (
    AudioList,
    ListCorpus,
    ListSettings,
    lists_below,
    place_of,
)
from kdasr.errors import CorpusError

NEEDS_CORPUS = True
GENERATION = 2
EXTENSIONS = (".tsv", ".csv")
CLIPS = "clips"
SPEAKER = "client_id"


@dataclass(frozen=True, slots=True)
class Settings(ListSettings):
    """What can be set beside what every kind of list has. Without audio_folder, audio lies in `clips` if
    there is such a folder beside the table.

    Attributes:
        audio_column: the column that names the audio.
        text_column: the column of the transcripts; a list that is to be unlabelled needs none.
        speaker_column: the column of the speakers; a table without client_id has none.
    """

    audio_column: str = "path"
    text_column: str = "sentence"
    speaker_column: str = SPEAKER


def _tables(settings: Settings, corpus: Path) -> dict[str, Table]:
    found = lists_below(corpus, EXTENSIONS, "tables with a header")
    return {name: Table(settings, path) for name, path in found.items()}


_corpus = ListCorpus(_tables)
splits, scope, prepare = _corpus.splits, _corpus.scope, _corpus.prepare


@dataclass(frozen=True, slots=True)
class Table(AudioList):
    """A file of lines of cells, the first of which names the columns."""

    settings: Settings
    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def fault(self) -> CorpusError | None:
        with self._opened() as file:
            columns = next(self._lines(file), (0, []))[1]
        needed = {"audio_column": self.settings.audio_column}
        if self.path.stem not in self.settings.unlabelled:
            needed["text_column"] = self.settings.text_column
        if self.settings.speaker_column != SPEAKER:
            needed["speaker_column"] = self.settings.speaker_column
        lacking = {setting: column for setting, column in needed.items() if column not in columns}
        if not lacking:
            return None
        return CorpusError(
            f"the table has no column {' and no '.join(lacking.values())}",
            where=self.path,
            expected=" and ".join(
                f"{column} (--{setting} NAME for another)" for setting, column in needed.items()
            ),
            got=f"the columns {', '.join(columns)}" if columns else "an empty file",
        )

    def read(self, dropped: Dropped) -> list[Listed]:
        listed, beside = [], CLIPS if (self.path.parent / CLIPS).is_dir() else ""
        with self._opened() as file:
            lines = self._lines(file)
            _, columns = next(lines)
            for number, cells in lines:
                where = f"{self.path.name}:{number}"
                try:
                    listed.append(self._listed(where, columns, cells, beside))
                except CorpusError as error:
                    dropped.add_error(where, error)
        return listed

    def _opened(self) -> TextIO:
        return self.path.open(encoding="utf-8-sig", errors="replace", newline="")

    def _lines(self, file: TextIO) -> Iterator[tuple[int, list[str]]]:
        """Number and cells of the lines that are not empty."""
        # Common Voice quotes nothing: there, a quotation mark is one that the sentence has.
        tabs = self.path.suffix.lower() == ".tsv"
        lines = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(file)
        try:
            for cells in lines:
                if cells:
                    yield lines.line_num, [cell.strip() for cell in cells]
        except csv.Error as error:
            raise CorpusError(
                "the table cannot be read",
                where=f"{self.path}:{lines.line_num}",
                expected="cells parted by tabs" if tabs else "cells parted by commas",
                got=error,
                fix="Close the quotation marks that were opened in this or an earlier line.",
            ) from error

    def _listed(self, where: str, columns: list[str], cells: list[str], beside: str) -> Listed:
        if len(cells) != len(columns):
            raise CorpusError(
                "the line has not as many cells as the header", expected=len(columns), got=len(cells)
            )
        row, settings = dict(zip(columns, cells, strict=True)), self.settings
        audio = row[settings.audio_column]
        name, path = place_of(settings, self.path.parent, audio, beside)
        return Listed(
            name=f"{where} {name}",
            key=key_of(audio),
            path=path,
            recording=name,
            text=row.get(settings.text_column),
            speaker=row.get(settings.speaker_column) or None,
            language=settings.language,
        )
