"""Posteriors given that words of a lexicon were said, against all paths."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdasr.alignment import best_alignment, ctc_occupancy
from kdasr.decoding import Hypothesis, collapse, prefix_beam
from kdasr.errors import ConfigError
from kdasr.labelling import Settings, Words, label
from kdasr.lexicon import Lexicon
from kdasr.soft_labels import Full, TopP, open_label_shard
from kdasr.soft_labels.runs import best_path
from kdasr.text import CharUnits, TableUnits
from tests.labelling.tiny import TinySource, make_audio

UNITS = TableUnits(["<blk>", "▁", "a", "b", "c"], None, False)


def posteriors(frames: int, seed: int) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(frames, len(UNITS.symbols)).mul(1.5).log_softmax(1)


def by_enumeration(log_probs_tv: Tensor, words: set[str], nbest: int) -> Tensor:
    """(T, V) posteriors over all paths that spell one of the n best sentences."""
    frames, classes = log_probs_tv.shape
    paths: dict[tuple[int, ...], list[tuple[tuple[int, ...], float]]] = {}
    for path in itertools.product(range(classes), repeat=frames):
        ids = tuple(collapse(path))
        text = "".join(UNITS.symbols[unit] for unit in ids)
        if not ids or all(word in words for word in text.split("▁")):
            probability = float(log_probs_tv[range(frames), list(path)].sum().exp())
            paths.setdefault(ids, []).append((path, probability))
    best = sorted(paths.values(), key=lambda found: -sum(p for _, p in found))[:nbest]
    probs_tv = torch.zeros(frames, classes)
    for path, probability in itertools.chain.from_iterable(best):
        probs_tv[range(frames), list(path)] += probability
    return probs_tv / probs_tv.sum(1, keepdim=True)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nbest", [1, 3])
def test_frames_get_what_the_best_sentences_have_there(seed: int, nbest: int) -> None:
    words = {"ab", "ba", "c"}
    log_probs_tv = posteriors(5, seed)
    found = Words(Lexicon(units=UNITS, words=sorted(words)), nbest, beam=400)(log_probs_tv)
    assert found is not None
    probs_tv, expected_tv = found.exp(), by_enumeration(log_probs_tv, words, nbest)
    (ids,) = (one.ids for one in prefix_beam(log_probs_tv, 400, 1, Lexicon(units=UNITS, words=sorted(words))))
    best_t = best_alignment(log_probs_tv, ids)
    assert probs_tv.argmax(1).tolist() == best_t.tolist() and collapse(best_t.tolist()) == list(ids)
    for unit, got_v, expected_v in zip(best_t.tolist(), probs_tv, expected_tv, strict=True):
        if int(expected_v.argmax()) != unit:  # then it is by a hair, and the others keep to one another
            got_v, expected_v = (one.index_fill(0, torch.tensor(unit), 0.0) for one in (got_v, expected_v))
            assert float(probs_tv.max(1).values.min()) > 0.3
            got_v, expected_v = got_v / got_v.sum(), expected_v / expected_v.sum()
        torch.testing.assert_close(got_v, expected_v, atol=3e-4, rtol=2e-3)
    torch.testing.assert_close(probs_tv.sum(1), torch.ones(5))


def test_the_best_path_of_labels_is_the_sentence_that_was_found() -> None:
    """A teacher that is unsure in which of many frames a letter belongs has it in none of them."""
    frames = 12
    log_probs_tv = torch.full((frames, 5), 1e-6)
    log_probs_tv[:, 2] = 0.12  # a, somewhere
    log_probs_tv[:, 0] = 1 - log_probs_tv[:, 1:].sum(1)
    log_probs_tv = log_probs_tv.log()
    words = Words(Lexicon(units=UNITS, words=["a"]))
    alone = ctc_occupancy(log_probs_tv[None], torch.tensor([[2]]), torch.tensor([frames]), torch.tensor([1]))
    assert collapse(alone[1][0].argmax(1).tolist()) == []
    labels = words(log_probs_tv)
    assert labels is not None and collapse(labels.argmax(1).tolist()) == [2]
    for codec in (TopP(), Full()):
        assert best_path(codec.encode(labels)) == [2]


def test_with_every_sentence_nothing_but_misspellings_goes() -> None:
    # One letter, one word: every transcript of at most one unit fits, and no other has room.
    units = TableUnits(["<blk>", "▁", "a"], None, False)
    log_probs_tv = torch.tensor([[0.6, 0.1, 0.3]]).log()
    found = Words(Lexicon(units=units, words=["a"]), 4)(log_probs_tv)
    assert found is not None
    torch.testing.assert_close(found.exp(), torch.tensor([[2 / 3, 1e-4 / 3, 1 / 3]]), atol=3e-5, rtol=0)


def test_scale_zero_makes_transcripts_equal() -> None:
    units = TableUnits(["<blk>", "▁", "a", "b"], None, False)
    log_probs_tv = torch.tensor([[0.05, 0.01, 0.9, 0.04]]).log()
    found = Words(Lexicon(units=units, words=["a", "b"]), 2, scale=0.0)(log_probs_tv)
    assert found is not None
    # The two best are `a` and nothing.
    torch.testing.assert_close(found.exp()[0, [0, 2]], torch.tensor([0.5, 0.5]), atol=1e-4, rtol=0)


def test_without_a_word_there_are_no_posteriors() -> None:
    # Two frames cannot hold the only word, and silence is beyond the beam.
    log_probs_tv = torch.tensor([[0.01, 0.01, 0.96, 0.01, 0.01]] * 2).log()
    words = Words(Lexicon(units=UNITS, words=["abab"]), 1, beam=1)
    assert words(log_probs_tv) is None


def test_what_is_not_finite_is_left_to_the_codec() -> None:
    log_probs_tv = posteriors(4, 0)
    log_probs_tv[2, 1] = torch.nan
    as_it_is = Words(Lexicon(units=UNITS, words=["ab"]))(log_probs_tv)
    assert as_it_is is not None and as_it_is[2, 1].isnan()


def test_a_job_writes_them_and_says_so(tmp_path: Path) -> None:
    (audio,) = make_audio(tmp_path / "audio", 3, per_shard=3)
    vocab = TinySource().load("cpu").model.vocab_size
    units = TableUnits(CharUnits().symbols[:vocab])
    lexicon = Lexicon(units=units, words=["abba", "dad"])
    for name, words in (("heard", None), ("words", Words(lexicon, nbest=2))):
        label(
            teacher=TinySource(),
            audio=tmp_path / "audio",
            out=tmp_path / name,
            settings=Settings(codec=Full(), words=words),
        )
    heard = open_label_shard(tmp_path / "heard" / f"{audio.stem}.kdsl")
    wordly = open_label_shard(tmp_path / "words" / f"{audio.stem}.kdsl")
    assert "words" not in heard.header.settings
    assert wordly.header.settings["words"] == json.loads(json.dumps(Words(lexicon, nbest=2).params))
    assert heard.header.config_hash != wordly.header.config_hash
    assert heard.header.teacher_hash == wordly.header.teacher_hash
    for key, labels in heard:
        log_probs_tv = torch.from_numpy(labels.log_probs.reshape(-1, vocab).copy())
        expected = Words(lexicon, nbest=2)(log_probs_tv)
        assert expected is not None
        got = torch.from_numpy(wordly.read(key).log_probs.reshape(-1, vocab).copy())
        torch.testing.assert_close(got.exp(), expected.exp(), atol=2e-3, rtol=0)


def test_what_no_words_are_found_in_is_left_out_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (audio,) = make_audio(tmp_path / "audio", 3, per_shard=3)
    units = TableUnits(CharUnits().symbols[: TinySource().load("cpu").model.vocab_size])
    calls = iter([[], *[[Hypothesis((2,), 0.0)]] * 2])
    monkeypatch.setattr("kdasr.labelling.words.prefix_beam", lambda *_: next(calls))
    settings = Settings(words=Words(Lexicon(units=units, words=["abba"])))
    label(teacher=TinySource(), audio=tmp_path / "audio", out=tmp_path / "labels", settings=settings)
    labels = open_label_shard(tmp_path / "labels" / f"{audio.stem}.kdsl")
    assert list(labels.failures.values()) == ["no sentence of the lexicon's words was found in it"]
    assert len(labels.keys) == 3


def test_it_travels_to_other_processes() -> None:
    words = Words(Lexicon(units=UNITS, words=["ab", "c"]))
    log_probs_tv = posteriors(6, 1)
    torch.testing.assert_close(pickle.loads(pickle.dumps(words))(log_probs_tv), words(log_probs_tv))  # noqa: S301


def test_impossible_searches_are_refused() -> None:
    with pytest.raises(ConfigError, match="nbest <= beam"):
        Words(Lexicon(units=UNITS, words=["ab"]), nbest=9, beam=8)
