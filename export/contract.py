"""The metadata of an exported ONNX file: what sherpa-onnx reads, and what kdasr adds.

Metadata values are strings. sherpa-onnx reads the first group and ignores the second; kdasr reads
both and refuses a file that lacks them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.packing import ENCODER_DIM, LEFT_CONTEXT_LEN, StateLayout
from kdasr.errors import ModelError
from kdasr.features import feature_hash
from kdasr.interfaces import StreamingModel

FORMAT = "kdasr-onnx"
WAVE_FORMAT = "kdasr-wave-onnx"
EXECUTORCH_FORMAT = "kdasr-executorch"
VERSION = "1"


@dataclass(frozen=True)
class ModelFacts:
    """What a runtime needs to know about a model; times are in feature frames (10 ms)."""

    window: int
    shift: int
    subsampling: int
    vocab_size: int
    units_hash: str
    weights_sha256: str
    feature_hash: str
    state_floats: int


def build_metadata(
    model: StreamingModel, layout: StateLayout, *, units_hash: str, weights_sha256: str
) -> dict[str, str]:
    """All metadata of the ONNX file for `model`."""
    sherpa = {
        "model_type": "zipformer2",
        "version": 1,
        "T": model.window,
        "decode_chunk_len": model.shift,
        "num_encoder_layers": 1,
        "encoder_dims": ENCODER_DIM,
        "query_head_dims": 1,
        "value_head_dims": 1,
        "num_heads": 1,
        "cnn_module_kernels": layout.kernel,
        "left_context_len": LEFT_CONTEXT_LEN,
    }
    sherpa_strings = {name: str(value) for name, value in sherpa.items()}
    own = own_metadata(model, layout, units_hash=units_hash, weights_sha256=weights_sha256)
    return {**sherpa_strings, "kdasr_format": FORMAT, **own}


def own_metadata(
    model: StreamingModel, layout: StateLayout, *, units_hash: str, weights_sha256: str
) -> dict[str, str]:
    """The metadata that every kdasr export has, whatever its format."""
    own = {
        "kdasr_version": VERSION,
        "T": model.window,
        "decode_chunk_len": model.shift,
        "subsampling": model.subsampling,
        "vocab_size": model.vocab_size,
        "units_hash": units_hash,
        "weights_sha256": weights_sha256,
        "feature_hash": feature_hash(),
        "state_floats": layout.num_floats,
    }
    return {name: str(value) for name, value in own.items()}


def read_metadata(metadata: dict[str, str], path: Path, format: str = FORMAT) -> ModelFacts:
    """The facts in a file's metadata.

    Raises:
        ModelError: the file is not from kdasr, is of another version, was made for other features,
            or lacks an entry.
    """
    fix = "Export the model again with this version of kdasr."
    if metadata.get("kdasr_format") != format:
        raise ModelError(
            "this is not a streaming model exported by kdasr",
            where=path,
            expected=f"kdasr_format = {format} in its metadata",
            got=f"these entries: {sorted(metadata) or 'none'}",
            fix=fix,
        )
    if metadata.get("kdasr_version") != VERSION:
        raise ModelError(
            "the model file has a different version",
            where=path,
            expected=VERSION,
            got=metadata.get("kdasr_version"),
            fix=fix,
        )
    try:
        facts = ModelFacts(
            window=int(metadata["T"]),
            shift=int(metadata["decode_chunk_len"]),
            subsampling=int(metadata["subsampling"]),
            vocab_size=int(metadata["vocab_size"]),
            units_hash=metadata["units_hash"],
            weights_sha256=metadata["weights_sha256"],
            feature_hash=metadata["feature_hash"],
            state_floats=int(metadata["state_floats"]),
        )
    except (KeyError, ValueError) as error:
        raise ModelError(
            "the metadata is incomplete or invalid", where=path, got=str(error), fix=fix
        ) from error
    if facts.feature_hash != feature_hash():
        raise ModelError(
            "the model was exported for different features",
            where=path,
            expected=feature_hash(),
            got=facts.feature_hash,
            fix=fix,
        )
    return facts
