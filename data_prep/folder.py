"""Any folder of audio files: the split `unlabelled` or, with the transcripts beside them, `labelled`.

wav, flac, ogg, opus and mp3 files are found in all subfolders; hidden ones are skipped. A key is
made from the path within the folder, so adding a file changes no other key. The transcript of
NAME.wav is the whole of NAME.txt.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.support.dropped import Dropped, conversion
from data_prep.support.files import files_below
from data_prep.support.listed import (
    Limits,
    Listed,
    Reading,
    channels_in,
    key_of,
    of_part,
    segments,
    whole_utterances,
)
from data_prep.support.lists import BY_FILE, files_of, parts_of, tell_shares
from data_prep.support.prepared import Files, say
from data_prep.support.settings import AudioSettings
from data_prep.support.spoken import spoken_form
from kdasr.audio import NOT_READ, OTHER_AUDIO, Cut
from kdasr.errors import ConfigError, CorpusError

NEEDS_CORPUS = True
IN_PARALLEL = True
GENERATION = 2
EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
TEXT = ".txt"
_TEXTS = (TEXT, ".csv", ".json", ".jsonl", ".md", ".tsv", ".xml", ".yaml", ".yml")
_TIMED_TEXTS = (".srt", ".vtt", ".stm", ".ctm")
_MOST_SHOWN = 20
LABELLED = "labelled"
AVERAGE, EACH = "average", "each"


@dataclass(frozen=True, slots=True)
class Settings(AudioSettings):
    """The settings of this corpus.

    Attributes:
        transcripts: whether NAME.txt is the transcript of NAME.wav; files without one are left out.
        channels: average, or each: each channel of a file that has several is used by itself, as for calls
            with one speaker on each.
        held_out_share: share of the files with transcripts that go to labelled-dev, and again to
            labelled-test.
        max_seconds: longer files are cut into segments of at most this, or left out if they have
            transcripts; none: no limit.
        min_seconds: shorter files are left out.
        language: language of the speech, such as en or pt-BR, for filters; none: unknown.
    """

    transcripts: bool = False
    channels: str = AVERAGE

    def __post_init__(self) -> None:
        AudioSettings.__post_init__(self)
        if self.channels not in (AVERAGE, EACH):
            expected = f"{AVERAGE} or {EACH}"
            raise ConfigError(
                "the value cannot be used", where="--channels", expected=expected, got=self.channels
            )
        if self.transcripts and self.channels == EACH:
            raise ConfigError(
                "NAME.txt is the transcript of all channels together, not of each one",
                where="--channels",
                expected=f"{AVERAGE} with --transcripts true",
                got=EACH,
                fix="Write a list of JSON lines that name the channel (docs/your-data.md).",
            )
        if self.held_out_share and not self.transcripts:
            raise ConfigError(
                "only audio with transcripts can be held out",
                where="held_out_share",
                expected="--transcripts true",
            )
        if (self.numbers or self.spoken_forms) and not self.transcripts:
            raise ConfigError(
                "only transcripts can be rewritten as they are spoken",
                where="--numbers" if self.numbers else "--spoken_forms",
                expected="--transcripts true",
            )


def splits(settings: Settings, corpus: Path) -> tuple[str, ...]:
    """The one split, or labelled audio with its held-out parts.

    Raises:
        CorpusError: there is no audio file in the folder.
        ConfigError: a held-out part would be empty.
    """
    if next(_files(corpus, EXTENSIONS), None) is None:
        unread = next(_files(corpus, OTHER_AUDIO), None)
        raise CorpusError(
            "there is no audio in this folder",
            where=corpus,
            expected=f"files that end in {', '.join(EXTENSIONS)}",
            got=_counted(_others(corpus)) or None,
            fix=f"T{conversion(unread.name)[1:]}" if unread else None,
        )
    if not settings.transcripts:
        return ("unlabelled",)
    if not settings.held_out_share:
        return (LABELLED,)
    return parts_of(LABELLED, settings.held_out_share, list(_transcribed(settings, corpus, Dropped())))


def scope(settings: Settings, corpus: Path, split: str) -> tuple[Settings, Path | Files]:
    """All settings and the audio files; transcripts by their exact content."""
    texts = tuple(_files(corpus, (TEXT,))) if settings.transcripts else ()
    return settings, files_of(texts, list(_listed(settings, corpus, Dropped())))


def prepare(
    settings: Settings, corpus: Path, *, split: str, seed: int, dropped: Dropped, done: Mapping[str, int]
) -> Reading:
    """The files, sorted by folder and name; only one segment is in memory at a time."""
    limits = Limits(settings.min_seconds, settings.max_seconds)
    others = _counted(path for path in _others(corpus) if not path.name.lower().endswith(OTHER_AUDIO))
    first = split in ("unlabelled", LABELLED)
    if others and first:
        say(f"{split}: other files, ignored: {others}")
    if split == LABELLED and (timed := _counted(_files(corpus, _TIMED_TEXTS))):
        dropped.hints.append(
            f"to use time-stamped transcripts ({timed}), convert them to a list for kdasr prepare manifest: "
            'docs/your-data.md, "Subtitles and segment lists"'
        )
    if settings.held_out_share and first:
        say(f"{split}: {BY_FILE}")
        tell_shares(LABELLED, settings.held_out_share, list(_transcribed(settings, corpus, Dropped())))
    if not settings.transcripts:
        files = _listed(settings, corpus, dropped)
        return segments(_each(files) if settings.channels == EACH else files, dropped, limits, done)
    listed = _transcribed(settings, corpus, dropped if split == LABELLED else Dropped())
    mine = of_part(listed, settings.held_out_share, split.removeprefix(LABELLED))
    return whole_utterances(
        mine,
        dropped,
        limits,
        labelled=True,
        done=done,
        letters=settings.letters,
        spoken=spoken_form(settings),
    )


def _listed(settings: Settings, corpus: Path, dropped: Dropped) -> Iterator[Listed]:
    """The files to be read; audio in other formats is dropped."""
    for path in _files(corpus, (*EXTENSIONS, *OTHER_AUDIO)):
        name = str(path.relative_to(corpus))
        if not name.lower().endswith(EXTENSIONS):
            dropped.add(name, NOT_READ)
            continue
        yield Listed(name, key_of(name), path, name, language=settings.language)


def _each(listed: Iterable[Listed]) -> Iterator[Listed]:
    """The channels of files that have several, each by itself."""
    for one in listed:
        count = channels_in(one.path)
        for channel in range(count if count > 1 else 0):
            cut, name = Cut(channel=channel), f"{one.name}, channel {channel}"
            yield dataclasses.replace(one, name=name, key=key_of(one.recording, cut), cut=cut)
        if count < 2:
            yield one


def _transcribed(settings: Settings, corpus: Path, dropped: Dropped) -> Iterator[Listed]:
    """The files, each with the NAME.txt beside it, whose accents another system may have encoded differently;
    of two with the same NAME, only the first."""
    texts = {path.with_suffix(""): path for path in _files(corpus, (TEXT,))}
    composed = {_composed(stem): stem for stem in texts}
    used: dict[Path, str] = {}
    for one in _listed(settings, corpus, dropped):
        stem = one.path.with_suffix("")
        if stem not in texts:
            stem = composed.get(_composed(stem), stem)
        if stem in used:
            # The same recording in another format: it must not be in both training and test.
            dropped.add(one.name, f"the transcript is already used for {used[stem]}")
            continue
        if stem in texts:
            used[stem] = one.name
            text = texts[stem].read_bytes().decode("utf-8-sig", errors="replace")
            one = dataclasses.replace(one, text=text)
        yield one
    for stem, path in sorted(texts.items()):
        if stem not in used:
            dropped.add(str(path.relative_to(corpus)), "transcript without audio")


def _composed(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path))


def _others(corpus: Path) -> Iterator[Path]:
    """Files that may be audio but are not read."""
    return (path for path in _files(corpus, ("",)) if not path.name.lower().endswith((*EXTENSIONS, *_TEXTS)))


def _counted(paths: Iterable[Path]) -> str:
    """Files by extension, most frequent first: `120 .mkv, 4 .oga`."""
    counts = Counter(path.suffix.lower() or "without an extension" for path in paths).most_common()
    shown = ", ".join(f"{count} {extension}" for extension, count in counts[:_MOST_SHOWN])
    return shown + (", …" if counts[_MOST_SHOWN:] else "")


def _files(corpus: Path, extensions: tuple[str, ...]) -> Iterator[Path]:
    for path in files_below(corpus):
        if path.name.lower().endswith(extensions) and not path.name.startswith("."):
            yield path
