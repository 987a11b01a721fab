"""Write a corpus as audio shards, in a folder for each of its splits.

    OUT/SPLIT/shard-000000.tar, shard-000000.json, ...    see kdasr/shards
    OUT/SPLIT/dropped.json     what was left out, and why
    OUT/SPLIT/prepared.json    what it was made from; written last, so that it marks a complete split

Each module of this folder is one corpus. It has

    Settings                            a frozen dataclass; every field is a setting of `kdasr prepare`
    NEEDS_CORPUS                        whether it reads a folder
    IN_PARALLEL                         whether `prepare` returns a Reading, which several processes can read
    GENERATION                          increased when the same settings give other audio than before
    splits(settings, corpus)            the names of its splits
    scope(settings, corpus, split)      the settings and the folder, or files, that this split depends on
    prepare(settings, corpus, *, split, seed, dropped, done)    its utterances, in a fixed order

`done` has the keys of utterances that are already written and their numbers of samples at 16 kHz, so that
a corpus can skip them; it may still yield them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from data_prep.support.settings import parse_settings
from kdasr.errors import ConfigError, CorpusError

__all__ = ["check", "corpora", "explained", "prepare", "settings_of"]

# Settings that older releases did not have, with the values that change nothing, which are not recorded: so
# older shards still match the same settings.
_LATER = {
    "audio_key": "audio_filepath",
    "channel_key": "channel",
    "channels": "average",
    "delimiter": None,
    "language": None,
    "letters": "",
    "numbers": None,
    "spoken_forms": None,
    "transcripts": False,
    "held_out_share": 0.0,
    "segment_seconds": None,
    "speaker_key": "speaker",
    "text_key": "text",
    "unlabelled_transcripts": False,
    "test_share": 1.0,
}


def corpora() -> dict[str, str]:
    """The modules of all corpora by name: the files of this folder."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {file.stem: f"{__name__}.{file.stem}" for file in files if file.stem != "__init__"}


def settings_of(name: str) -> dict[str, Any]:
    """The settings of a corpus with their defaults.

    Raises:
        ConfigError: there is no such corpus.
    """
    return dataclasses.asdict(_module_of(name).Settings())


def explained(name: str) -> str:
    """Help text: what a corpus must look like, and its settings with their defaults and meanings.

    Raises:
        ConfigError: there is no such corpus.
    """
    module, defaults = _module_of(name), settings_of(name)
    lines = [inspect.cleandoc(module.__doc__ or ""), "", "settings and their defaults:"]
    for names, meaning in _meanings(module.Settings):
        lines.append("  " + "  ".join(f"--{key} {_as_given(defaults[key])}" for key in names))
        lines += [f"        {line}" for line in meaning]
    return "\n".join(lines)


def _meanings(settings_class: type) -> Iterator[tuple[list[str], list[str]]]:
    """Groups of settings that are explained together, with their explanation; a corpus's own first."""
    for one in settings_class.__mro__:
        _, _, attributes = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \w)", attributes.rstrip()) if attributes else ():
            names, _, meaning = entry.strip().partition(": ")
            yield names.split(", "), [line.strip() for line in meaning.splitlines()]


def _as_given(value: Any) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "''"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def prepare(
    name: str, *, corpus: Path | None = None, out: Path, seed: int = 1, readers: int = 1, **settings: Any
) -> dict[str, list[Path]]:
    """Write every split of a corpus as shards to `out/SPLIT`; returns the tars of each split.

    The same corpus, settings and seed give the same bytes, whether this process reads the audio or, with
    more than one of `readers`, that many others do. A complete split is left as it is, and an
    unfinished one is completed; one made from something else is an error.

    Raises:
        ConfigError: an unknown corpus, an unknown or bad setting, or `out` is the corpus or was made with
            other settings.
        CorpusError: the corpus is missing or not as expected.
    """
    # Imported here: the command line imports this module for the names of corpora, and torch takes a second.
    from data_prep.support.ahead import Readers
    from data_prep.support.dropped import letters_hint
    from data_prep.support.prepared import Files, fingerprint_of, prepare_split, say
    from kdasr.devices import one_torch_thread

    if seed < 0:
        raise ConfigError("the value is out of range", where="seed", expected="0 or more", got=seed)
    module = _module_of(name)
    _check_readers(module, name, readers)
    parsed = parse_settings(module.Settings, settings, f"prepare {name}")
    corpus = _checked_corpus(module, name, corpus)
    _check_apart(corpus, out)
    shards, letters = {}, set[str]()
    # Utterances are too short for several threads: on a busy machine that is 5 x slower.
    with one_torch_thread(), Readers(readers) if readers > 1 else nullcontext() as pool:
        for split in module.splits(parsed, corpus):
            scope, files = module.scope(parsed, corpus, split)
            listed = files if isinstance(files, Files) else Files((), {})
            source = {
                "corpus": name,
                "generation": listed.generation or module.GENERATION,
                "split": split,
                "seed": seed,
                "settings": _recorded(scope, listed.unused),
                "files": fingerprint_of(files, without=Path(out)),
            }
            utterances = functools.partial(module.prepare, scope, corpus, split=split, seed=seed)
            shards[split] = prepare_split(
                utterances,
                Path(out) / split,
                source,
                max_utterances=parsed.max_shard_utterances,
                letters=letters,
                earlier=listed.earlier,
                readers=pool,
            )
    # Once for all splits: a small one may not contain all letters.
    if hint := letters_hint(letters, getattr(parsed, "letters", "")):
        say(hint)
    return shards


def check(
    name: str, *, corpus: Path | None = None, out: Path | None = None, readers: int = 1, **settings: Any
) -> None:
    """Check, before its turn, that `prepare` could begin with these settings.

    Raises:
        ConfigError, CorpusError: as `prepare`, as far as can be seen without reading audio.
    """
    module = _module_of(name)
    _check_readers(module, name, readers)
    parsed = parse_settings(module.Settings, settings, f"prepare {name}")
    corpus = _checked_corpus(module, name, corpus)
    module.splits(parsed, corpus)
    _check_apart(corpus, out)


def _check_readers(module: ModuleType, name: str, readers: int) -> None:
    if readers < 1:
        raise ConfigError("the value is out of range", where="readers", expected="1 or more", got=readers)
    if readers > 1 and not module.IN_PARALLEL:
        raise ConfigError(
            f"`prepare {name}` works in one process", where="readers", expected="1", got=readers
        )


def _check_apart(corpus: Path | None, out: Path | None) -> None:
    if corpus is not None and out is not None and Path(out).resolve() == corpus.resolve():
        fix = f"Choose another folder with --out; it may be inside the corpus: {corpus / 'shards'}."
        raise ConfigError("the output folder is the corpus folder itself", where=out, fix=fix)


def _recorded(settings: Any, unused: tuple[str, ...]) -> dict[str, Any]:
    """Settings after a round trip through JSON, as they are recorded: without those `unused`, and with a hash
    of the spoken forms instead of the file's name."""
    from kdasr.manifest import sha256_of  # the storage that it imports is for no command's start

    found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    if file := found.get("spoken_forms"):
        found["spoken_forms"] = f"sha256 {sha256_of(Path(file))[:16]}"
    return {
        name: value
        for name, value in found.items()
        if name not in unused and (name not in _LATER or value != _LATER[name])
    }


def _module_of(name: str) -> ModuleType:
    if name not in corpora():
        raise ConfigError("unknown corpus", where=name, expected=f"one of {', '.join(corpora())}")
    return importlib.import_module(corpora()[name])


def _checked_corpus(module: ModuleType, name: str, corpus: Path | None) -> Path | None:
    if not module.NEEDS_CORPUS and corpus is not None:
        raise ConfigError(
            f"{name} is synthesised and reads no corpus", where="corpus", expected="null", got=corpus
        )
    if not module.NEEDS_CORPUS:
        return None
    if corpus is None:
        raise ConfigError(f"{name} needs a corpus folder", fix="Add --corpus DIR.")
    if Path(corpus).is_file():
        fix = f"Give its folder, {Path(corpus).parent}; if that holds several lists, choose one with --split."
        raise CorpusError("this is a file, not a corpus folder", where=corpus, fix=fix)
    if not Path(corpus).is_dir():
        fix = "Check --corpus: it is the folder that holds the corpus."
        raise CorpusError("the corpus folder is missing", where=corpus, expected="a folder", fix=fix)
    return Path(corpus)
