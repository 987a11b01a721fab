"""Labels over a teacher's units in, sequence-level labels over a student's units out.

    stored posteriors → best path → text in the teacher's units → normalised → the student's units

The route for a student with other units than its teacher (Kim & Rush 2016, section 3.2, with one
hypothesis): what is kept of the teacher is what it heard, not its doubts and not its times. A text that
the student's units cannot spell keeps its place with the reason, as what failed does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from kdasr.errors import ConfigError, UnitsError
from kdasr.interfaces import SoftLabels
from kdasr.labelling.audio_source import list_audio, local_copy
from kdasr.labelling.filters import confidence
from kdasr.labelling.out_folder import refuse_audio, write_labels
from kdasr.manifest import read_manifest
from kdasr.soft_labels import Failure, Header, LabelFolder, LabelShard, TopK
from kdasr.soft_labels.runs import best_classes
from kdasr.storage import Place, locate
from kdasr.symbols import BLANK_ID
from kdasr.teachers.base import spell
from kdasr.text import Units, load_units, normalise

# Of a path that spells a transcript, the unit and blank.
_CODEC = TopK(k=2)
_LEAST_SCORE = 1e-30


@dataclass(frozen=True)
class Retokenised:
    """What became of the labels.

    Attributes:
        utterances: that have labels now.
        failed: key and reason of each that has none.
    """

    utterances: int
    failed: dict[str, str]


def retokenise(
    *, audio: Place, labels: Place, out: Place, units: Units, overwrite: bool = False
) -> Retokenised:
    """Write what the teacher heard, spelled in `units`, to `out`.

    Args:
        audio: the audio shards that were labelled.
        labels: their labels, with the teacher's units beside them.
        out: another folder.
        units: the student's.
        overwrite: replace what was made of other labels, or in other units.

    Raises:
        ConfigError: `out` is `labels` or holds audio.
        UnitsError: the teacher's units are not beside its labels.
        SoftLabelError: labels are missing, damaged or of other audio, or `out` holds others.
    """
    if str(locate(labels)) == str(locate(out)):
        raise ConfigError("retokenised labels need a folder of their own", where=str(out))
    refuse_audio(out)
    heard_in, folder = load_units(labels), LabelFolder(labels)
    labelled, failed = 0, dict[str, str]()
    for place in list_audio(audio):
        with local_copy(place, manifest_only=True) as path:
            shard = read_manifest(path)
        found = folder.shard_for(Path(shard.path.name), shard.sha256)
        if found.header.units_hash != heard_in.hash:
            raise UnitsError(
                "the units beside the labels are not those of the labels",
                where=str(labels),
                expected=found.header.units_hash,
                got=heard_in.hash,
                fix="Label again.",
            )
        items = _items(found, heard_in, units)
        manifest = write_labels(out, shard, _header(found.header, units), items, overwrite=overwrite)
        labelled += manifest["labelled"]
        failed |= dict(manifest["failed"])
    units.save(out)
    return Retokenised(labelled, failed)


def heard_text(labels: SoftLabels, units: Units) -> str:
    """What the best path over stored posteriors says."""
    best = best_classes(labels).tolist()
    changed = [unit for unit, before in zip(best, [BLANK_ID, *best], strict=False) if unit != before]
    return units.decode([unit for unit in changed if unit != BLANK_ID])


def _items(found: LabelShard, heard_in: Units, units: Units) -> Iterator[tuple[str, SoftLabels | Failure]]:
    for key in found.keys:
        if key in found.failures:
            yield key, Failure(found.failures[key])
            continue
        labels = found.read(key)
        try:
            ids = units.encode(normalise(heard_text(labels, heard_in)))
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
