"""LibriSpeech and corpora with the same layout (mini LibriSpeech): each subset becomes a split, or two.

    CORPUS/LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER-0000.flac       or CORPUS/SUBSET/...
    CORPUS/LibriSpeech/SUBSET/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt       ID TRANSCRIPT

(Panayotov et al., "LibriSpeech: an ASR corpus based on public domain audio books", ICASSP 2015.)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from data_prep.support.dropped import Dropped
from data_prep.support.listed import Limits, Listed, Reading, key_at, key_lines, whole_utterances
from data_prep.support.prepared import say
from data_prep.support.settings import check_language, check_numbers
from kdasr.errors import ConfigError, CorpusError
from kdasr.resampling import check_speeds

NEEDS_CORPUS = True
IN_PARALLEL = True
GENERATION = 1
HALVES = ("-a", "-b")
# Numbers of utterances in the published subsets.
_PUBLISHED = {
    "train-clean-100": 28_539,
    "train-clean-360": 104_014,
    "train-other-500": 148_688,
    "dev-clean": 2_703,
    "dev-other": 2_864,
    "test-clean": 2_620,
    "test-other": 2_939,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of this corpus.

    Attributes:
        subset: the subsets to write, such as train-clean-100; none: all that are found.
        unlabelled: those of them to write without transcripts.
        halved: those of them whose speakers are divided alternately into two splits SUBSET-a and
            SUBSET-b; for a corpus that has only one subset for development and test.
        speeds: every utterance is written once at each of these speeds, which also change the pitch (Ko
            et al. 2015); at speeds other than 1, the key ends in -sp and the percentage. For audio that
            a teacher will label: its labels would not fit a speed chosen in training.
        language: language of the speech, such as en, for filters; none: not stored.
        max_shard_utterances: utterances in one shard.
    """

    subset: tuple[str, ...] = ()
    unlabelled: tuple[str, ...] = ()
    halved: tuple[str, ...] = ()
    speeds: tuple[float, ...] = (1.0,)
    language: str | None = None
    max_shard_utterances: int = 500

    def __post_init__(self) -> None:
        check_numbers(self)
        check_language(self.language)
        for name in ("unlabelled", "halved"):
            if self.subset and (unknown := sorted(set(getattr(self, name)) - set(self.subset))):
                raise ConfigError(
                    f"{', '.join(unknown)} is not among the chosen subsets",
                    where=name,
                    expected=f"some of {', '.join(self.subset)}",
                )
        check_speeds(self.speeds)
        if len({key_at("", speed) for speed in self.speeds}) < len(self.speeds):
            raise ConfigError(
                "two speeds are equal when rounded to whole percents", where="speeds", got=list(self.speeds)
            )


def splits(settings: Settings, corpus: Path) -> tuple[str, ...]:
    """The subsets to write, with halves as separate splits; a line on stderr names incomplete ones.

    Raises:
        CorpusError: the corpus has no subsets, or not the requested ones.
    """
    folders = _subsets(corpus)
    found = sorted(folders)
    if not found:
        raise CorpusError(
            "this is not a LibriSpeech corpus",
            where=corpus,
            expected="LibriSpeech/SUBSET/SPEAKER/CHAPTER/*.flac with *.trans.txt",
            fix="Check --corpus: unpack the archives into it.",
        )
    if unknown := sorted({*settings.subset, *settings.unlabelled, *settings.halved} - set(found)):
        raise CorpusError(
            f"there is no subset {', '.join(unknown)}", where=corpus, expected=f"some of {', '.join(found)}"
        )
    names: list[str] = []
    for subset in settings.subset or tuple(found):
        _tell_if_not_whole(folders[subset])
        names += [subset + half for half in HALVES] if subset in settings.halved else [subset]
    return tuple(names)


def scope(settings: Settings, corpus: Path, split: str) -> tuple[Settings, Path]:
    """Only the subset's own settings and folder: it does not depend on other subsets."""
    subset = _subset_of(settings, split)
    own = dataclasses.replace(
        settings,
        subset=(subset,),
        unlabelled=(subset,) if subset in settings.unlabelled else (),
        halved=(subset,) if subset in settings.halved else (),
    )
    return own, _subsets(corpus)[subset]


def prepare(
    settings: Settings, corpus: Path, *, split: str, seed: int, dropped: Dropped, done: Mapping[str, int]
) -> Reading:
    """The utterances of one split, chapter by chapter, sorted by path.

    The transcripts of an unlabelled subset are not read.
    """
    subset = _subset_of(settings, split)
    labelled = subset not in settings.unlabelled
    chapters = _chapters(_subsets(corpus)[subset], split.removeprefix(subset))
    listed = _listed(settings, corpus, chapters, labelled, dropped)
    return whole_utterances(listed, dropped, Limits(), labelled=labelled, done=done, speeds=settings.speeds)


def _listed(
    settings: Settings, corpus: Path, chapters: list[Path], labelled: bool, dropped: Dropped
) -> Iterator[Listed]:
    for chapter in chapters:
        texts = _transcripts(chapter, corpus, dropped) if labelled else {}
        for path in sorted(chapter.glob("*.flac")):
            name, text = str(path.relative_to(corpus)), texts.pop(path.stem, None)
            yield Listed(
                name, path.stem, path, name, text, speaker=chapter.parent.name, language=settings.language
            )
        for key in texts:
            dropped.add(f"{chapter.relative_to(corpus)}/{key}.flac", "transcript without audio")


@functools.cache  # printed once, although a run also checks its corpora before the first stage
def _tell_if_not_whole(subset: Path) -> None:
    """Warn of an incomplete subset before hours are spent on it; no error, since it may be intended."""
    count = sum(1 for _ in subset.glob("*/*/*.flac"))
    published = _PUBLISHED.get(subset.name, count)
    if count != published:
        say(f"{subset}: {count:,} utterances instead of the published {published:,}: is it fully unpacked?")


def _subset_of(settings: Settings, split: str) -> str:
    halves = {subset + half: subset for subset in settings.halved for half in HALVES}
    return halves.get(split, split)


def _chapters(subset: Path, half: str) -> list[Path]:
    """The chapters of a subset, or of every other speaker in it."""
    speakers = sorted(path for path in subset.iterdir() if path.is_dir())
    if half:
        speakers = speakers[HALVES.index(half) :: len(HALVES)]
    return sorted(path for speaker in speakers for path in speaker.iterdir() if path.is_dir())


def _subsets(corpus: Path) -> dict[str, Path]:
    root = corpus / "LibriSpeech" if (corpus / "LibriSpeech").is_dir() else corpus
    return {path.name: path for path in root.iterdir() if path.is_dir() and _has_chapters(path)}


def _has_chapters(subset: Path) -> bool:
    return any(next(subset.glob(f"*/*/{kind}"), None) is not None for kind in ("*.trans.txt", "*.flac"))


def _transcripts(chapter: Path, corpus: Path, dropped: Dropped) -> dict[str, str]:
    """The transcripts of a chapter by key."""
    texts: dict[str, str] = {}
    for path in sorted(chapter.glob("*.trans.txt")):
        key_lines(path, str(path.relative_to(corpus)), "transcript", texts, dropped)
    return texts
