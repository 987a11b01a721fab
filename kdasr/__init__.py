"""Distil a large speech recogniser into a small streaming one that runs on a device."""

from __future__ import annotations


def version() -> str:
    """kdasr's installed version; if it is not installed, a note of the checkout it runs from."""
    import importlib.metadata
    from pathlib import Path

    try:
        return importlib.metadata.version("kdasr")
    except importlib.metadata.PackageNotFoundError:
        return f"not installed, run from {Path(__file__).resolve().parents[1]}"
