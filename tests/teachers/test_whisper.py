"""Whisper as a teacher: transcripts with scores, alike whatever the batch, numbers in words."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from kdasr.errors import ModelError, UnitsError
from kdasr.symbols import blank_path
from kdasr.teachers.base import Teacher, spell
from kdasr.teachers.whisper import Whisper, _unspoken
from kdasr.text import ALPHABET, CharUnits
from tests.teachers.tiny_models import noise, whisper_model

pytestmark = pytest.mark.slow  # transformers takes five seconds to import
SECONDS = (0.6, 2.2, 1.1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    folder = tmp_path_factory.mktemp("whisper")
    whisper_model(folder)
    return Whisper(folder).load("cpu")


def test_transcripts_and_scores_do_not_depend_on_the_batch(teacher: Teacher) -> None:
    samples = [torch.from_numpy(noise(seconds, seed)) for seed, seconds in enumerate(SECONDS)]
    with torch.inference_mode():
        together = teacher.model.transcribe(samples)  # type: ignore[attr-defined]
        alone = [teacher.model.transcribe([item])[0] for item in samples]  # type: ignore[attr-defined]
    assert [text for text, _ in together] == [text for text, _ in alone]
    assert [score for _, score in together] == pytest.approx([score for _, score in alone], abs=1e-4)
    assert len({text for text, _ in alone}) > 1 and all(-5 < score < 0 for _, score in alone)
    assert all({*text} <= {*ALPHABET, " "} for text, _ in alone)


def test_scores_are_those_of_the_librarys_own_forward(teacher: Teacher) -> None:
    samples = torch.from_numpy(noise(1.0, 3))
    model = teacher.model
    with torch.inference_mode():
        ((_, score),) = model.transcribe([samples])  # type: ignore[attr-defined]
        heard = model.processor.feature_extractor(  # type: ignore[attr-defined]
            samples.numpy(), sampling_rate=16_000, return_tensors="pt"
        ).input_features
        how = {"generation_config": model.how, "return_dict_in_generate": True, "output_scores": True}
        said = model.network.generate(heard, max_new_tokens=40, **how, **model.asked)  # type: ignore[attr-defined]
        tokens = said["sequences"]
        prompt = tokens.shape[1] - len(said["scores"])
        logits = model.network(heard, decoder_input_ids=tokens[:, :-1]).logits[0]  # type: ignore[attr-defined]
    logits = logits.clone()  # outside inference mode it may be changed
    logits[:, model.how.suppress_tokens] = -torch.inf  # type: ignore[attr-defined]
    logits[prompt - 1, model.how.begin_suppress_tokens] = -torch.inf  # type: ignore[attr-defined]
    log_probs = logits.log_softmax(-1)[torch.arange(tokens.shape[1] - 1), tokens[0, 1:]]
    assert score == pytest.approx(float(log_probs[prompt - 1 :].mean()), abs=1e-3)


def test_weights_that_were_saved_in_half_precision_are_heard_in_single(tmp_path: Path) -> None:
    whisper_model(tmp_path).half().save_pretrained(tmp_path)
    teacher = Whisper(tmp_path).load("cpu")
    samples = torch.from_numpy(noise(1.0, 3))
    with torch.inference_mode():
        ((_, score),) = teacher.model.transcribe([samples])  # type: ignore[attr-defined]
    assert teacher.model.network.dtype == torch.float32 and -5 < score < 0  # type: ignore[attr-defined]


def test_tokens_without_a_spoken_form_are_suppressed(teacher: Teacher) -> None:
    tokenizer, how = teacher.model.processor.tokenizer, teacher.model.how  # type: ignore[attr-defined]
    suppressed = {tokenizer.decode([unit]).strip() for unit in how.suppress_tokens}
    assert {"1", "20", "%", "^"} <= suppressed and not suppressed & {*ALPHABET}


def test_labels_spell_the_transcript(teacher: Teacher) -> None:
    samples = [torch.from_numpy(noise(seconds, seed)) for seed, seconds in enumerate(SECONDS)]
    lengths = torch.tensor([len(item) for item in samples])
    padded = torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)
    with torch.inference_mode():
        log_probs, frames = teacher.model.offline(padded, lengths)
        found = teacher.model.transcribe(samples)  # type: ignore[attr-defined]
    units = CharUnits()
    for row, (text, score) in enumerate(found):
        path = log_probs[row, : int(frames[row])]
        assert path.argmax(-1).tolist() == blank_path(units.encode(text))
        assert path.exp().sum(-1).tolist() == pytest.approx([1.0] * len(path), abs=1e-5)
        assert path.max(-1).values.tolist() == pytest.approx([score] * len(path), abs=1e-4)
    assert teacher.level == "sequence" and teacher.max_seconds == 30.0
    assert teacher.units.hash == units.hash


def test_a_doubtful_transcript_is_still_the_best_path() -> None:
    path = spell([4, 4, 2], math.log(1e-6), 29)
    assert path.argmax(-1).tolist() == [4, 0, 4, 2]
    assert path.exp().sum(-1).tolist() == pytest.approx([1.0] * 4)


def test_another_language_is_asked_for_and_keeps_its_letters(teacher: Teacher, tmp_path: Path) -> None:
    whisper_model(tmp_path)
    german = Whisper(tmp_path, language="de", letters="é").load("cpu")
    assert german.model.asked == {"language": "de", "task": "transcribe"}  # type: ignore[attr-defined]
    assert german.units.symbols[-1] == "é"
    assert german.weights_hash != teacher.weights_hash and german.model.vocab_size == 30
    with pytest.raises(ModelError, match=r"does not support the language; expected de, en; got fr"):
        Whisper(tmp_path, language="fr", letters="").load("cpu")
    with pytest.raises(
        UnitsError,
        match=r"letters: the letters of the language are not given.*got no letters for language de",
    ):
        Whisper(tmp_path, language="de").load("cpu")


def test_bytes_of_the_language_s_letters_are_not_suppressed() -> None:
    """A byte alone is no text; two make the letter."""
    import transformers

    pieces = ["a", "b", "Ġ", "Ã", "¼", "ł", "4"]  # as byte vocabularies write C3 and BC, and 42
    vocab = {piece: unit for unit, piece in enumerate(pieces)}
    tokenizer = transformers.WhisperTokenizer(vocab=vocab, merges=[])
    assert tokenizer.decode([3, 4]) == "ü"
    assert [unit for unit in _unspoken(tokenizer, "ü") if unit < len(pieces)] == [5, 6]
    assert [unit for unit in _unspoken(tokenizer, "") if unit < len(pieces)] == [3, 4, 5, 6]


def test_bytes_of_letters_beside_whole_ones_are_not_suppressed() -> None:
    """Whisper's Korean, Hebrew, Arabic and Vietnamese often divide a letter between two tokens."""
    import transformers

    spoken = ["a", "aÃ", "¼b", "ĠaÃ", "º¿Ã"]  # as byte vocabularies write C3 BC and E1 BA BF
    others = ["4Ã", "aÅ", "½b", "aá»"]
    vocab = {piece: unit for unit, piece in enumerate([*spoken, *others, "Ġ", *"Ã¼áº¿"])}
    tokenizer = transformers.WhisperTokenizer(vocab=vocab, merges=[])
    assert tokenizer.decode([1, 2]) == "aüb"
    unspoken = _unspoken(tokenizer, "üế")
    assert [piece for piece in (*spoken, *others) if vocab[piece] in unspoken] == others


def test_a_text_with_letters_that_the_language_lacks_is_none(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of a shard's utterances, and the others keep theirs."""
    tokenizer = teacher.model.processor.tokenizer  # type: ignore[attr-defined]
    monkeypatch.setattr(tokenizer, "batch_decode", lambda *_, **__: ["Für alle", "für \ufffd", "ы"])
    monkeypatch.setattr(teacher.model, "_most_tokens", lambda _: 40)
    samples = [torch.from_numpy(noise(seconds, seed)) for seed, seconds in ((1, 2.0), (2, 1.0), (2, 1.0))]
    with torch.inference_mode():
        assert [text for text, _ in teacher.model.transcribe(samples)] == ["fur alle", "", ""]  # type: ignore[attr-defined]


def test_silence_has_no_labels_and_its_neighbour_has(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher.model, "transcribe", lambda _: [("", -0.1), ("ab", -0.1)])
    log_probs, frames = teacher.model.offline(torch.zeros(2, 16_000), torch.tensor([16_000, 16_000]))
    assert frames.tolist() == [0, 2] and log_probs.shape == (2, 2, 29)


def test_a_transcript_without_end_is_none_and_costs_its_neighbours_nothing(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = teacher.model
    samples = [torch.from_numpy(noise(seconds, seed)) for seed, seconds in enumerate((0.5, 2.0, 1.0))]
    with torch.inference_mode():
        before = model.transcribe(samples)  # type: ignore[attr-defined]
        limits = {8_000: 2, 32_000: 40, 16_000: 40}
        monkeypatch.setattr(model, "_most_tokens", lambda seconds: limits[round(seconds * 16_000)])
        together = model.transcribe(samples)  # type: ignore[attr-defined]
        alone = [model.transcribe([item])[0] for item in samples]  # type: ignore[attr-defined]
    assert [text for text, _ in together] == ["", *(text for text, _ in before[1:])]
    assert all(len(text) > 2 for text, _ in before[1:])
    assert [text for text, _ in alone] == [text for text, _ in together]
    assert [score for _, score in together] == pytest.approx([score for _, score in alone], abs=1e-4)
    assert together[1][1] == pytest.approx(before[1][1], abs=1e-4)


def test_as_many_tokens_are_allowed_as_nobody_speaks(tmp_path: Path) -> None:
    whisper_model(tmp_path, max_target_positions=120)
    model = Whisper(tmp_path).load("cpu").model
    assert [model._most_tokens(seconds) for seconds in (0.5, 2.0, 30.0)] == [24, 48, 115]  # type: ignore[attr-defined]
