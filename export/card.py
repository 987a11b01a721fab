"""`model.json`: the card of an exported model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.errors import ModelError
from kdasr.features import (
    FFT_SIZE,
    FRAME_SHIFT_MS,
    HIGH_HZ,
    HOP_SAMPLES,
    LOG_MEL_FLOOR,
    LOW_HZ,
    NUM_MEL_BINS,
    POVEY_POWER,
    PREEMPHASIS,
    WINDOW_SAMPLES,
    feature_hash,
)
from kdasr.interfaces import BLANK_ID, StreamingModel
from kdasr.models import EXPORT_FORMAT
from kdasr.storage import commit_bytes
from kdasr.streaming import (
    TAIL_MS,
    WORD_PAUSE_S,
    TorchChunkModel,
    algorithmic_latency_ms,
    trained_chunks_ms,
)
from kdasr.text import BLANK_SYMBOL, WORD_START, Units

if TYPE_CHECKING:
    from export.formats import Format

CARD_FILE = "model.json"
CARD_VERSION = 1
# A card's names for its files. If only the folder is given, the first of these that exists is used.
PRECISIONS = ("float32", "int8")


def build_card(
    student: StreamingModel,
    units: Units,
    *,
    name: str,
    format: Format,
    figures: dict[str, Any],
) -> dict[str, Any]:
    """What a user of the files needs to know, and the figures measured at export.

    Args:
        format: the format of the files.
        figures: for each file written, `float32` or `int8`: file name, bytes, sha256, agreement, and the
            WER with the audio that it was measured on. The card's `refused`, still empty here, has for
            each file that was not written the name it would have had, the reason, and the same figures as
            far as they were measured.
    """
    frame_ms = FRAME_SHIFT_MS * student.subsampling
    return {
        "format": EXPORT_FORMAT,
        "version": CARD_VERSION,
        "name": name,
        "file_format": format.name,
        "student": {
            "class": f"{type(student).__module__}.{type(student).__qualname__}",
            "config": _config(student),
            "weights_sha256": format.facts["weights_sha256"],
            "parameters": sum(p.numel() for p in student.parameters())
            if hasattr(student, "parameters")
            else None,
            "state_floats": int(format.facts["state_floats"]),
        },
        "units": {
            "count": units.vocab_size,
            "blank": BLANK_SYMBOL,
            "blank_id": BLANK_ID,
            "word_mark": WORD_START,
            "word_pause_s": WORD_PAUSE_S,
            "hash": units.hash,
        },
        "streaming": {
            "shift_feature_frames": student.shift,
            "window_feature_frames": student.window,
            "chunk_ms": student.chunk_frames * frame_ms,
            "trained_chunks_ms": trained_chunks_ms(student),
            "lookahead_ms": student.lookahead_frames * frame_ms,
            "output_frame_ms": frame_ms,
            "latency_ms": algorithmic_latency_ms(TorchChunkModel(student)),
            "tail_ms": TAIL_MS,
        },
        "features": _features(),
        "metadata": format.facts,
        "files": figures,
        "refused": {},
        "run": format.run,
    }


def _features() -> dict[str, Any]:
    """The definition of the features in `kdasr.features`, for other implementations."""
    return {
        "kind": "Kaldi fbank, natural log, no normalisation",
        "sample_rate_hz": SAMPLE_RATE_HZ,
        "samples": "mono, float, [-1, 1]",
        "mel_bins": NUM_MEL_BINS,
        "low_hz": LOW_HZ,
        "high_hz": HIGH_HZ,
        "window_ms": 1000 * WINDOW_SAMPLES // SAMPLE_RATE_HZ,
        "window_samples": WINDOW_SAMPLES,
        "hop_samples": HOP_SAMPLES,
        "window": "povey",
        "povey_power": POVEY_POWER,
        "preemphasis": PREEMPHASIS,
        "fft_size": FFT_SIZE,
        "log_mel_floor": LOG_MEL_FLOOR,
        "remove_dc": True,
        "dither": 0,
        "snip_edges": False,
        "hash": feature_hash(),
    }


def _config(student: StreamingModel) -> dict[str, Any]:
    """The student's arguments, with its present chunk size instead of the original one."""
    config = dict(student.config)
    return {**config, "chunk_frames": student.chunk_frames} if "chunk_frames" in config else config


def write_card(card: dict[str, Any], path: Path) -> None:
    """Writes the card, which must come last: its presence marks a complete export."""
    commit_bytes(path, (json.dumps(card, indent=2, ensure_ascii=False) + "\n").encode())


def read_export_card(folder: Path) -> dict[str, Any] | None:
    """The card of the export in `folder`; None if there is none. The files that it names may be missing:
    an export may be distributed with its int8 file alone, and its card with the facts of that alone.

    Raises:
        ModelError: there is a card, but it cannot be read, is of another version, or names no file.
    """
    path = folder / CARD_FILE
    try:
        card: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if card.get("format") != EXPORT_FORMAT:
            return None  # the card of a model folder
        files = {name: (facts["file"], facts["sha256"]) for name, facts in card["files"].items()}
        known = card["version"] == CARD_VERSION and not files.keys().isdisjoint(PRECISIONS)
        if known and isinstance(card["student"]["weights_sha256"], str):
            return card
        found = f"version {card['version']} with the files {sorted(files)}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        found = repr(error)
    raise ModelError(
        "the card of the export cannot be used",
        where=path,
        expected=f"{EXPORT_FORMAT} version {CARD_VERSION} with the names and hashes of its files",
        got=found,
        fix="Export the model again, or copy the folder again.",
    )


def refusal(path: Path) -> str | None:
    """Why an export has no file at `path`; None if there is one, or no card that gives a reason.

    Raises:
        ModelError: the card cannot be used.
    """
    card = None if path.exists() else read_export_card(path.parent)
    if card is None:
        return None
    refused = {facts["file"]: str(facts["reason"]) for facts in card.get("refused", {}).values()}
    if path.name in refused:
        return refused[path.name]
    if path.name in {facts["file"] for facts in card["files"].values()} or "float32" not in card["files"]:
        return None  # written, but missing now: every export writes float32
    return f"{path.name} was not requested at export"


def figures_text(figures: dict[str, Any]) -> str:
    """The card's figures for one file, in a line."""
    agreement = figures.get("parity_with_torch") or figures["agreement_with_torch"]
    parts = [
        f"{figures['bytes'] / 1e6:.2f} MB",
        f"log-probs within {agreement['max_abs_difference']:.2g} of torch",
        f"{agreement['same_argmax']:.1%} of frames with the same class",
    ]
    if figures["wer_percent"] is None:
        parts.append(f"WER {figures['wer_data']}")
    else:
        rise, data = figures.get("wer_rise_points"), figures["wer_data"]
        parts.append(
            f"WER {figures['wer_percent']:.2f} %"
            + (f" ({rise:+.2f})" if rise is not None else "")
            + f" over the {data['words']} words of {', '.join(data['folders'])}"
        )
    return ", ".join(parts)
