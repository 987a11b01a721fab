"""Records what a corpus leaves out or changes."""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePath

from kdasr.audio import NOT_READ
from kdasr.errors import KdasrError, UnitsError
from kdasr.reasons import Kind, Reasons
from kdasr.symbols import shorten
from kdasr.text import check_letters

# More than these are not an alphabet, but syllables or words.
_MOST_LETTERS = 200
# What the notes on averaged channels begin with.
AVERAGED = "averaged"
# Words in brackets, which are usually a tag rather than spoken.
_TAG = re.compile(r"[\[({<]\s*\w[^\])}>]*[\])}>]")


@dataclass(slots=True)
class Dropped:
    """What was left out or changed: filled while a corpus yields utterances, then written beside the shards.

    Attributes:
        items: file or key of what was left out, and why.
        notes: what was done to kept audio, such as "resampled from 44100 Hz", with counts.
        places: paths of some of the items; for messages only, since they depend on the machine.
        letters: letters beyond a-z in texts that were refused or lost them; for messages only.
        tagged: name and text of the first transcript with words in brackets; for messages only.
        rewritten: name of the first transcript that was rewritten, as it was written and as it is spoken; for
            messages only.
        with_digits: how many transcripts were left out that have digits; for messages only.
        hints: what to do about files that the corpus passes over; for messages only.
    """

    items: list[tuple[str, str]] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)
    places: dict[str, str] = field(default_factory=dict)
    letters: set[str] = field(default_factory=set)
    tagged: str = ""
    rewritten: str = ""
    with_digits: int = 0
    hints: list[str] = field(default_factory=list)

    def add(self, what: str, reason: str) -> None:
        """Record that `what` (a file relative to the corpus, or a key) is left out because of `reason`."""
        # File names need not be UTF-8, but the record must be.
        what, reason = (text.encode("utf-8", "replace").decode() for text in (what, reason))
        self.items.append((what, reason))

    def add_error(self, what: str, error: KdasrError, more: str = "") -> None:
        """Record that `what` is left out because of an error; without its path, so that the same corpus
        in another place gives the same record."""
        facts = [error.what]
        facts += [f"expected {error.expected}"] if error.expected is not None else []
        facts += [f"got {error.got}"] if error.got is not None else []
        reason = "; ".join(facts) + more
        # For an unusable transcript, the error's `where` is only the text.
        is_text = isinstance(error, UnitsError)
        self.places[what] = f"{what}, {error.where}" if is_text else str(error.where or what)
        self.add(what, reason)

    def include(self, other: Dropped) -> None:
        """Append what `other` recorded of the audio of a file."""
        self.items += other.items
        self.notes += other.notes
        self.places |= other.places

    def note_rate(self, source_rate_hz: int, expected_rate_hz: int) -> None:
        """Count a file that was resampled because its sample rate was not the expected one."""
        if source_rate_hz != expected_rate_hz:
            self.notes[f"resampled from {source_rate_hz} Hz"] += 1

    def note_channels(self, channels: int) -> None:
        """Count a file whose channels, possibly with different speakers, were averaged."""
        if channels > 1:
            self.notes[f"{AVERAGED} {channels} channels"] += 1

    def note_accents(self, text: str, normal_text: str) -> None:
        """Count a transcript that lost accents or other marks in normalisation, which is harmless only in
        English."""
        if letters_of(text) - {*normal_text}:
            self.notes["with accents removed"] += 1

    def note_tags(self, what: str, text: str) -> None:
        """Count a transcript with words in brackets, which are kept as if they were spoken."""
        if _TAG.search(text):
            self.notes["with words in brackets"] += 1
            self.tagged = self.tagged or f"{what}: {shorten(' '.join(text.split()))}"

    def note_spoken(self, what: str, text: str, spoken: str) -> None:
        """Count a transcript that is used as it is spoken instead of as it is written."""
        before, after = (" ".join(words.split()) for words in (text, spoken))
        if before != after:
            self.notes["rewritten as spoken"] += 1
            self.rewritten = self.rewritten or f"{what}: {shorten(before)!r} → {shorten(after)!r}"

    def note_digits(self, text: str) -> None:
        """Count a transcript that is left out, if it has digits."""
        self.with_digits += any(char.isdigit() for char in text)

    def advice(self) -> list[str]:
        """Messages on what to do about files passed over, tags, and audio in formats that are not read."""
        lines = [*self.hints]
        if self.tagged:
            lines.append(
                "words in brackets are treated as spoken words; if they are tags, remove them from "
                f"the transcripts: {self.tagged}"
            )
        if self.rewritten:
            lines.append(f"rewritten as spoken: {self.rewritten}")
        if self.with_digits:
            lines.append(
                f"{self.with_digits} of the transcripts left out have digits; --numbers and --spoken_forms "
                'write them as words (--numbers as English ones): docs/your-data.md, "Numbers, abbreviations '
                'and tags"'
            )
        if unread := [what for what, reason in self.items if reason.startswith(NOT_READ)]:
            lines.append(conversion(self.places.get(unread[0], unread[0])))
        return lines

    def kinds(self) -> list[Kind]:
        """The reasons, most frequent first, each with a count and an example."""
        kinds = Reasons(self.items).commonest()
        return [kind._replace(what=self.places.get(kind.what, kind.what)) for kind in kinds]

    def as_json(self) -> dict[str, object]:
        """The content of dropped.json."""
        return {
            "count": len(self.items),
            "dropped": [{"file": what, "reason": reason} for what, reason in self.items],
        }


def conversion(name: str) -> str:
    """A message with the command that converts all files in a folder with this one's extension."""
    end = PurePath(name).suffix
    command = f'for f in *{end}; do ffmpeg -i "$f" -ar 16000 -ac 1 "${{f%{end}}}.flac"; done'
    return f"to convert all {end} files in a folder, run this there: {command}"


def letters_of(text: str) -> set[str]:
    """The letters beyond a-z, and their marks, as the setting `letters` takes them."""
    # A lower-cased Turkish İ is often an i with a combining dot, which is not a mark of the language.
    composed = unicodedata.normalize("NFKC", text.lower().replace("i\u0307", "i"))
    found = set()
    for char in {*composed}:
        with contextlib.suppress(UnitsError):
            found |= {*check_letters(char)} if unicodedata.category(char)[0] in "LM" else set()
    return found


def letters_hint(found: set[str], own: str) -> str:
    """A message with the setting that keeps the letters found in addition to a language's `own`; empty if it
    would not help."""
    useful = found - {*own} and len(found) <= _MOST_LETTERS
    return f"if the language has these letters: --letters {''.join(sorted(found | {*own}))}" if useful else ""
