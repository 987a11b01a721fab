"""Speech synthesis with espeak-ng through ctypes, with the same samples for the same words.

espeak-ng keeps state between utterances (the phase of its oscillators, its flutter and noise positions),
so the same words sound slightly different each time. The library is therefore loaded anew for every
utterance, which takes 2 ms. Variants with a `breath` line are left out: their noise depends on
uninitialised memory.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdasr.errors import KdasrError, MissingDependencyError

ESPEAK_RATE_HZ = 22_050
ACCENTS = ("en-us", "en-us-nyc", "en-gb-x-rp", "en-gb-scotland", "en-gb-x-gbcwmd", "en-029")
# Also left out, besides the breathy ones: robots, and variants that speak a third too fast.
# fmt: off
VARIANTS = (
    "Alex", "Andy", "Annie", "AnxiousAndy", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo",
    "Jacky", "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "RicishayMax", "Tweaky", "adam",
    "announcer", "aunty", "belinda", "benjamin", "boris", "david", "ed", "edward", "edward2", "f1",
    "f4", "grandma", "grandpa", "gustave", "ian", "iven", "iven2", "iven3", "iven4", "john",
    "kaukovalta", "klatt", "klatt2", "klatt3", "klatt4", "klatt5", "klatt6", "linda", "m1", "m2", "m3",
    "m4", "m5", "m6", "m7", "m8", "marcelo", "max", "michel", "miguel", "mike2", "norbert", "pablo",
    "paul", "quincy", "rob", "robert", "shelby", "steph", "steph2", "steph3", "travis", "zac",
)
# fmt: on
# Variants whose definition moves one of the first three formants to less than 75 or more than 130 % of
# its frequency, beyond any vocal tract: good for variety in training, but not for evaluation.
# fmt: off
NOT_HUMAN = frozenset({
    "Andy", "AnxiousAndy", "Jacky", "Lee", "Marco", "Michael", "Tweaky", "belinda", "boris", "gustave",
    "kaukovalta", "linda", "marcelo", "shelby", "travis", "zac",
})
# Variants that use the Klatt synthesiser, unlike all others: to a recogniser they differ from those more
# than any two people do.
KLATT = frozenset({
    "adam", "announcer", "benjamin", "david", "edward", "edward2", "klatt", "klatt2", "klatt3", "klatt4",
    "klatt5", "klatt6", "mike2",
})
# fmt: on
TRAINING_ONLY = NOT_HUMAN | KLATT

_SYNCHRONOUS = 2
_RATE, _PITCH, _PITCH_RANGE = 1, 3, 4
_CHARACTERS_UTF8 = 1
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p)


class SpeechSynthesisError(KdasrError):
    """espeak-ng failed."""


def speak(
    text: str, voice: str, *, words_per_minute: int = 160, pitch: int = 50, pitch_range: int = 50
) -> NDArray[np.float32]:
    """Speak `text` as (N,) float32 samples in [-1, 1] at `ESPEAK_RATE_HZ`.

    Args:
        voice: accent and variant, such as "en-us+m3".
        words_per_minute: espeak-ng's unit; 80 to 450.
        pitch: 0 to 99, relative to the voice's own.
        pitch_range: 0 (monotonous) to 99.

    Raises:
        SpeechSynthesisError: an unknown voice, or nothing was spoken.
        MissingDependencyError: espeakng-loader is not installed.
    """
    blocks: list[bytes] = []

    def collect(samples: int | None, count: int, _events: int | None) -> int:
        if samples and count > 0:
            blocks.append(ctypes.string_at(samples, count * 2))
        return 0

    callback = _Callback(collect)  # must outlive the call
    with _fresh_library() as library:
        library.espeak_SetSynthCallback(callback)
        _call(library.espeak_SetVoiceByName(voice.encode()), f"set the voice {voice}")
        for parameter, value in ((_RATE, words_per_minute), (_PITCH, pitch), (_PITCH_RANGE, pitch_range)):
            _call(library.espeak_SetParameter(parameter, value, 0), f"set parameter {parameter} to {value}")
        encoded = text.encode()
        arguments = (encoded, len(encoded) + 1, 0, 0, 0, _CHARACTERS_UTF8, None, None)
        _call(library.espeak_Synth(*arguments), f"speak {text!r}")
    samples = np.frombuffer(b"".join(blocks), dtype=np.int16)
    if not samples.any():
        raise SpeechSynthesisError("espeak-ng produced no sound", where=voice, got=repr(text))
    return samples.astype(np.float32) / np.float32(32_768)


def _call(result: int, deed: str) -> None:
    if result != 0:
        raise SpeechSynthesisError(f"espeak-ng could not {deed}", got=f"error {result}")


@contextmanager
def _fresh_library() -> Iterator[Any]:
    try:
        import espeakng_loader
    except ImportError:
        raise MissingDependencyError("espeakng-loader", "synth") from None
    path = espeakng_loader.get_library_path()
    _refuse_loaded(path)
    library = ctypes.CDLL(path)
    library.espeak_Synth.argtypes = [
        *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
        *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
    ]
    try:
        rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
        if rate_hz != ESPEAK_RATE_HZ:
            raise SpeechSynthesisError(
                "espeak-ng did not start with the right sample rate in Hz",
                expected=ESPEAK_RATE_HZ,
                got=rate_hz,
            )
        # Its noise comes from libc's rand(), which it seeds with the time.
        ctypes.CDLL(None).srand(1)
        yield library
        library.espeak_Terminate()
    finally:
        _ctypes.dlclose(library._handle)


def _refuse_loaded(path: str) -> None:
    """Refuse a library that is already loaded in this process, since it would keep its state."""
    try:
        handle = ctypes.CDLL(path, mode=os.RTLD_NOLOAD)._handle
    except OSError:
        return
    _ctypes.dlclose(handle)
    raise SpeechSynthesisError(
        "espeak-ng is already in use by another part of this process, so speech would not be reproducible",
        where=path,
        fix="Prepare the corpus in a separate process.",
    )
