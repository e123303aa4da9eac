"""What an example is, and the one place where an answer is read from a text and judged.

Validation, evaluation and RL rewards all call `is_correct`: an accuracy and a reward mean the same.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from ..config import UserError


@dataclass(frozen=True)
class Example:
    """One problem with its chain of thought.

    question  the problem's text
    steps     the chain in order, one string a step: "<<16-3=13>>", or a sentence; () if the data has no chain
    answer    a number in the form of `normalise`: "18", "-3", "0.5"; or a word (mini_prosqa); or LaTeX in
              dollars (MATH): "$5\\pi$"
    chains    all valid orders of the steps where they are known (generated problems), else ()
    """

    question: str
    steps: tuple[str, ...]
    answer: str
    chains: tuple[tuple[str, ...], ...] = ()

    @property
    def chain(self) -> str:
        """The steps as one text."""
        return " ".join(self.steps)


# Digits with or without thousands commas: "1,234" is one number, "1, 2" and "1,2" are two.
_DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])\.\d+)(?:[eE][-+]?\d+)?"
_NUMBER = re.compile(
    rf"""(?P<minus>(?<![\w)\]}}%])-)?    # in "3-2" and "(1+2)-2" the minus subtracts: it is no sign
         (?:[$€£][ ]?(?P<inner>-)?)?     # "-$5" and "$-5" are both -5
         (?<![\w^])                      # the 2 of "m2" and "x^2" is part of a name, not a number
         (?:(?P<whole>\d+)[ ]+(?=\d+/))? # "2 1/2"
         (?P<top>{_DIGITS})
         (?:[ ]?/[ ]?(?P<bottom>{_DIGITS}))?""",
    re.VERBOSE | re.ASCII,
)
_FRAC = re.compile(r"(\d ?)?\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_ANSWER_IS = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*[:=])", re.IGNORECASE)
_MAX_DIGITS = 100  # a longer number is noise; without a limit, "1e999999999" would fill the memory


def extract_answer(text: str | None, wanted: str | int | float = 0) -> str | None:
    r"""The number that a text gives as its answer, in the form of `normalise`; None if it has no number. If
    the wanted answer is a word, the text's words, without case, punctuation and extra spaces, or None.

    The last \boxed{x} counts, else the last "#### x", else the last "answer is x" (or "answer: x"), else the
    last number of the text. A mark with no number after it (the text was cut off) does not count. Percent
    signs, currencies and units are dropped: "50%" is "50". Never raises, whatever the text.
    """
    if _is_word(wanted):
        return " ".join(re.findall(r"\w+", text.casefold())) or None if isinstance(text, str) else None
    text = _plain(text) if isinstance(text, str) else ""
    for marked in (_boxed(text), text.split("####")[1:], _ANSWER_IS.split(text)[1:]):
        for part in reversed(marked):
            sentence = re.split(r"\n|\.(?=\s|$)", part.strip(), maxsplit=1)[0]
            number = _first(_NUMBER.finditer(sentence.rpartition("=")[2]))  # "the answer is 9*2 = 18 dollars"
            if number:
                return number
    return _first(reversed([*_NUMBER.finditer(text)]))


def normalise(value: str | int | float | None) -> str | None:
    """The one way to write a number: "1,234.50", "$1234.5" and 1234.5 are all "1234.5"; else None.

    A unit may follow ("18 dollars"), a second number may not. A fraction becomes a decimal if that ends
    ("1/2" is "0.5", "1/3" stays). A float is read at 15 digits: 0.1 + 0.2 is "0.3".
    """
    if isinstance(value, float):
        value = format(value, ".15g") if math.isfinite(value) else None
    elif isinstance(value, int):
        value = str(value)
    text = _plain(value).strip() if isinstance(value, str) else ""
    match = _NUMBER.match(text)
    number = _value(match) if match and not re.search(r"\d", text[match.end() :]) else None
    return None if number is None else _text(number)


def is_correct(prediction: str | None, answer: str | int | float) -> bool:
    """Whether a text gives this answer, compared exactly: no tolerance. A text without a number never gives a
    number, a text with further words never gives a word. LaTeX in dollars is judged by `latex_equal`."""
    if isinstance(answer, str) and len(answer) > 2 and answer[0] == answer[-1] == "$":
        return latex_equal(prediction, answer)
    wanted = extract_answer(answer, answer) if _is_word(answer) else normalise(answer)
    # `normalise` gives each number one text, so equal texts are equal fractions.
    return wanted is not None and extract_answer(prediction, answer) == wanted


def _is_word(answer: str | int | float) -> bool:
    return isinstance(answer, str) and not re.search(r"\d", answer) and bool(re.search(r"\w", answer))


def latex_equal(prediction: str | None, answer: str) -> bool:
    r"""Whether a text gives the same value as "$answer$", by the optional library math-verify. The text may
    give it in \boxed{}, in dollars, or bare. UserError without the library."""
    if not isinstance(prediction, str) or not prediction.strip():
        return False
    try:
        from math_verify import parse, verify
    except ImportError:
        library = "pip install 'math-verify[antlr4_13_2]'"
        raise UserError(f"answers in LaTeX need a library to judge them: {library}") from None
    prediction = prediction.strip()
    if "$" not in prediction and "\\boxed" not in prediction:
        prediction = f"${prediction}$"
    return prediction == answer or verify(parse(answer), parse(prediction))


def last_boxed(text: str) -> str | None:
    r"""What the last \boxed{} of a solution holds, or None."""
    found = _boxed(text)
    return found[-1] if found else None


def _plain(text: str) -> str:
    """LaTeX's ways to write a number turned into plain ones, and the typographic minus into ASCII's."""
    text = re.sub(r"\\[,!;]|\\(?=[$%])", "", text.replace("−", "-").replace("{,}", ","))

    def frac(m: re.Match) -> str:
        whole = m[1].strip() + " " if m[1] else ""  # 2\frac{1}{2} is 2 1/2, not 21/2
        return f"{whole}{m[2] or m[3] or ''}/{m[4] or m[5] or ''}"

    return _FRAC.sub(frac, text)


def _boxed(text: str) -> list[str]:
    r"""What stands in each closed \boxed{...}, in the order in which they close; inner braces are matched."""
    found, opened = [], []  # opened: where each open brace's \boxed text begins, None for other braces
    for m in re.finditer(r"(\\boxed\s*)?\{|\}", text):
        if m[0] != "}":
            opened.append(m.end() if m[1] else None)
        elif opened and (start := opened.pop()) is not None:
            found.append(text[start : m.start()])
    return found


def _first(matches: Iterable[re.Match]) -> str | None:
    """The first number that these matches of _NUMBER give, as text."""
    values = map(_value, matches)
    return next((_text(value) for value in values if value is not None), None)


def _value(m: re.Match) -> Fraction | None:
    """The number that a match of _NUMBER means; None for a division by zero or an absurd size."""
    parts = [m["whole"] or "0", m["top"].replace(",", ""), (m["bottom"] or "1").replace(",", "")]
    for part in parts:
        digits, _, exponent = part.lower().partition("e")
        if len(digits) > _MAX_DIGITS or len(exponent) > 4 or abs(int(exponent or 0)) > _MAX_DIGITS:
            return None
    whole, top, bottom = map(Fraction, parts)
    if bottom == 0:
        return None
    return (whole + top / bottom) * (-1 if m["minus"] or m["inner"] else 1)


def _text(value: Fraction) -> str:
    """A decimal where it ends within 30 places, else "p/q": one text for each number."""
    places = next((n for n in range(31) if 10**n % value.denominator == 0), None)
    if places is None:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)
