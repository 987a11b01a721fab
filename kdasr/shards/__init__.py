"""WebDataset audio shards of utterances: write, verify, read.

    DIR/shard-000000.tar     KEY.flac KEY.json KEY.flac KEY.json ... (16 kHz mono, 16 bit)
    DIR/shard-000000.json    the manifest (kdasr/manifest.py), written last
    DIR/dropped.json         what `kdasr prepare` left out, and why
    DIR/prepared.json        what `kdasr prepare` made the folder from

A damaged tar can yield half of its members without any exception, so a tar is trusted only with its
manifest, and a tar without one is an unfinished shard. The manifest's byte offsets allow random
access; its checksum of each utterance detects damage when single utterances are read.

KEY.json has `key`, `duration` in seconds, `num_samples`, `sample_rate` and `speaker` (null: unknown); if
known, `text`, `language` and `source` (the audio file as named in the corpus); and, if the utterance is
part of that file, `offset`, the seconds before it.
"""

from kdasr.manifest import Shard, ShardEntry
from kdasr.shards.reader import (
    complete_shards,
    complete_tars,
    folder_problems,
    left_out_by_prepare,
    list_shards,
    open_shard,
    read_flac,
    read_metas,
    read_shard,
    read_texts,
    read_utterance,
    shard_stems,
)
from kdasr.shards.writer import Encoded, Placed, encode, write_shards

__all__ = [
    "Encoded",
    "Placed",
    "Shard",
    "ShardEntry",
    "complete_shards",
    "complete_tars",
    "encode",
    "folder_problems",
    "left_out_by_prepare",
    "list_shards",
    "open_shard",
    "read_flac",
    "read_metas",
    "read_shard",
    "read_texts",
    "read_utterance",
    "shard_stems",
    "write_shards",
]
