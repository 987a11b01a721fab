"""LibriSpeech and corpora of the same shape (mini LibriSpeech): each subset becomes a split.

    CORPUS/LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac       or CORPUS/SUBSET/...
    CORPUS/LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt       ID TRANSCRIPT

(Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books", ICASSP 2015.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.support.dropped import Dropped
from data_prep.support.settings import check_numbers
from kdasr.audio import SAMPLE_RATE_HZ, load_with_rate
from kdasr.errors import AudioError, ConfigError, CorpusError, UnitsError
from kdasr.interfaces import Utterance
from kdasr.manifest import KEY_PATTERN
from kdasr.text import normalise

NEEDS_CORPUS = True


@dataclass(frozen=True, slots=True)
class Settings:
    """What can be set.

    Attributes:
        subset: the subsets to write, such as train-clean-100; none: all that are found.
        unlabelled: those of them to write without transcripts.
        max_shard_utterances: utterances in one shard.
    """

    subset: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    max_shard_utterances: int = 500

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.subset and (unknown := sorted(set(self.unlabelled) - set(self.subset))):
            raise ConfigError(
                f"{', '.join(unknown)} is to be unlabelled but not among the subsets",
                where="unlabelled",
                expected=f"some of {', '.join(self.subset)}",
            )


def splits(settings: Settings, corpus: Path) -> tuple[str, ...]:
    """The subsets to write.

    Raises:
        CorpusError: the corpus has no subsets, or not those that are asked for.
    """
    found = sorted(_subsets(corpus))
    if not found:
        raise CorpusError(
            "this is not a LibriSpeech corpus",
            where=corpus,
            expected="LibriSpeech/SUBSET/SPEAKER/CHAPTER/*.flac with *.trans.txt",
            fix="Check --corpus: unpack the archives into it.",
        )
    if unknown := sorted({*settings.subset, *settings.unlabelled} - set(found)):
        raise CorpusError(
            f"there is no subset {', '.join(unknown)}", where=corpus, expected=f"some of {', '.join(found)}"
        )
    return settings.subset or tuple(found)


def scope(settings: Settings, corpus: Path, split: str) -> tuple[Settings, Path]:
    """A subset does not depend on which others there are."""
    unlabelled = (split,) if split in settings.unlabelled else ()
    return dataclasses.replace(settings, subset=(split,), unlabelled=unlabelled), _subsets(corpus)[split]


def prepare(
    settings: Settings, corpus: Path, *, split: str, seed: int, dropped: Dropped
) -> Iterator[Utterance]:
    """The utterances of one subset, chapter by chapter, sorted by path.

    Of an unlabelled subset the transcripts are not looked at.
    """
    labelled, seen = split not in settings.unlabelled, set[str]()
    for chapter in sorted(path for path in _subsets(corpus)[split].glob("*/*") if path.is_dir()):
        texts = _transcripts(chapter, corpus, dropped) if labelled else {}
        for path in sorted(chapter.glob("*.flac")):
            name, key = str(path.relative_to(corpus)), path.stem
            text = texts.pop(key, None)
            try:
                _check_key(key, seen)
                normal_text = _usable(text) if labelled else None
                samples, rate_hz = load_with_rate(path)
            except (AudioError, UnitsError, CorpusError) as error:
                dropped.add_error(name, error)
                continue
            seen.add(key)
            dropped.note_rate(rate_hz, SAMPLE_RATE_HZ)
            yield Utterance(key=key, samples=samples, text=normal_text, speaker=chapter.parent.name)
        for key in texts:
            dropped.add(f"{chapter.relative_to(corpus)}/{key}.flac", "transcript without audio")


def _check_key(key: str, seen: set[str]) -> None:
    if key in seen:
        raise CorpusError("the same key was found before")
    if not KEY_PATTERN.fullmatch(key):
        raise CorpusError("the name cannot be a key", expected=KEY_PATTERN.pattern)


def _usable(text: str | None) -> str:
    """The normalised transcript; an error says why there is none."""
    if text is None:
        raise CorpusError("audio without transcript")
    if not (normal_text := normalise(text)):
        raise CorpusError("an empty transcript")
    return normal_text


def _subsets(corpus: Path) -> dict[str, Path]:
    root = corpus / "LibriSpeech" if (corpus / "LibriSpeech").is_dir() else corpus
    return {path.name: path for path in root.iterdir() if path.is_dir() and _has_chapters(path)}


def _has_chapters(subset: Path) -> bool:
    return any(next(subset.glob(f"*/*/{kind}"), None) is not None for kind in ("*.trans.txt", "*.flac"))


def _transcripts(chapter: Path, corpus: Path, dropped: Dropped) -> dict[str, str]:
    """Key to transcript of one chapter."""
    texts: dict[str, str] = {}
    for path in sorted(chapter.glob("*.trans.txt")):
        for number, line in enumerate(path.read_bytes().splitlines(), start=1):
            where = f"{path.relative_to(corpus)}:{number}"
            key, _, text = line.decode("utf-8", errors="replace").strip().partition(" ")
            if not key:
                continue
            if key in texts:
                dropped.add(where, f"a second transcript of {key}")
            else:
                texts[key] = text
    return texts
