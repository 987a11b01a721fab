"""Rewrite transcripts as they are spoken: a user's own list of spoken forms, then English numbers in words.

    with `mr.<TAB>mister` in the list and numbers en-US:
    "Mr. Lee paid $21 in 1984" → "mister Lee paid twenty-one dollars in nineteen eighty-four"

Only numbers with one usual reading are rewritten. All others stay as they are ("555-1234", "1/2", "90210",
"March 3", "$5 million"), so that their transcripts are left out and named: a wrong guess would be learned.
"""

from __future__ import annotations

import itertools
import re
import string
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from kdasr.errors import ConfigError, MissingDependencyError

US, GB = "en-US", "en-GB"
_POUNDS = {"$": "dollar", "£": "pound", "€": "euro"}
_MONTH = re.compile(
    "jan(uary)?|feb(ruary)?|mar(ch)?|apr(il)?|may|june?|july?|aug(ust)?|sept?(ember)?|oct(ober)?|nov(ember)?"
    "|dec(ember)?",
    re.IGNORECASE,
)
_MAGNITUDE = re.compile("hundred|thousand|million|billion|trillion|k|m|bn", re.IGNORECASE)

_APOSTROPHES = "'‘’"
_TOKEN = re.compile(r"""(["'“”‘’(\[{¿¡…—–]*)(.*?)(["'“”‘’)\]}.,;:!?…—–]*)""", re.DOTALL)
_GROUPED = re.compile(r"[1-9]\d{0,2}(,\d{3}){1,2}")
_DECIMAL = re.compile(r"([1-9]\d{0,2})\.([1-9]{1,4})")
_ORDINAL = re.compile(r"([1-9]\d{0,2})(st|nd|rd|th)", re.IGNORECASE)
_TIME = re.compile(r"([1-9]|1\d|2[0-3]):([0-5][1-9]|[1-5]0)")
_OTHER_LANGUAGES = "Spell out numbers in other languages as words first."
_ENGLISH_WORD = re.compile(r"[A-Za-z]+")


def check_spoken(settings: Any) -> None:
    """Refuse values of `numbers` and `spoken_forms` that cannot be used; for `__post_init__` of a Settings.

    Raises:
        ConfigError: numbers is neither en-US nor en-GB, or the language is another; spoken_forms is no file.
        MissingDependencyError: num2words is not installed.
    """
    if settings.numbers is not None and settings.numbers not in (US, GB):
        raise ConfigError(
            "numbers cannot be written as words of this language",
            where="--numbers",
            expected=f"{US} (one hundred five) or {GB} (one hundred and five)",
            got=settings.numbers,
            fix=_OTHER_LANGUAGES,
        )
    if (
        settings.numbers is not None
        and settings.language
        and not re.match("en(-|$)", settings.language, re.I)
    ):
        raise ConfigError(
            "numbers are written as English words",
            where="--numbers",
            expected="an English --language, or none",
            got=settings.language,
            fix=_OTHER_LANGUAGES,
        )
    spoken_form(settings)


def read_spoken_forms(path: Path | str) -> dict[str, str]:
    """Read a list of `WRITTEN<TAB>SPOKEN` lines; SPOKEN may be empty, which removes what is written.

    Empty lines and lines that begin with `#<space>` are skipped. Upper and lower case are the same.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8, or has a line without a tab or a second form for
            the same text.
    """
    forms = dict[str, str]()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "the list of spoken forms cannot be read", where=path, expected="a UTF-8 file", got=error
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("# "):
            continue
        written, tab, spoken = line.partition("\t")
        if not (written := _lower(" ".join(written.split()))) or not tab:
            expected = "the written form, a tab and the spoken form"
            raise ConfigError(
                "this is not a spoken form", where=f"{path}:{number}", expected=expected, got=repr(line[:80])
            )
        if forms.setdefault(written, spoken.strip()) != spoken.strip():
            raise ConfigError(
                f"a second spoken form for {written!r}",
                where=f"{path}:{number}",
                expected=f"only one, and an earlier line gives {forms[written]!r}",
                got=repr(spoken.strip()),
            )
    return forms


def spoken_form(settings: Any) -> Callable[[str], str] | None:
    """The function that rewrites a transcript as it is spoken; None: transcripts stay as they are written."""
    forms = read_spoken_forms(settings.spoken_forms) if settings.spoken_forms else {}
    replaced = _replacement(forms)
    if (language := settings.numbers) is None:
        return replaced if forms else None
    _num2words()
    return lambda text: _numbers_in_words(replaced(text), language)


def _replacement(forms: Mapping[str, str]) -> Callable[[str], str]:
    """A function that replaces whole words, and symbols anywhere, by their spoken forms, longest first."""
    from kdasr.symbols import TURKISH_CAPITALS  # command-line help works without importing SentencePiece

    if not forms:
        return lambda text: text
    # A form that begins or ends with a letter or digit must not be a part of a longer word.
    parts = (
        (r"(?<!\w)" if written[0].isalnum() else "")
        + r"\s+".join(map(re.escape, written.split()))
        + (r"(?!\w)" if written[-1].isalnum() else "")
        for written in sorted(forms, key=len, reverse=True)
    )
    pattern = re.compile("|".join(parts), re.IGNORECASE)

    def spoken(found: re.Match[str]) -> str:
        # Ignoring case, a pattern also matches letters such as ſ, which are not the s of lower case; I may be
        # the capital of i, or of ı.
        words = " ".join(found[0].split())
        cases = (_lower(words), _lower(words.translate(TURKISH_CAPITALS)))
        return f" {next((forms[one] for one in cases if one in forms), found[0])} "

    def replaced(text: str) -> str:
        rewritten, count = pattern.subn(spoken, unicodedata.normalize("NFC", text))
        return rewritten if count else text

    return replaced


def _lower(text: str) -> str:
    """`text` in lower case, with composed accents. The lower case of İ is an i with a dot of its own."""
    return unicodedata.normalize("NFC", text).lower().replace("i\u0307", "i")


class _Token(NamedTuple):
    """A word of a text, with the punctuation before and after it."""

    before: str
    word: str
    after: str


_NONE = _Token("", "", "")


def _numbers_in_words(text: str, language: str) -> str:
    """The text with those numbers in words that have one usual reading."""
    tokens = [_Token(*_TOKEN.fullmatch(token).groups()) for token in text.split()]  # type: ignore[union-attr]
    words = []
    for previous, this, following in zip([_NONE, *tokens], tokens, [*tokens[1:], _NONE], strict=False):
        spelled = None
        if _has_digit(this.word) and not _depends(previous, this, following):
            spelled = _in_words(this.word, language)
        if spelled is None:
            words.append("".join(this))
        else:  # an apostrophe beside a word would be kept as a part of it
            words.append(this.before.strip(_APOSTROPHES) + spelled + this.after.strip(_APOSTROPHES))
    return " ".join(words)


def _has_digit(text: str) -> bool:
    return any(char in string.digits for char in text)


def _is_digits(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _is_year(digits: str) -> bool:
    return len(digits) == 4 and _is_digits(digits) and 1100 <= int(digits) < 2100


def _depends(previous: _Token, this: _Token, following: _Token) -> bool:
    """Whether the reading of a number depends on what is beside it: parts of a telephone number or of
    "10 000", days of a month, "$5 million", feet and inches."""
    beside = [previous.word] if not previous.after.strip(".") else []
    beside += [following.word] if not this.after.strip(".") else []
    if any(_has_digit(word) for word in beside) or (not this.before and this.after[:1] in {"'", "’", '"'}):
        return True
    is_day = _is_digits(this.word) and int(this.word) <= 31
    is_sum = this.word[:1] in _POUNDS
    return any(
        (is_day and _MONTH.fullmatch(word)) or (is_sum and _MAGNITUDE.fullmatch(word)) for word in beside
    )


def _in_words(word: str, language: str) -> str | None:
    """A word with digits in words; None if it may be read in several ways."""
    word = word.replace("’", "'")
    if word[0] in _POUNDS:
        return _money(word, language)
    if word.endswith("%"):
        number = _number(word[:-1], language) or _decimal(word[:-1], language)
        return number and f"{number} {'percent' if language == US else 'per cent'}"
    if found := _TIME.fullmatch(word):
        minutes = _words(int(found[2]), language)
        return f"{_words(int(found[1]), language)} {'oh ' if found[2][0] == '0' else ''}{minutes}"
    stem = word.removesuffix("'s")
    parts = stem.split("-")
    if any(_has_digit(one) and _has_digit(other) for one, other in itertools.pairwise(parts)):
        return None
    read = [words for part in parts if (words := _part(part, language)) is not None]
    return "-".join(read) + word[len(stem) :] if len(read) == len(parts) else None


def _part(part: str, language: str) -> str | None:
    """One of the parts of a word that hyphens separate."""
    if _ENGLISH_WORD.fullmatch(part):
        return part
    if found := _ORDINAL.fullmatch(part):
        return _words(int(found[1]), language, to="ordinal")
    if part.endswith("s") and _is_digits(part[:-1]):
        return _decade(part[:-1], language)
    if _is_year(part):
        return _words(int(part), language, to="year")
    return _number(part, language) or _decimal(part, language)


def _number(digits: str, language: str) -> str | None:
    """A whole number of at most three digits, with commas, or of thousands."""
    if _GROUPED.fullmatch(digits):
        return _words(int(digits.replace(",", "")), language)
    if not _is_digits(digits) or (digits[0] == "0" and digits != "0"):
        return None
    is_certain = len(digits) <= 3 or (len(digits) <= 6 and digits.endswith("000"))
    return _words(int(digits), language) if is_certain else None


def _decimal(digits: str, language: str) -> str | None:
    """As 3.14; not as 0.5, 2.0 and 10.05, whose zeros have several names."""
    found = _DECIMAL.fullmatch(digits)
    if found is None:
        return None
    fraction = " ".join(_words(int(digit), language) for digit in found[2])
    return f"{_words(int(found[1]), language)} point {fraction}"


def _decade(digits: str, language: str) -> str | None:
    """As 1980s and 80s."""
    if not digits.endswith("0") or not (_is_year(digits) or (len(digits) == 2 and digits >= "20")):
        return None
    words = _words(int(digits), language, to="year" if _is_year(digits) else "cardinal")
    return f"{words[:-1]}ies" if words.endswith("y") else f"{words}s"


def _money(word: str, language: str) -> str | None:
    """A whole sum as $21 or £2,500; what is said of cents varies."""
    number = _number(word[1:], language)
    return number and f"{number} {_POUNDS[word[0]]}{'' if word[1:] == '1' else 's'}"


def _words(number: int, language: str, to: str = "cardinal") -> str:
    words: str = _num2words()(number, lang="en", to=to)
    words = words.replace(",", "")
    return words.replace(" and ", " ") if language == US else words


def _num2words() -> Callable[..., str]:
    try:
        from num2words import num2words
    except ImportError as error:
        raise MissingDependencyError("num2words", "numbers") from error
    function: Callable[..., str] = num2words
    return function
