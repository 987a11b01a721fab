"""Speech in other languages, as a user's folder holds it: written texts that `prepare` reads with the
language's letters, and voices that are held out."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path

import pytest

from benchmarks.other_language import main
from data_prep import prepare


@pytest.mark.slow
@pytest.mark.parametrize(("language", "letters"), [("de", "äöüß"), ("tr", "çğıöşü")])
def test_texts_are_as_people_write_them_and_prepare_keeps_their_letters(
    language: str, letters: str, tmp_path: Path
) -> None:
    minutes = ["0.1", "0.1", "0.6", "0.05"]
    main([language, str(tmp_path / "corpus"), "--minutes", *minutes])
    rows = {
        split: list(csv.DictReader((tmp_path / f"corpus/{split}.tsv").open(encoding="utf-8"), delimiter="\t"))
        for split in ("test", "dev", "train")
    }
    texts = [row["sentence"] for row in rows["train"]]
    assert any(not unicodedata.is_normalized("NFC", text) for text in texts)
    assert any(text[0].isupper() for text in texts) and any(text[-1] in ".!…" for text in texts)
    voices = {split: {row["client_id"] for row in rows[split]} for split in rows}
    assert not voices["train"] & (voices["test"] | voices["dev"]) and not voices["test"] & voices["dev"]
    assert len(list((tmp_path / "corpus/recordings").glob("*.wav"))) >= 1
    prepare("table", corpus=tmp_path / "corpus", out=tmp_path / "shards", letters=letters)
    for split, listed in rows.items():
        record = json.loads((tmp_path / "shards" / split / "prepared.json").read_text("utf-8"))
        assert (record["count"], record["dropped"], record["notes"]) == (len(listed), 0, {})
    main([language, str(tmp_path / "again"), "--minutes", *minutes])
    for name in ("train.tsv", "clips/train 0002.wav"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "corpus" / name).read_bytes()
