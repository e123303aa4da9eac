"""What an example is, and the one place where an answer is read from a text and judged.

Validation, evaluation and RL rewards all call `is_correct`: an accuracy and a reward mean the same.
"""

import re
from dataclasses import dataclass
from decimal import Decimal

from ..config import UserError


@dataclass(frozen=True)
class Example:
    """One problem with its chain of thought.

    question  the problem's text
    steps     the chain in order, one string a step: "<<16-3=13>>", or a sentence; () if the data has no chain
    answer    a number in the form of `normalise`: "18", "-3", "0.5"; or a word (mini_prosqa); or LaTeX in
              dollars (MATH, AIME): "$5\\pi$"
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


# Digits with or without thousands commas: "1,234" is one number, "1, 2" and "1,2" are two. The 2 of "m2" is
# part of a name, and in "(1+2)-2" the minus is no sign.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w)\]}.])-?\.\d+)"
    r"(?:[eE]-?\d\d?(?!\d))?",
    re.ASCII,
)
# What makes a number a part of something, where it stands right before or after it: an operator, a bracket,
# a command of LaTeX, a letter ("4x"; two are a unit: "5kg"), the colon of a ratio, "3 or 5", "3 to 5".
_ARITHMETIC = re.compile(r"(?:^|[\d)])\s*[-+*]\s*$|<<$")  # of numbers, as before the 2 of "3-2"
_BEFORE = re.compile(r"(?:[-+*/×÷·^_<([{√]|\d:|\\[A-Za-z]+)\s*$")
_BEHIND = re.compile(
    r"[\^_!(){}\]√²³¹⁰-₉⅐-⅟]|:\d|\s*\\[A-Za-z]|[^\W\d](?![^\W\d])|\s*[-+*/×÷·]\s*(?:[\d.({\\]|[^\W\d]\b)"
    r"|(?:\s*[,;&]|\s+(?:[^\W\d]+\s+)?(?:and|or|to)\s)\s*-?\.?\d"
)
_ANSWER_IS = re.compile(r"\banswer(?:\s+is\b\s*:?|\s*[:=])", re.IGNORECASE)
_MAX_DIGITS = 100  # a longer number is noise

# Other ways to write a number, turned one after the other into what _NUMBER reads.
_CHARACTERS = str.maketrans("‐‑‒–−﹣－，．", "-------,.") | {188: ".25", 189: ".5", 190: ".75"}  # ¼ ½ ¾
_SCALE = r"(?<=\d)((?:\s*(?:hundred|thousand|million|billion|trillion)s?\b(?!-))+)"
_ZEROS = {"hun": 2, "tho": 3, "mil": 6, "bil": 9, "tri": 12}
_REWRITE = [
    (r"(?![0-9])\d", lambda m: str(int(m[0]))),  # the digits of other scripts
    (r"\\(?:text|math)(?:bf|it|rm)?\{([^{}]*)\}", r" \1 "),
    (r"\\boxed\s*\{?|\\[!;()\[\]]|\^\{?\\circ\}?|\\?[$%]|[¢£¤¥₠-⃀￥٪％°]", ""),
    (r"(?<![\w*])([*_]{1,2})(?=\S)([^*_\n]*[^*_\s])\1(?![\w*])", r"\2"),  # **bold** and _italics_
    (r"(?<![\d.,])\d{1,3}(?:(?:\\[, ]|\{,\}|[^\S\n]|[~'’])\d{3})+(?!\d)", lambda m: re.sub(r"\D", "", m[0])),
    (r"(?<=\d) (?=\.(?:25|5|75)(?!\d))", ""),  # 2 ½
    (r"(?<=\d)\s*(?:\\times|\\cdot|[×·*])\s*10\s*\^\s*(?:(-?\d\d?)|\{(-?\d\d?)\})(?!\d)", r"e\1\2"),
    (_SCALE, lambda m: f"e{sum(_ZEROS[word[:3].lower()] for word in m[1].split())}"),
    (r"(^|[=:#]|\bis)[^\S\n]*([-+])[^\S\n]*(?=[\d.])", lambda m: f"{m[1]} {m[2].strip('+')}"),  # signs
]
_REWRITE = [(re.compile(pattern, re.IGNORECASE), new) for pattern, new in _REWRITE]


def extract_answer(text: str | None, wanted: str | int | float = 0) -> str | None:
    r"""The number that a text gives as its answer, in the form of `normalise`; None if it gives none. If the
    wanted answer is a word, the text's words, without case, punctuation and extra spaces, or None.

    The last \boxed{x} counts, and x must be a number alone. Else the first number behind the last "####" or
    else "answer is" (or "answer:"), else the last number of the text; a mark with no number behind it (the
    text was cut off) does not count. Percent signs, currencies and units are dropped: "50%" is "50".
    A number that is a part is no answer: neither is 2 of "1/2", nor 4 of "4\sqrt{2}", nor 3 of "#### 3 or 5".
    (Without a mark arithmetic is a chain that was cut off: the last number of "3-2" is 2.) Never raises.

    Where math-verify judges otherwise, on purpose: nothing is calculated ("1/2" is not "0.5", "36/2" not
    "18"), compared exactly, and a part never counts (there "18!" and "18:30" give 18). "12\,500", "1.5
    million", "1.25e4", "2½", "–18" and "_18_" are numbers here.
    """
    if not isinstance(text, str):
        return None
    if _is_word(wanted):
        return " ".join(re.findall(r"\w+", text.casefold())) or None
    if boxed := last_boxed(text):
        return normalise(boxed.rpartition("=")[2])
    text = _plain(text)
    for marked in (text.split("####")[1:], _ANSWER_IS.split(text)[1:]):
        for part in reversed(marked):
            sentence = re.split(r"\n|\.(?=\s|$)", part.strip(), maxsplit=1)[0]
            sentence = sentence.rpartition("=")[2]  # "the answer is 9*2 = 18 dollars"
            if first := _NUMBER.search(sentence):
                return _value(first)
    numbers = [*_NUMBER.finditer(text)]
    return _value(numbers[-1], marked=False) if numbers else None


def normalise(value: str | int | float | None) -> str | None:
    """The one way to write a number: "1,234.50", "$1234.5" and 1234.5 are all "1234.5"; None for all that is
    not one number, with a unit perhaps ("18 dollars"). A float is read at 15 digits: 0.1 + 0.2 is "0.3"."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        value = format(Decimal(format(value, ".15g") if isinstance(value, float) else value), "f")
    text = _plain(value) if isinstance(value, str) else ""
    number = _NUMBER.match(text.strip())
    more = number and re.search(r"[\d<>=]|\b[A-Za-z]\b", number.string[number.end() :])
    return _value(number) if number and not more else None


def is_correct(prediction: str | None, answer: str | int | float) -> bool:
    """Whether a text gives this answer, compared exactly: no tolerance. A text without a number never gives a
    number, a text with further words never gives a word. LaTeX in dollars is judged by `latex_equal`."""
    if isinstance(answer, str) and len(answer) > 2 and answer[0] == answer[-1] == "$":
        return latex_equal(prediction, answer)
    wanted = extract_answer(answer, answer) if _is_word(answer) else normalise(answer)
    return wanted is not None and extract_answer(prediction, answer) == wanted


def latex_equal(prediction: str | None, answer: str) -> bool:
    r"""Whether a text gives the same value as "$answer$", by the optional library math-verify. The text may
    give it in \boxed{}, in dollars, or bare. UserError without the library."""
    library = math_verify()
    if not isinstance(prediction, str) or not prediction.strip():
        return False
    prediction = prediction.strip()
    if "$" not in prediction and "\\boxed" not in prediction:
        prediction = f"${prediction}$"
    return prediction == answer or library.verify(library.parse(answer), library.parse(prediction))


def math_verify():
    """The library that judges answers in LaTeX. UserError if it is not installed."""
    try:
        import math_verify
    except ImportError:
        raise UserError("answers in LaTeX are judged by a library: pip install math-verify") from None
    return math_verify


def last_boxed(text: str) -> str | None:
    r"""What the last closed \boxed{...} of a text holds, or None; inner braces are matched."""
    found, opened = None, []  # opened: where each open brace's \boxed text begins, None for other braces
    for m in re.finditer(r"(\\boxed\s*)?\{|\}", text):
        if m[0] != "}":
            opened.append(m.end() if m[1] else None)
        elif opened and (start := opened.pop()) is not None:
            found = text[start : m.start()]
    return found


def _plain(text: str) -> str:
    r"""A text whose numbers are written as _NUMBER reads them, without what may stand around them or inside:
    currencies, %, bold, \text{}, blanks between thousands."""
    text = text.translate(_CHARACTERS)
    for pattern, new in _REWRITE:
        text = pattern.sub(new, text)
    return text


def _value(number: re.Match, marked: bool = True) -> str | None:
    """The number in its one form; None if it is part of an expression, or absurdly long."""
    text, start, end = number.string, number.start(), number.end()
    before, behind = text[max(0, start - 50) : start], text[end : end + 50]
    if not marked and _ARITHMETIC.search(before):
        before = ""
    if _BEFORE.search(before) or _BEHIND.match(behind) or len(number[0]) > _MAX_DIGITS:
        return None
    shown = format(Decimal(number[0].replace(",", "")), "f")
    shown = shown.rstrip("0").rstrip(".") if "." in shown else shown
    return "0" if shown == "-0" else shown


def _is_word(answer: str | int | float) -> bool:
    return isinstance(answer, str) and not re.search(r"\d", answer) and bool(re.search(r"\w", answer))
