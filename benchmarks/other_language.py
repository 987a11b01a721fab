"""Speech in German or Turkish by espeak-ng, as a user's folder would hold it, to try a language beyond
English on.

    python -m benchmarks.other_language tr runs/tr/corpus

writes the tables and clips of Common Voice's layout (train.tsv, dev.tsv, test.tsv, clips) and a folder
`recordings` without transcripts. Texts are as people write them: capitals, punctuation, some with their
accents apart (NFD), as some systems write them. dev and test have voices that occur nowhere else.
"""

from __future__ import annotations

import argparse
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile

from data_prep.support import espeak
from data_prep.support.seeding import rng_for
from kdasr.audio import SAMPLE_RATE_HZ
from kdasr.noise import Samples, add_noise, make_noise, rms
from kdasr.resampling import resample

Slots = tuple[tuple[str, ...], ...]
_DIGITS = {
    "de": ("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zwölf"),
    "tr": ("sıfır", "bir", "iki", "üç", "dört", "beş", "altı", "yedi", "sekiz", "dokuz"),
}
_COMMANDS: dict[str, tuple[Slots, ...]] = {
    "de": (
        (("öffne", "schließe"), ("die Tür", "das Fenster")),
        (("Licht in der",), ("Küche", "Garage"), ("an", "aus")),
        (("stelle den Wecker auf",), _DIGITS["de"][2:], ("Uhr",)),
        (("mach es",), ("größer", "kleiner", "wärmer", "kälter")),
    ),
    "tr": (
        (("kapıyı", "pencereyi"), ("aç", "kapat")),
        (("mutfağın", "odanın"), ("ışığını",), ("aç", "kapat")),
        (_DIGITS["tr"][1:], ("dakika", "saat"), ("bekle",)),
        (("ilk", "önceki", "ikinci"), ("şarkıyı",), ("çal", "durdur")),
        (("İstanbul'da", "Iğdır'da"), ("hava nasıl",)),
    ),
}
_QUOTES = {"de": "„“", "tr": "“”"}
_NOISE = ("white", "pink", "hum")
_SPLITS = ("test", "dev", "train", "recordings")
_HELD_OUT_VOICES = {"test": 8, "dev": 4}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the corpus; an existing folder is added to."""
    parser = argparse.ArgumentParser(description="speech in another language, as a user's folder holds it")
    parser.add_argument("language", choices=sorted(_COMMANDS))
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, nargs=4, default=(6, 2, 15, 30), metavar=_SPLITS)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    language, out, seed = options.language, options.out, options.seed
    voices = _voices(seed)
    for split, minutes in zip(_SPLITS, options.minutes, strict=True):
        folder = out / ("recordings" if split == "recordings" else "clips")
        folder.mkdir(parents=True, exist_ok=True)
        seconds, rows = 0.0, ["client_id\tpath\tsentence"]
        while seconds < 60 * minutes:
            name, rng = f"{split} {len(rows):04d}.wav", rng_for(seed, language, split, len(rows))
            text, voice = sentence(language, rng), str(rng.choice(voices[split]))
            samples = _speak(text, f"{language}+{voice}", rng)
            soundfile.write(folder / name, samples, SAMPLE_RATE_HZ)
            rows.append(f"{voice}\t{name}\t{text}")
            seconds += len(samples) / SAMPLE_RATE_HZ
        if split != "recordings":
            (out / f"{split}.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def sentence(language: str, rng: np.random.Generator) -> str:
    """Some digits or a command, as people write them."""
    digits, commands = _DIGITS[language], _COMMANDS[language]
    if rng.random() < 0.5:
        words = [str(word) for word in rng.choice(digits, rng.integers(3, 7, endpoint=True))]
    else:
        slots = commands[rng.integers(len(commands))]
        words = " ".join(str(rng.choice(slot)) for slot in slots).split()
    text = " ".join(words)
    if rng.random() < 0.2:
        text = _upper(text, language)
    elif rng.random() < 0.8:
        text = _upper(text[0], language) + text[1:]
    text += rng.choice(["", ".", "!", " …"])
    if rng.random() < 0.1:
        text = _QUOTES[language][0] + text + _QUOTES[language][1]
    return unicodedata.normalize("NFD", text) if rng.random() < 0.2 else text


def _upper(text: str, language: str) -> str:
    # The capital of ß is ẞ, as upper() does not know; in Turkish, that of i is İ.
    return text.replace("i", "İ" if language == "tr" else "I").replace("ß", "ẞ").upper()


def _voices(seed: int) -> dict[str, list[str]]:
    """The variants of each split: human ones for dev and test, all others for training."""
    shuffled = rng_for(seed, "voices").permutation(np.array(espeak.VARIANTS)).tolist()
    human = [voice for voice in shuffled if voice not in espeak.TRAINING_ONLY]
    held_out = [human.pop() for _ in range(sum(_HELD_OUT_VOICES.values()))]
    test = held_out[: _HELD_OUT_VOICES["test"]]
    others = [voice for voice in shuffled if voice not in held_out]
    return {"test": test, "dev": held_out[len(test) :], "train": others[::2], "recordings": others[1::2]}


def _speak(text: str, voice: str, rng: np.random.Generator) -> Samples:
    speech = espeak.speak(
        unicodedata.normalize("NFC", text),
        voice,
        words_per_minute=round(rng.uniform(110, 160)),
        pitch=round(rng.uniform(25, 75)),
    )
    samples = resample(speech, espeak.ESPEAK_RATE_HZ, SAMPLE_RATE_HZ)
    noise = make_noise(str(rng.choice(_NOISE)), rng, len(samples), SAMPLE_RATE_HZ)
    return add_noise(samples, noise, rng.uniform(10, 30), rms(samples))


if __name__ == "__main__":
    main()
