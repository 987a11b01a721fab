"""Draw random digit strings and short spoken commands."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_COMMANDS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("turn",), ("on", "off"), ("the",), ("kitchen", "bedroom"), ("light", "radio")),
    (("set",), ("timer", "alarm"), ("for",), DIGITS[2:], ("minutes", "hours")),
    (("open", "close"), ("the",), ("door", "window")),
    (("turn",), ("volume",), ("up", "down")),
    (("play", "stop", "pause"), ("the",), ("radio", "song", "timer", "alarm")),
    (("play", "stop", "pause"),),
    (("next",), ("song",)),
)


def digit_string(rng: np.random.Generator, num_digits: tuple[int, int] = (3, 7), oh: float = 0.0) -> str:
    """Digits as words, such as "four zero nine"; each zero is "oh" with probability `oh`."""
    count = rng.integers(num_digits[0], num_digits[1], endpoint=True)
    words = [DIGITS[digit] for digit in rng.integers(0, 10, size=count)]
    return " ".join("oh" if word == "zero" and rng.random() < oh else word for word in words)


def command(rng: np.random.Generator) -> str:
    """A short command, such as "turn off the kitchen light" or "stop"."""
    slots = _COMMANDS[rng.integers(len(_COMMANDS))]
    return " ".join(words[rng.integers(len(words))] for words in slots)


def sentence(vocabulary: str, oh: float) -> Callable[[np.random.Generator], str]:
    """A function that draws sentences: digit strings for "digits", half of them commands for "commands"."""

    def draw(rng: np.random.Generator) -> str:
        if vocabulary == "digits" or rng.random() < 0.5:
            return digit_string(rng, oh=oh)
        return command(rng)

    return draw
