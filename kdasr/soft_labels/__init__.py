"""Soft labels: a teacher's posteriors in, a few bytes a frame on disk, and back.

    codecs      which classes of a posterior are kept, and how finely
    planes      frames to bytes and back
    container   the file of one shard
    shard       commit, open, verify; the folder beside the audio
    batch       padded tensors for training

The format is specified in docs/soft-labels.md.
"""

from kdasr.soft_labels.batch import pad_soft_labels
from kdasr.soft_labels.codecs import CODECS, Codec, Full, Sampled, TopK, TopP, make_codec
from kdasr.soft_labels.container import FORMAT_VERSION, Failure
from kdasr.soft_labels.planes import concatenate
from kdasr.soft_labels.shard import (
    Header,
    LabelFolder,
    LabelShard,
    check_header,
    label_file,
    manifest_of,
    open_label_shard,
    read_manifest,
    write_label_shard,
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
