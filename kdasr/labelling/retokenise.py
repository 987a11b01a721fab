"""Labels over a teacher's units in, sequence-level labels over a student's units out.

    stored posteriors → best path → text in the teacher's units → normalised → the student's units

This is for students whose units differ from their teacher's (Kim & Rush 2016, section 3.2, with one
hypothesis). It keeps the teacher's transcript, but neither its uncertainty nor its times. A text that the
student's units cannot spell is recorded as a failure with its reason.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from kdasr.errors import ConfigError, UnitsError
from kdasr.interfaces import SoftLabels
from kdasr.labelling.filters import confidence
from kdasr.labelling.heard import check_units, heard_text, labelled_shards
from kdasr.labelling.out_folder import enter, write_labels
from kdasr.soft_labels import Failure, Header, LabelShard, TopK
from kdasr.storage import Place, same_place
from kdasr.symbols import shorten
from kdasr.teachers.base import spell
from kdasr.text import Units, letters_in, load_units, normalise

# A path that spells a transcript has two classes per frame: the unit and blank.
_CODEC = TopK(k=2)
_LEAST_SCORE = 1e-30
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retokenised:
    """The result of `retokenise`.

    Attributes:
        utterances: number with labels in the student's units.
        failed: reasons by key of the other utterances.
    """

    utterances: int
    failed: dict[str, str]


def retokenise(
    *, audio: Place, labels: Place, out: Place, units: Units, overwrite: bool = False
) -> Retokenised:
    """Write what the teacher heard, spelled in `units`, to `out`.

    Args:
        audio: the audio shards that were labelled.
        labels: their labels, with the teacher's units in the same folder.
        out: another folder.
        units: the student's.
        overwrite: replace labels that were made from other labels or in other units.

    Raises:
        ConfigError: `out` is `labels` or holds audio.
        UnitsError: the folder of labels lacks the teacher's units, or has others.
        SoftLabelError: labels are missing, damaged or of other audio, or `out` holds other labels.
    """
    if same_place(labels, out):
        fix = "Choose another --out."
        raise ConfigError("retokenised labels need a folder of their own", where=str(out), fix=fix)
    enter(out)
    heard_in = load_units(labels)
    theirs, ours = letters_in(heard_in.symbols), letters_in(units.symbols)
    if lacking := "".join(letter for letter in theirs if letter not in ours):
        _log.warning(
            "letters that the student lacks lose their accents or are left out: %s", shorten(lacking)
        )
    labelled, failed = 0, dict[str, str]()
    for shard, found in labelled_shards(audio, labels):
        check_units(found, heard_in, labels)
        items = _items(found, heard_in, units)
        manifest = write_labels(out, shard, _header(found.header, units), items, overwrite=overwrite)
        labelled += manifest["labelled"]
        failed |= dict(manifest["failed"])
    units.save(out)
    return Retokenised(labelled, failed)


def heard_texts(audio: Place, labels: Place) -> Iterator[str]:
    """What the teacher heard in each utterance that has labels, normalised with the letters of its units.

    Raises:
        UnitsError: the teacher's units are not beside its labels.
        SoftLabelError: labels are missing, damaged or of other audio.
    """
    heard_in = load_units(labels)
    letters = letters_in(heard_in.symbols)
    for _, found in labelled_shards(audio, labels):
        check_units(found, heard_in, labels)
        for key in found.keys:
            if key not in found.failures:
                with contextlib.suppress(UnitsError):  # `retokenise` names it
                    yield normalise(heard_text(found.read(key), heard_in), letters)


def _items(found: LabelShard, heard_in: Units, units: Units) -> Iterator[tuple[str, SoftLabels | Failure]]:
    letters = letters_in(units.symbols)
    for key in found.keys:
        if key in found.failures:
            yield key, Failure(found.failures[key])
            continue
        labels = found.read(key)
        try:
            ids = units.encode(normalise(heard_text(labels, heard_in), letters))
        except UnitsError as error:
            yield key, Failure(f"cannot be spelled in the student's units: {error.what}")
            continue
        if not ids:
            yield key, Failure("the teacher heard no words")
            continue
        score = math.log(max(confidence(labels).best_path, _LEAST_SCORE))
        yield key, _CODEC.encode(spell(ids, score, units.vocab_size), key)


def _header(header: Header, units: Units) -> Header:
    teacher = {**header.settings.get("teacher", {}), "level": "sequence"}
    return replace(
        header,
        units_hash=units.hash,
        vocab_size=units.vocab_size,
        frame_shift_ms=0.0,
        subsampling=1,
        codec=_CODEC.name,
        codec_params=_CODEC.params,
        settings={**header.settings, "teacher": teacher, "heard_in_units": header.units_hash},
    )
