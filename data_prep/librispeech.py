"""LibriSpeech and corpora of the same shape (mini LibriSpeech): each subset becomes a split.

    CORPUS/LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac       or CORPUS/SUBSET/...
    CORPUS/LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt       ID TRANSCRIPT

(Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books", ICASSP 2015.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep.support.dropped import Dropped
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


def prepare(
    settings: Settings, corpus: Path, *, split: str, seed: int, dropped: Dropped
) -> Iterator[Utterance]:
    """The utterances of one subset, chapter by chapter, sorted by path."""
    seen: set[str] = set()
    for chapter in sorted(path for path in _subsets(corpus)[split].glob("*/*") if path.is_dir()):
        texts = _transcripts(chapter, corpus, dropped)
        for path in sorted(chapter.glob("*.flac")):
            text = texts.pop(path.stem, None)
            name = str(path.relative_to(corpus))
            if reason := _unusable(path.stem, text, seen):
                dropped.add(name, reason)
                continue
            try:
                samples, rate_hz = load_with_rate(path)
                normal_text = normalise(text or "")
            except (AudioError, UnitsError) as error:
                dropped.add_error(name, error)
                continue
            seen.add(path.stem)
            dropped.note_rate(rate_hz, SAMPLE_RATE_HZ)
            yield Utterance(
                key=path.stem,
                samples=samples,
                text=None if split in settings.unlabelled else normal_text,
                speaker=chapter.parent.name,
            )
        for key in texts:
            dropped.add(f"{chapter.relative_to(corpus)}/{key}.flac", "transcript without audio")


def _unusable(key: str, text: str | None, seen: set[str]) -> str:
    """Why an audio file is left out, or nothing."""
    if text is None:
        return "audio without transcript"
    if key in seen:
        return "the same key was found before"
    if not KEY_PATTERN.fullmatch(key):
        return f"the name is not {KEY_PATTERN.pattern}"
    return ""


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
            elif not text.strip():
                dropped.add(where, f"an empty transcript of {key}")
                texts[key] = ""
            else:
                texts[key] = text
    return texts
