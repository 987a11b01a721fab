"""The header of a label shard: everything its labels depend on, and the errors if it differs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from kdasr.errors import DamagedLabelsError, LabelMismatchError, SoftLabelError
from kdasr.interfaces import BLANK_ID
from kdasr.soft_labels.codec_base import Codec
from kdasr.soft_labels.codecs import make_codec
from kdasr.soft_labels.container import FORMAT_VERSION, canonical_json


@dataclass(frozen=True, slots=True)
class Header:
    """What the labels are, as stored in every shard.

    Attributes:
        teacher: the teacher's name, for people.
        teacher_hash: sha256 of the teacher's weights.
        units_hash: hash of the units (tokenizer).
        vocab_size: classes including blank.
        feature_hash: hash of the teacher's input features.
        frame_shift_ms: time between two feature frames.
        subsampling: feature frames for each label frame.
        codec: name of the codec.
        codec_params: its parameters.
        audio_file: name of the audio shard.
        audio_sha256: its sha256.
        blank_id: always 0.
        temperature: always 1.0: log-probs are stored untempered.
        settings: whatever else the labels depend on (precision, windows, filters).
    """

    teacher: str
    teacher_hash: str
    units_hash: str
    vocab_size: int
    feature_hash: str
    frame_shift_ms: float
    subsampling: int
    codec: str
    codec_params: dict[str, Any]
    audio_file: str
    audio_sha256: str
    blank_id: int = BLANK_ID
    temperature: float = 1.0
    settings: dict[str, Any] = field(default_factory=dict)

    def make_codec(self) -> Codec:
        return make_codec(self.codec, self.codec_params)

    @property
    def config_hash(self) -> str:
        """sha256 of everything but the audio: shards of one labelling run share it."""
        content = asdict(self)
        del content["audio_file"], content["audio_sha256"]
        return hashlib.sha256(canonical_json({"version": FORMAT_VERSION, **content})).hexdigest()


#: What a mismatch in a header field means and what to do about it.
_REMEDIES = {
    "teacher_hash": "These labels come from another teacher: label with yours into another folder.",
    "audio_sha256": "Either the audio was prepared again after it was labelled: label it again. Or these are "
    "labels of another folder: name the one that was labelled.",
}


def check_header(header: Header, expect: Mapping[str, object], where: str) -> None:
    """Raise LabelMismatchError for the first field that does not have the expected value."""
    for name, wanted in expect.items():
        found = getattr(header, name)
        if found != wanted:
            raise LabelMismatchError(
                f"the soft labels have a different {name}",
                where=where,
                expected=wanted,
                got=found,
                fix=_REMEDIES.get(name, "Label again with the current settings."),
            )


def parse_header(content: dict[str, Any], where: str) -> Header:
    """The header from its JSON.

    Raises:
        SoftLabelError: a field is missing, unknown or of the wrong type, or the codec is unknown.
    """
    kinds = {"str": str, "int": int, "float": (int, float), "dict[str, Any]": dict}
    names = {f.name: kinds[str(f.type)] for f in fields(Header)}
    if set(content) != set(names):
        odd = sorted(set(content) ^ set(names))
        raise DamagedLabelsError(f"unknown or missing header fields: {', '.join(odd)[:200]}", where=where)
    for name, kind in names.items():
        if not isinstance(content[name], kind) or isinstance(content[name], bool):  # type: ignore[arg-type]
            raise DamagedLabelsError(f"header field {name} has the wrong type", where=where)
    header = Header(**content)
    if header.blank_id != BLANK_ID or header.temperature != 1.0:
        raise LabelMismatchError(
            "blank_id and temperature are fixed in this format", where=where, expected="0 and 1.0"
        )
    if header.subsampling < 1 or not 0 <= header.frame_shift_ms < math.inf:
        raise DamagedLabelsError(
            "subsampling or frame_shift_ms of the header is out of range",
            where=where,
            expected="1 or more, and 0 or more",
            got=f"{header.subsampling} and {header.frame_shift_ms}",
        )
    try:
        header.make_codec().layout(header.vocab_size)
    except SoftLabelError as error:
        raise error.told_of(where, fix="Label again, or use the version of kdasr that wrote them.") from error
    return header
