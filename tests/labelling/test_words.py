"""Posteriors given that words of a lexicon were said, against all paths."""

from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from kdasr.decoding import collapse
from kdasr.errors import ConfigError
from kdasr.labelling import Settings, Words, label
from kdasr.lexicon import Lexicon
from kdasr.soft_labels import Full, open_label_shard
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
    torch.testing.assert_close(found.exp(), by_enumeration(log_probs_tv, words, nbest), atol=2e-4, rtol=1e-3)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(5))


def test_with_every_sentence_nothing_but_misspellings_goes() -> None:
    # One letter, one word: every transcript of at most one unit fits, and no other has room.
    units = TableUnits(["<blk>", "▁", "a"], None, False)
    log_probs_tv = torch.tensor([[0.6, 0.1, 0.3]]).log()
    found = Words(Lexicon(units=units, words=["a"]), 4)(log_probs_tv)
    torch.testing.assert_close(found.exp(), torch.tensor([[2 / 3, 1e-4 / 3, 1 / 3]]), atol=3e-5, rtol=0)


def test_scale_zero_makes_transcripts_equal() -> None:
    units = TableUnits(["<blk>", "▁", "a", "b"], None, False)
    log_probs_tv = torch.tensor([[0.05, 0.01, 0.9, 0.04]]).log()
    found = Words(Lexicon(units=units, words=["a", "b"]), 2, scale=0.0)(log_probs_tv)
    # The two best are `a` and nothing.
    torch.testing.assert_close(found.exp()[0, [0, 2]], torch.tensor([0.5, 0.5]), atol=1e-4, rtol=0)


def test_without_a_word_the_posteriors_stay() -> None:
    # Two frames cannot hold the only word, and silence is beyond the beam.
    log_probs_tv = torch.tensor([[0.01, 0.01, 0.96, 0.01, 0.01]] * 2).log()
    words = Words(Lexicon(units=UNITS, words=["abab"]), 1, beam=1)
    torch.testing.assert_close(words(log_probs_tv), log_probs_tv)


def test_what_is_not_finite_is_left_to_the_codec() -> None:
    log_probs_tv = posteriors(4, 0)
    log_probs_tv[2, 1] = torch.nan
    assert Words(Lexicon(units=UNITS, words=["ab"]))(log_probs_tv)[2, 1].isnan()


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
        got = torch.from_numpy(wordly.read(key).log_probs.reshape(-1, vocab).copy())
        torch.testing.assert_close(got.exp(), expected.exp(), atol=2e-3, rtol=0)


def test_it_travels_to_other_processes() -> None:
    words = Words(Lexicon(units=UNITS, words=["ab", "c"]))
    log_probs_tv = posteriors(6, 1)
    torch.testing.assert_close(pickle.loads(pickle.dumps(words))(log_probs_tv), words(log_probs_tv))  # noqa: S301


def test_impossible_searches_are_refused() -> None:
    with pytest.raises(ConfigError, match="nbest <= beam"):
        Words(Lexicon(units=UNITS, words=["ab"]), nbest=9, beam=8)
