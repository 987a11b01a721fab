"""data_prep.prepare: any corpus, its settings, and what happens on the second call."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from data_prep import check, corpora, prepare, settings_of
from data_prep.support import prepared
from kdasr.errors import ConfigError, CorpusError, ShardError
from kdasr.manifest import PREPARED
from kdasr.shards import list_shards, write_shards
from kdasr.storage import locked
from tests.data_prep.fakes import bytes_below, make_librispeech, read_folder, record_of, write_tone

SHORT = {"labelled_minutes": 0.1, "unlabelled_minutes": 0.1, "dev_minutes": 0.1, "test_minutes": 0.1}


def test_the_corpora_are_found() -> None:
    assert {"synth", "fsdd", "librispeech", "folder"} <= set(corpora())
    assert "support" not in corpora()


@pytest.mark.parametrize("name", corpora())
def test_every_corpus_keeps_the_contract(name: str) -> None:
    module = importlib.import_module(corpora()[name])
    assert isinstance(module.NEEDS_CORPUS, bool)
    assert module.GENERATION >= 1
    assert list(inspect.signature(module.splits).parameters) == ["settings", "corpus"]
    parameters = list(inspect.signature(module.prepare).parameters)
    assert parameters == ["settings", "corpus", "split", "seed", "dropped", "done"]
    assert list(inspect.signature(module.scope).parameters) == ["settings", "corpus", "split"]
    fields = [field.name for field in dataclasses.fields(module.Settings)]
    assert list(settings_of(name)) == fields
    documented = " ".join(kind.__doc__ or "" for kind in module.Settings.__mro__)
    for field in fields:
        assert f" {field}" in documented, f"{field} is not documented"


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"^nonesuch: unknown corpus; expected one of .*fsdd.*synth"):
        prepare("nonesuch", out=Path("unused"))
    with pytest.raises(ConfigError, match=r"unknown setting colour; expected one of .*labelled_minutes"):
        prepare("synth", out=Path("unused"), colour="red")


def test_a_corpus_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fsdd needs a corpus folder.*--corpus DIR"):
        prepare("fsdd", out=tmp_path)
    with pytest.raises(CorpusError, match="absent: the corpus folder is missing"):
        prepare("fsdd", corpus=tmp_path / "absent", out=tmp_path)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_librispeech(tmp_path / "corpus")


def test_the_second_call_redoes_nothing(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare("librispeech", corpus=corpus, out=out)
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare("librispeech", corpus=corpus, out=out) == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == stamps
    assert first["dev-clean-2"] == [out / "dev-clean-2" / "shard-000000.tar"]


def test_the_corpus_may_lie_elsewhere_and_the_bytes_are_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        corpus = make_librispeech(tmp_path / name / "corpus")
        (corpus / "LibriSpeech/dev-clean-2/84/121/84-121-0001.flac").write_bytes(b"")
        prepare("librispeech", corpus=corpus, out=tmp_path / name / "out")
    one, two = bytes_below(tmp_path / "one" / "out"), bytes_below(tmp_path / "two" / "out")
    assert one == two
    assert len(one) == 8


def test_the_record_says_what_was_made(corpus: Path, tmp_path: Path) -> None:
    (tar,) = prepare("librispeech", corpus=corpus, out=tmp_path / "out", subset="dev-clean-2")["dev-clean-2"]
    record = record_of(tar.parent)
    assert (record["count"], record["seconds"], record["dropped"]) == (2, 1.1, 0)
    assert record["source"]["settings"]["subset"] == ["dev-clean-2"]
    assert record["source"]["files"]["count"] == 3
    assert not (tar.parent / "preparing.json").exists()


@pytest.mark.parametrize(
    "damage", ["truncate", "delete", "delete_manifest", "damage_manifest", "delete_record"]
)
def test_what_is_damaged_is_made_again(corpus: Path, tmp_path: Path, damage: str) -> None:
    prepare("librispeech", corpus=corpus, out=tmp_path)
    before = bytes_below(tmp_path)
    tar = tmp_path / "train-clean-5" / "shard-000000.tar"
    match damage:
        case "truncate":
            tar.write_bytes(tar.read_bytes()[:5000])
        case "delete":
            tar.unlink()
        case "delete_manifest":
            tar.with_suffix(".json").unlink()
        case "damage_manifest":
            tar.with_suffix(".json").write_text("{")
        case "delete_record":
            (tar.parent / "prepared.json").rename(tar.parent / "preparing.json")
    prepare("librispeech", corpus=corpus, out=tmp_path)
    assert bytes_below(tmp_path) == before


def test_other_settings_are_refused_and_named(corpus: Path, tmp_path: Path) -> None:
    prepare("librispeech", corpus=corpus, out=tmp_path / "out")
    before = bytes_below(tmp_path / "out")
    with pytest.raises(
        ConfigError,
        match=r"train-clean-5: .*from other data or with other settings; expected .*unlabelled=\['train",
    ):
        prepare("librispeech", corpus=corpus, out=tmp_path / "out", unlabelled="train-clean-5")
    with pytest.raises(ConfigError, match=r"expected seed=2; got seed=1\. Choose another folder"):
        prepare("librispeech", corpus=corpus, out=tmp_path / "out", seed=2)
    write_tone(corpus / "LibriSpeech/dev-clean-2/84/121/84-121-0009.flac", 0.5)
    with pytest.raises(ConfigError, match="dev-clean-2: the corpus has changed since.*: 3 files .*4 files"):
        prepare("librispeech", corpus=corpus, out=tmp_path / "out")
    assert bytes_below(tmp_path / "out") == before


def test_what_an_older_release_made_is_not_taken_for_finished(corpus: Path, tmp_path: Path) -> None:
    (tar,) = prepare("librispeech", corpus=corpus, out=tmp_path, subset="dev-clean-2")["dev-clean-2"]
    record = record_of(tar.parent)
    record["source"]["generation"] -= 1
    (tar.parent / "prepared.json").write_text(json.dumps(record))
    with pytest.raises(ConfigError, match=r"dev-clean-2: .*older release.*got generation 0\. Delete"):
        prepare("librispeech", corpus=corpus, out=tmp_path, subset="dev-clean-2")


def test_a_subset_may_be_added_later(corpus: Path, tmp_path: Path) -> None:
    prepare("librispeech", corpus=corpus, out=tmp_path / "out", subset="dev-clean-2")
    before = bytes_below(tmp_path / "out" / "dev-clean-2")
    write_tone(corpus / "LibriSpeech/train-clean-5/19/198/19-198-0009.flac", 0.5)
    assert list(prepare("librispeech", corpus=corpus, out=tmp_path / "out")) == [
        "dev-clean-2",
        "train-clean-5",
    ]
    assert bytes_below(tmp_path / "out" / "dev-clean-2") == before


def test_an_unfinished_folder_of_other_settings_is_made_afresh(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    prepare("librispeech", corpus=corpus, out=out, max_shard_utterances=1)
    folder = out / "train-clean-5"
    (folder / "prepared.json").rename(folder / "preparing.json")
    (folder / "shard-000007.tar.tmp").write_bytes(b"half")
    with pytest.raises(ShardError, match="not completely prepared"):
        list_shards(folder)
    (out / "dev-clean-2" / "prepared.json").unlink()
    for path in (out / "dev-clean-2").iterdir():
        path.unlink()
    capsys.readouterr()
    prepare("librispeech", corpus=corpus, out=out)
    told = capsys.readouterr().err
    assert "train-clean-5: 4 finished shards replaced" in told
    assert "because the interrupted run differed in max_shard_utterances" in told
    names = ["dropped.json", "prepared.json", "shard-000000.json", "shard-000000.tar"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert len(read_folder(folder)) == 4


def test_foreign_shards_are_left_alone(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "train-clean-5"
    write_shards(read_folder_of(corpus, tmp_path), folder)
    before = bytes_below(folder)
    with pytest.raises(ConfigError, match=r"train-clean-5: .*not written by `kdasr prepare`"):
        prepare("librispeech", corpus=corpus, out=tmp_path)
    assert bytes_below(folder) == before


def read_folder_of(corpus: Path, tmp_path: Path) -> list[object]:
    prepare("librispeech", corpus=corpus, out=tmp_path / "other", subset="dev-clean-2")
    return list(read_folder(tmp_path / "other" / "dev-clean-2"))


def test_shards_may_be_written_into_the_corpus(corpus: Path) -> None:
    first = prepare("librispeech", corpus=corpus, out=corpus / "shards")
    assert prepare("librispeech", corpus=corpus, out=corpus / "shards") == first


def test_a_transcript_that_cannot_be_used_is_named_by_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (("a", "one"), ("b", "1\n")):
        write_tone(tmp_path / f"in/{name}.wav", 0.5)
        (tmp_path / f"in/{name}.txt").write_text(text)
    prepare("folder", corpus=tmp_path / "in", out=tmp_path / "out", transcripts=True)
    assert r"  left out: b.wav, text '1\n': the character '1'" in capsys.readouterr().err


def test_a_second_preparation_of_a_folder_is_refused_while_the_first_goes_on(tmp_path: Path) -> None:
    write_tone(tmp_path / "in/a.wav", 0.5)
    split = tmp_path / "out/unlabelled"
    split.mkdir(parents=True)
    with (
        locked(split),
        pytest.raises(ConfigError, match=r"another `kdasr prepare` is writing to this folder"),
    ):
        prepare("folder", corpus=tmp_path / "in", out=tmp_path / "out")
    assert list(split.iterdir()) == []
    written = prepare("folder", corpus=tmp_path / "in", out=tmp_path / "out")
    with locked(split):  # of what is finished nothing is written
        assert prepare("folder", corpus=tmp_path / "in", out=tmp_path / "out") == written


def test_a_second_call_that_sees_a_split_completed_does_not_make_the_first_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def commit(path: Path, fields: dict[str, object]) -> None:
        real(path, fields)
        if path.name == PREPARED:
            monkeypatch.undo()
            others.append(prepare("folder", corpus=tmp_path / "in", out=tmp_path / "out"))

    write_tone(tmp_path / "in/a.wav", 0.5)
    real, others = prepared._commit, list[object]()
    monkeypatch.setattr(prepared, "_commit", commit)
    assert prepare("folder", corpus=tmp_path / "in", out=tmp_path / "out") == others.pop()
    assert list_shards(tmp_path / "out/unlabelled")


def test_shards_are_not_mixed_with_the_corpus(corpus: Path) -> None:
    before = bytes_below(corpus)
    with pytest.raises(ConfigError, match=r"is the corpus folder itself\. Choose another .*/shards"):
        prepare("librispeech", corpus=corpus, out=corpus / "LibriSpeech" / "..")
    with pytest.raises(ConfigError, match="is the corpus folder itself"):
        check("librispeech", corpus=corpus, out=corpus)
    assert bytes_below(corpus) == before


def test_the_summary_counts_what_happened(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chapter = corpus / "LibriSpeech/dev-clean-2/84/121"
    write_tone(chapter / "84-121-0000.flac", 0.5, 44_100)
    (chapter / "84-121-0001.flac").write_bytes(b"")
    prepare("librispeech", corpus=corpus, out=tmp_path / "out", subset="dev-clean-2")
    said = capsys.readouterr().err
    assert "dev-clean-2: 1 utterance, 0.5 s, 1 shard; " in said
    assert "1 left out (see dropped.json)" in said
    assert "1 resampled from 44100 Hz" in said
    record = record_of(tmp_path / "out" / "dev-clean-2")
    assert record["notes"] == {"resampled from 44100 Hz": 1}
    dropped = record_of(tmp_path / "out" / "dev-clean-2", "dropped.json")
    assert dropped["count"] == 1
    assert dropped["dropped"][0]["file"].endswith("84-121-0001.flac")


def test_audio_beyond_full_scale_is_clipped_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    tone = np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    for name, peak in (("loud", 1.3), ("full", 1.0), ("faint", 0.1)):
        soundfile.write(tmp_path / "in" / f"{name}.wav", tone * peak, 16_000, subtype="FLOAT")
    shards = prepare("folder", corpus=tmp_path / "in", out=tmp_path / "out")
    assert "1 clipped at full scale" in capsys.readouterr().err
    (split,) = shards
    peaks = {one.key: float(np.abs(one.samples).max()) for one in read_folder(tmp_path / "out" / split)}
    assert sorted(peaks.values()) == pytest.approx([0.1, 1.0, 1.0], abs=1e-3)


def test_a_folder_for_a_corpus_that_is_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"corpus: synth is synthesised and reads no corpus"):
        prepare("synth", corpus=tmp_path, out=tmp_path / "out", labelled_minutes=0.05)


def test_a_corpus_of_which_nothing_can_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(b"no")
    with pytest.raises(
        CorpusError, match=r"no utterance can be used; got 1 left out: \S*a\.wav: the audio cannot"
    ):
        prepare("folder", corpus=tmp_path / "in", out=tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_named(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file where a folder should be")
    with pytest.raises(
        ConfigError, match=r"out/dev-clean-2: shards need a folder, but a file is in its place"
    ):
        prepare("librispeech", corpus=corpus, out=tmp_path / "out")


def test_numbers_and_lists_may_come_as_text(tmp_path: Path) -> None:
    prepare("synth", out=tmp_path, **{**SHORT, "labelled_minutes": "0.05"}, labelled_noise="pink,hum")
    source = json.loads((tmp_path / "labelled" / "prepared.json").read_text())["source"]
    assert source["settings"]["labelled_minutes"] == 0.05
    assert source["settings"]["labelled_noise"] == ["pink", "hum"]
