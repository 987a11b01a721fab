"""Tables with a header: each NAME.tsv or NAME.csv in the corpus folder is a split NAME. As in Common Voice:

    CORPUS/train.tsv       client_id   path            sentence   …
    CORPUS/clips/a.mp3     named in the column `path`

(Ardila et al., "Common Voice: A Massively-Multilingual Speech Corpus", LREC 2020.) Settings can name other
columns. Cells are separated by tabs in a .tsv and by commas in a .csv, unless the header shows otherwise.
Cells of a .csv may be quoted; in a .tsv, quotation marks belong to the text unless they enclose a whole cell.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
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
    utf_16_fault,
)
from kdasr.errors import ConfigError, CorpusError

NEEDS_CORPUS = True
IN_PARALLEL = True
GENERATION = 2
EXTENSIONS = (".tsv", ".csv")
CLIPS = "clips"
SPEAKER = "client_id"
_NAMES = {"\t": "tabs", ",": "commas", ";": "semicolons"}
_OTHERS = ";\t|,"


@dataclass(frozen=True, slots=True)
class Settings(ListSettings):
    """The settings of this corpus, in addition to those of all lists. Without audio_folder, audio is in
    `clips` if there is such a folder beside the table.

    Attributes:
        delimiter: the separator of cells, such as ; or tab; none: as the header shows.
        audio_column: the column with the path of the audio.
        text_column: the column of the transcripts; not needed for an unlabelled list.
        speaker_column: the column of the speakers; a table without client_id has none.
    """

    delimiter: str | None = None
    audio_column: str = "path"
    text_column: str = "sentence"
    speaker_column: str = SPEAKER

    def __post_init__(self) -> None:
        ListSettings.__post_init__(self)
        if self.delimiter == "tab":
            object.__setattr__(self, "delimiter", "\t")
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            expected = "one character, such as ; or tab (in a shell, | is '\"|\"')"
            raise ConfigError(
                "this is not a delimiter", where="--delimiter", expected=expected, got=repr(self.delimiter)
            )


def _tables(settings: Settings, corpus: Path) -> dict[str, Table]:
    found = lists_below(corpus, EXTENSIONS, "tables with a header")
    return {name: Table(settings, path) for name, path in found.items()}


_corpus = ListCorpus(_tables)
splits, scope, prepare = _corpus.splits, _corpus.scope, _corpus.prepare


@dataclass(frozen=True, slots=True)
class Table(AudioList):
    """A file of lines of cells; the first line names the columns."""

    settings: Settings
    path: Path

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def fault(self) -> CorpusError | None:
        if fault := utf_16_fault(self.path):
            return fault
        columns = self._columns()
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

    def names(self) -> tuple[str, Sequence[str]]:
        return "column", [name for name in self._columns() if name != self.settings.audio_column]

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

    def _columns(self) -> list[str]:
        with self._opened() as file:
            return next(self._lines(file), (0, []))[1]

    def _opened(self) -> TextIO:
        return self.path.open(encoding="utf-8-sig", errors="replace", newline="")

    def _lines(self, file: TextIO) -> Iterator[tuple[int, list[str]]]:
        """The numbers and cells of lines that are not empty."""
        delimiter = self.settings.delimiter or self._delimiter(file)
        # Common Voice quotes nothing: a quotation mark there is part of the sentence.
        plain = delimiter == "\t" and self._is_tsv
        lines = csv.reader(file, delimiter=delimiter, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
        try:
            for cells in lines:
                if cells:
                    yield lines.line_num, [(_unquoted(cell) if plain else cell).strip() for cell in cells]
        except csv.Error as error:
            raise CorpusError(
                "the table cannot be read",
                where=f"{self.path}:{lines.line_num}",
                expected=f"cells separated by {_NAMES.get(delimiter, delimiter)}",
                got=error,
                fix="Close the quotation marks that were opened in this or an earlier line.",
            ) from error

    @property
    def _is_tsv(self) -> bool:
        return self.path.suffix.lower() == ".tsv"

    def _delimiter(self, file: TextIO) -> str:
        """The usual delimiter for the file's extension, unless only others occur in the header."""
        expected = "\t" if self._is_tsv else ","
        header = next((line for line in file if line.strip()), "")
        file.seek(0)
        return expected if expected in header else max(expected, *_OTHERS, key=header.count)

    def _listed(self, where: str, columns: list[str], cells: list[str], beside: str) -> Listed:
        if len(cells) != len(columns):
            raise CorpusError(
                "the line and the header have different numbers of cells",
                expected=len(columns),
                got=len(cells),
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


def _unquoted(cell: str) -> str:
    """A cell without quotation marks that enclose all of it."""
    cell = cell.strip()
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell
