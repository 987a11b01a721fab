"""Soft labels: a teacher's posteriors, stored in a few bytes per frame and read back.

    codecs      which classes of a posterior are kept, and how precisely
    runs        utterances joined to one run of frames, and split again
    planes      frames to bytes and back
    container   the file of one shard
    header      everything that labels depend on
    shard       open and verify a shard; the folder of labels for a folder of audio
    commit      write a shard atomically
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
