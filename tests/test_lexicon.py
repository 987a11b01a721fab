"""What keeps a search to words that exist."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.decoding import collapse, prefix_beam
from kdasr.errors import ConfigError, UnitsError
from kdasr.interfaces import Utterance
from kdasr.lexicon import Lexicon
from kdasr.shards import write_shards
from kdasr.text import CharUnits, TableUnits, train_sentencepiece

CHARS = CharUnits()


def may_follow(lexicon: Lexicon, prefix: tuple[int, ...], after_pause: bool = False) -> NDArray[np.bool_]:
    return np.isfinite(lexicon.next_costs(prefix, after_pause))


def spelled(lexicon: Lexicon, prefix: str) -> set[str]:
    allowed = may_follow(lexicon, tuple(CHARS.encode(prefix)) if prefix else ())
    return {symbol for symbol, may in zip(CHARS.symbols, allowed, strict=True) if may}


def with_space(lexicon: Lexicon, prefix: str) -> set[str]:
    allowed = may_follow(lexicon, (*CHARS.encode(prefix), CHARS.symbols.index("▁")))
    return {symbol for symbol, may in zip(CHARS.symbols, allowed, strict=True) if may}


def test_letters_may_follow_where_a_word_goes_on() -> None:
    lexicon = Lexicon(units=CHARS, words=["on one", "two"])
    assert spelled(lexicon, "") == {"o", "t"}
    assert spelled(lexicon, "o") == {"n"}
    assert spelled(lexicon, "on") == {"e", "▁"}
    assert spelled(lexicon, "two on") == {"e", "▁"}
    assert spelled(lexicon, "tw") == {"o"}
    assert with_space(lexicon, "on") == {"o", "t"}


def test_a_transcript_ends_with_a_word() -> None:
    lexicon = Lexicon(units=CHARS, words=["on", "one", "two"])
    space = CHARS.symbols.index("▁")
    for text, complete in (("on", True), ("one two", True), ("one tw", False), ("t", False)):
        assert lexicon.is_complete(tuple(CHARS.encode(text))) is complete
    assert lexicon.is_complete(()) and not lexicon.is_complete((*CHARS.encode("on"), space))


@pytest.mark.parametrize("kind", ["sentencepiece", "table"])
def test_word_pieces_spell_the_same_words(kind: str) -> None:
    texts = ["seven eleven", "even seven", "eleven nine"] * 20
    pieces = train_sentencepiece(texts, 11)
    units = pieces if kind == "sentencepiece" else TableUnits(pieces.symbols, None, False)
    lexicon = Lexicon(units=units, words=["seven", "eleven"])
    found = set()

    def grow(prefix: tuple[int, ...]) -> None:
        if lexicon.is_complete(prefix) and prefix:
            found.add(units.decode(list(prefix)))
        for unit in np.flatnonzero(may_follow(lexicon, prefix)):
            if units.symbols[unit].startswith("▁") and prefix:
                continue  # one word is enough
            grow((*prefix, int(unit)))

    grow(())
    assert found == {"seven", "eleven"}
    seven = tuple(pieces.encode("seven"))
    starts = {units.symbols[unit] for unit in np.flatnonzero(may_follow(lexicon, seven))}
    assert starts and all(symbol.startswith("▁") for symbol in starts)


def test_every_piece_that_may_go_on_is_found() -> None:
    """Also one that no other piece begins like, and after marked letters alone."""
    symbols = ["<blk>", "▁s", "▁n", "e", "even", "ven", "ve", "n", "ine", "eve"]
    lexicon = Lexicon(units=TableUnits(symbols, None, False), words=["seven", "nine", "neven"])
    ids = {symbol: unit for unit, symbol in enumerate(symbols)}
    for spelled in (["▁s"], ["▁n"], ["▁s", "e"], ["▁n", "eve"], ["▁s", "eve"], ["▁s", "even"]):
        beginning = "".join(spelled).removeprefix("▁")
        may = {
            symbol for symbol in symbols[3:] if any(w.startswith(beginning + symbol) for w in lexicon.words)
        }
        may |= {"▁s", "▁n"} if beginning in lexicon.words else set()
        found = may_follow(lexicon, tuple(ids[symbol] for symbol in spelled))
        assert {symbols[unit] for unit in np.flatnonzero(found)} == may, spelled
    assert np.flatnonzero(may_follow(lexicon, ())).tolist() == [1, 2, 7]  # the mark may be missing at first


def test_the_search_finds_the_best_of_all_sentences_of_its_words() -> None:
    units = TableUnits(["<blk>", "▁", "a", "b", "c"], None, False)
    lexicon = Lexicon(units=units, words=["ab", "ba", "c"])
    log_probs = np.random.default_rng(3).normal(size=(5, 5)) * 1.5
    log_probs -= np.logaddexp.reduce(log_probs, axis=1, keepdims=True)
    scores: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(5), repeat=5):
        ids = tuple(collapse(path))
        words = units.decode(list(ids)).split(" ") if ids else []
        well_spelled = "▁".join(words) == "".join(units.symbols[unit] for unit in ids)
        if well_spelled and set(words) <= lexicon.words:
            score = float(sum(log_probs[frame, unit] for frame, unit in enumerate(path)))
            scores[ids] = float(np.logaddexp(scores.get(ids, -np.inf), score))
    expected = sorted(scores.items(), key=lambda item: -item[1])
    found = prefix_beam(log_probs, beam=500, nbest=500, grammar=lexicon)
    assert [one.ids for one in found] == [ids for ids, _ in expected]
    assert [one.log_prob for one in found] == pytest.approx([score for _, score in expected])
    assert len(found) > 5


def test_words_come_from_the_transcripts_of_shards(tmp_path: Path) -> None:
    sound = np.zeros(SAMPLE_RATE_HZ // 10, dtype=np.float32)
    texts = ["turn on", None, "turn it off"]
    utterances = [Utterance(f"u{i}", sound, text=text) for i, text in enumerate(texts)]
    write_shards(iter(utterances), tmp_path / "labelled")
    lexicon = Lexicon(units=CHARS, sources=[str(tmp_path / "labelled")], words=["up and down"])
    assert lexicon.words == {"turn", "on", "it", "off", "up", "and", "down"}


def test_what_is_found_depends_on_words_and_units_alone() -> None:
    one, two = Lexicon(units=CHARS, words=["on", "off"]), Lexicon(units=CHARS, words=["off on"])
    assert one.config == two.config
    assert one.config != Lexicon(units=CHARS, words=["on"]).config
    assert (
        one.config
        != Lexicon(units=TableUnits(["<blk>", "▁", "o", "n", "f"], None, False), words=["on", "off"]).config
    )


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    lexicon = Lexicon(units=str(tmp_path / "teacher"), words=["on"])
    with pytest.raises(UnitsError):
        may_follow(lexicon, ())


def test_words_do_not_come_from_a_damaged_transcript(tmp_path: Path) -> None:
    tars = write_shards([Utterance("u", np.ones(800, np.float32), "three")], tmp_path / "labelled")
    tars[0].write_bytes(tars[0].read_bytes().replace(b'"three"', b'"threa"'))
    with pytest.raises(ConfigError, match=r"lexicon cannot be read; .*shard-000000\.tar: .*crc32"):
        Lexicon(units=CHARS, sources=[str(tmp_path / "labelled")]).next_costs(())


def test_shards_that_are_not_there_are_named_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"gone: the file or folder with the words of a lexicon does not exist.*--settings\.words null",
    ):
        Lexicon(units=CHARS, sources=[str(tmp_path / "gone")]).next_costs(())
    with pytest.raises(ConfigError, match=r"lexicon cannot be read; .*got the folder holds no audio shards"):
        Lexicon(units=CHARS, sources=[str(tmp_path)]).next_costs(())


def test_no_words_are_refused() -> None:
    with pytest.raises(ConfigError, match="the lexicon has no words"):
        Lexicon(units=CHARS).next_costs(())


def test_words_come_from_text_files_as_transcripts_are_written(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("\ufeffTurn on,\nTURN off\n")
    lexicon = Lexicon(units=CHARS, sources=[str(tmp_path / "words.txt")])
    assert lexicon.words == {"turn", "on", "off"}


@pytest.mark.parametrize(
    ("content", "have"),
    [
        ("turn on\nlight\nwi-fi\nturn off\n", ["words.txt: 3 lines have several words: each counts as"]),
        ("light,\nturn on\n", ["words.txt: 1 line has several words: each counts as"]),
        ("light,\n\n on \n", []),
    ],
)
def test_lines_of_several_words_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str, have: list[str]
) -> None:
    (tmp_path / "words.txt").write_text(content)
    lexicon = Lexicon(units=CHARS, sources=[str(tmp_path / "words.txt")])
    assert "light" in lexicon.words and len(lexicon.words) == len(content.replace("-", " ").split()) - (
        content.count("turn") > 1
    )
    assert [f"{tmp_path}/{line} a separate word" for line in have] == caplog.messages


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"turn on b4", "word 'b4' cannot be spelled: the character '4'.*as it is spoken"),
        (b"\xff\xfe", "utf-8"),
    ],
)
def test_text_files_that_cannot_be_used_are_named(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(ConfigError, match=rf"words\.txt.*{reason}"):
        Lexicon(units=CHARS, sources=[str(tmp_path / "words.txt")]).next_costs(())


def test_words_that_the_units_cannot_spell_are_named() -> None:
    units = TableUnits(["<blk>", "▁", "o", "n"], None, False)
    with pytest.raises(ConfigError, match=r"2 words.*words of the letters no.*off, two"):
        Lexicon(units=units, words=["on off", "two"]).next_costs(())


def test_a_word_that_the_units_cannot_spell_is_named_with_its_file(tmp_path: Path) -> None:
    for name, text in (("a.txt", "on"), ("b.txt", "on off")):
        (tmp_path / name).write_text(text)
    sources = [str(tmp_path / name) for name in ("a.txt", "b.txt")]
    with pytest.raises(ConfigError, match=rf"^{sources[1]}: 1 word of the lexicon cannot.*got off\."):
        Lexicon(units=TableUnits(["<blk>", "▁", "o", "n"], None, False), sources=sources).next_costs(())


def test_what_follows_depends_on_the_last_word_alone() -> None:
    lexicon = Lexicon(units=CHARS, words=["on", "one", "two"])
    for text, start in (("", 0), ("on", 0), ("one tw", 3), ("one two on", 7)):
        prefix = tuple(CHARS.encode(text))
        assert lexicon.last_word_start(prefix) == start
        if start:
            assert np.array_equal(may_follow(lexicon, prefix), may_follow(lexicon, prefix[start:]))
            assert lexicon.is_complete(prefix) == lexicon.is_complete(prefix[start:])


def test_other_words_cost_their_units_once_they_are_none_of_the_lexicon() -> None:
    lexicon = Lexicon(units=CHARS, words=["one", "on"], other_word_nats=0.5)

    def cost(text: str) -> list[float]:
        ids = tuple(CHARS.encode(text))
        steps = [float(lexicon.next_costs(ids[:end])[unit]) for end, unit in enumerate(ids)]
        return [*steps, lexicon.end_cost(ids)]

    assert cost("one on") == [0.0] * 7
    assert cost("ones") == [0.0, 0.0, 0.0, 2.0, 0.0]  # all four letters, when they are no longer "one"
    assert cost("o on") == [0.0, 0.5, 0.0, 0.0, 0.0]  # when the word is over
    assert cost("on o") == [0.0, 0.0, 0.0, 0.0, 0.5]
    assert cost("two") == [0.5, 0.5, 0.5, 0.0]
    assert lexicon.end_cost((*CHARS.encode("on"), 1)) == np.inf, "no word behind a mark"
    assert lexicon.next_costs(())[[0, 1]].tolist() == [np.inf, np.inf]
    assert lexicon.config != Lexicon(units=CHARS, words=["one", "on"]).config
    free = Lexicon(units=CHARS, words=["one"], other_word_nats=0.0)
    log_probs = np.random.default_rng(5).normal(size=(12, 29)) * 2
    log_probs -= np.logaddexp.reduce(log_probs, axis=1, keepdims=True)
    log_probs[:, 1] = -50.0  # no mark, and so no two in a row, which no lexicon takes
    assert prefix_beam(log_probs, 16, grammar=free)[0].ids == prefix_beam(log_probs, 16)[0].ids
    for wrong in (-1.0, np.inf):
        with pytest.raises(
            ConfigError,
            match=r"cost of other words is out of range.*expected a finite number of nats, 0 or more",
        ):
            Lexicon(units=CHARS, words=["one"], other_word_nats=wrong)


def test_what_is_kept_of_other_words_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kdasr.lexicon._MAX_COSTS", 10)
    lexicon, fresh = (Lexicon(units=CHARS, words=["one"], other_word_nats=0.5) for _ in range(2))
    for length in range(50):
        prefix = tuple(CHARS.encode("x" * length))
        fresh._costs.clear()
        assert np.array_equal(lexicon.next_costs(prefix), fresh.next_costs(prefix))
        assert len(lexicon._costs) <= 10


@pytest.mark.parametrize("name", ["words", "sources"])
def test_a_text_is_no_list_of_words(name: str) -> None:
    """Its letters would be the words."""
    with pytest.raises(ConfigError, match=rf"^{name}: .*; expected \['one two'\]; got 'one two'"):
        Lexicon(units=CharUnits(), **{name: "one two"})  # type: ignore[arg-type]
