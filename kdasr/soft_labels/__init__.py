"""Soft labels: a teacher's posteriors in, a few bytes a frame on disk, and back.

    codecs      which classes of a posterior are kept, and how finely
    runs        utterances joined to one run of frames, and cut again
    planes      frames to bytes and back
    container   the file of one shard
    header      what labels depend on
    shard       open and verify one; the folder beside the audio
    commit      write one, so that nobody ever sees half of it
    batch       padded tensors for training

The format is specified in docs/soft-labels.md.
"""

from kdasr.soft_labels.batch import pad_soft_labels
from kdasr.soft_labels.codec_base import Codec
from kdasr.soft_labels.codecs import CODECS, Full, Sampled, TopK, TopP, make_codec
from kdasr.soft_labels.commit import write_label_shard
from kdasr.soft_labels.container import FORMAT_VERSION, Failure
from kdasr.soft_labels.header import Header, check_header
from kdasr.soft_labels.runs import concatenate
from kdasr.soft_labels.shard import (
    LabelFolder,
    LabelShard,
    label_file,
    manifest_of,
    open_label_shard,
    read_manifest,
)

__all__ = [
    "CODECS",
    "FORMAT_VERSION",
    "Codec",
    "Failure",
    "Full",
    "Header",
    "LabelFolder",
    "LabelShard",
    "Sampled",
    "TopK",
    "TopP",
    "check_header",
    "concatenate",
    "label_file",
    "make_codec",
    "manifest_of",
    "open_label_shard",
    "pad_soft_labels",
    "read_manifest",
    "write_label_shard",
]
