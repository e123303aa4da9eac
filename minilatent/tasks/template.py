"""Problems with cells for their numbers: what a number of a text may become, and the walk from one set of
numbers to the next. redraw.py makes them of GSM8K's questions.

`Template.walk` starts from the original, changes one or two numbers at a time and recomputes; what is no
sensible problem is refused. A walk needs no luck, as drawing all numbers at once would: it only ever leaves a
valid problem for another.
"""

import ast
import functools
import operator
import random
import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

# ------------------------------------------------------------------ numbers in a text

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty""".split()
_TENS = dict(zip(range(20, 100, 10), "twenty thirty forty fifty sixty seventy eighty ninety".split()))
WORDS = dict(enumerate(_ONES)) | _TENS
WORDS |= {ten + i: f"{_TENS[ten]}-{_ONES[i]}" for ten in _TENS for i in range(1, 10)}
VALUES = {word: value for value, word in WORDS.items()}

_WORD = r"\b(?:" + "|".join(sorted(VALUES, key=len, reverse=True)) + r")\b"
_PART = r"(hal(?:f|ves)|thirds?|fourths?|quarters?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?)\b"
_PARTS = {"hal": 2, "thi": 3, "fou": 4, "qua": 4, "fif": 5, "six": 6, "sev": 7, "eig": 8, "nin": 9, "ten": 10}
# What is never drawn: clock times, ordinals; in a question also years, fractions and round words.
_NAMES = r"\d+:\d+|\d+(?:st|nd|rd|th)\b|\bone\b"
_YEAR = r"(?<![$,\d])\b(?:19|20)\d\d\b(?![,.%]?\d|\s+[a-z]+s\b)"
_RATIO = rf"(?:\d+\s)?\d+/\d+|(?:(?:an?|\d+|{_WORD})[-\s])?{_PART}|{_WORD}\s(?:hundred|thousand|million)\b"
NAMES, KEPT = re.compile(_NAMES, re.I), re.compile(f"{_NAMES}|{_YEAR}|{_RATIO}", re.I)
_DIGITS = r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+|(?=\.\d))(?:\.\d+)?(?!\d|:\d|,\d|[A-Za-z]{3})"
_NUMBER = re.compile(rf"({_DIGITS}|{_WORD})(?=[\s-]*(%|[A-Za-z]+)?)", re.IGNORECASE)

Number = int | Fraction  # an int where it is whole: ten times as fast


class Token(NamedTuple):
    """A number in a text: where, how it is written, its value, its kind ($, % or nothing), the next word."""

    start: int
    end: int
    text: str
    value: Number
    kind: str
    unit: str


def simple(value: Fraction) -> Number:
    return value.numerator if value.denominator == 1 else value


def number(text: str) -> Number:
    return VALUES[text.lower()] if text.lower() in VALUES else simple(Fraction(text.replace(",", "")))


def scan(text: str, kept: re.Pattern) -> list[Token]:
    """The numbers of a text, without those that are kept as they are."""
    text, found = kept.sub(lambda m: "_" * len(m[0]), text), []
    for m in _NUMBER.finditer(text):
        unit = (m[2] or "").lower()
        kind = "%" if unit in ("%", "percent") else "$" if text[: m.start()].endswith("$") else ""
        found.append(Token(m.start(), m.end(), m[1], number(m[1]), kind, unit))
    return found


@functools.lru_cache(1 << 18)
def show(value: Number, like: str) -> str:
    """A value, written as the text `like` writes another: in words, with commas, with cents."""
    if like.lower() in VALUES and value in WORDS:
        return WORDS[value].capitalize() if like[0].isupper() else WORDS[value]
    places = len(like.partition(".")[2])
    places = places if places > 1 else 0  # 1.5 becomes 2, but 1.50 becomes 2.00
    while 10**places % value.denominator:
        places += 1
    digits = str(int(abs(value) * 10**places)).zfill(places + 1)
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    whole = f"{int(whole):,}" if "," in like else "" if whole == "0" and like.startswith(".") else whole
    return "-" * (value < 0) + whole + "." * bool(places) + decimals


# ------------------------------------------------------------------ what a number may be

# Constants, and the words that bring them along. Before such a word the number itself is a fact.
CONSTANTS = {
    2: "twice|doubl|hal[fv]|both|couple|pair|second|average|other|again|parent|eye|arm|wing|side|week|friday",
    3: "thrice|tripl|third|yard|twice|doubl|half|average|monday|tuesday|friday|sunday",
    4: "quart|fourth|quadrupl|month|week|leg|wheel|side|season|average|monday|tuesday|friday|sunday",
    5: "fifth|nickel|school|average|monday|tuesday|friday|weekend|saturday|sunday",
    6: "sixth|monday|friday",
    7: "week|day|daily",
    8: "pint|eighth|leg",
    10: "dime|decade|tenth",
    12: "dozen|year|month|annual|foot|feet|inch",
    16: "ounce|pound",
    20: "score",
    24: "day|hour|daily",
    25: "quarter",
    28: "days",
    30: "month|days|half an hour|june|april|september|november",
    31: "days|january|march|may|july|august|october|december",
    52: "week|year|card",
    60: "hour|minute|second",
    100: "%|percent|cent|meter",
    365: "year|day",
    1000: "kilo|gram|km|meter|liter|milli",
}
# Numbers before these words pass no limit that the original keeps.
LIMITS = {"day": (7, 31), "hour": (12, 18), "minute": (60,), "second": (60,), "month": (12,), "inch": (12,)}
LIMITS |= {"week": (4, 52), "feet": (7,), "foot": (7,), "cent": (100,)}
# How else an equation may write a number, as offset + scale * number, by its kind or the word behind it.
_HUNDREDTH = Fraction(1, 100)
FORMS = {"cents": [(0, _HUNDREDTH)], "dozen": [(0, 12)], "times": [(1, 1)]}
FORMS["%"] = [(0, _HUNDREDTH), (1, -_HUNDREDTH), (1, _HUNDREDTH), (100, -1), (100, 1)]


# ------------------------------------------------------------------ templates

Slot = tuple[int, str]  # a cell, and how the original writes its value


class Untraceable(Exception):
    """Why no template can be made of a question."""


class Step(NamedTuple):
    """Computes a cell. The program is in postfix order; an int in it is a cell. A value that is not whole in
    1 / unit or not between low and high makes no sensible problem."""

    cell: int
    program: tuple
    unit: int
    low: Number
    high: Number


def divide(a: Number, b: Number) -> Number:
    return a // b if type(a) is int and type(b) is int and b and a % b == 0 else Fraction(a) / b


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: divide}
OPERATORS |= {ast.UAdd: operator.add, ast.USub: operator.sub}


class Template:
    """A problem with cells for its numbers."""

    def __init__(self, original: str):
        self.original = original
        self.values: list[Number] = [0]  # of each cell, in the original; cell 0 is the number 0
        self.question: list[str | Slot] = []
        self.answer: list[str | Slot] = []
        self.free: list[tuple[int, list[Number]]] = []  # cells to draw, and from what
        self.steps: list[Step] = []

    # -------------------------------------------------------------- what its numbers may be

    def constants(self) -> set[Number]:
        """What the words and the fractions of the question allow as constants."""
        found = {value for value, words in CONSTANTS.items() if re.search(words, self.original.lower())}
        for m in KEPT.finditer(self.original):
            values = [number(text) for text in re.findall(rf"\d+|{_WORD}", m[0].lower())]
            if m[1]:
                values = [*(values or [1]), _PARTS[m[1][:3].lower()]]
            found |= set(values)
            if (m[1] or "/" in m[0]) and values[-1]:
                a, b = values[-2:]
                found |= {b - a, a + b, *(simple(Fraction(n, b)) for n in (a, b - a, a + b))}
        return found

    def choices(self, token: Token) -> set[Number]:
        """The values that may take a number's place: about as large, as round, written in the same way."""
        value, unit, places = token.value, token.unit, len(token.text.partition(".")[2])
        fact = unit and re.match(CONSTANTS.get(value, "$^"), unit)  # "12 months"
        if fact or unit.startswith("bill") or value <= 1 and not places:
            return {value}
        n = int(value * 10**places)
        grid = next(g for g in (1000, 500, 100, 50, 10, 5, 1) if n % g == 0 and (n >= 3 * g or g == 1))
        low, high = (0.7 * n, 1.5 * n) if unit.startswith("year") else (n / 2, 2 * n + (n < 5))  # an age
        limits = [limit for word, some in LIMITS.items() if unit.startswith(word) for limit in some]
        limits = [limit * 10**places for limit in [95] * (token.kind == "%") + limits if limit >= value]
        around = range(grid, int(min([high, *limits])) + 1, grid)
        found = {simple(Fraction(m, 10**places)) for m in around if m >= max(low, 2)}
        if token.text.lower() in VALUES:
            found &= set(WORDS)
        before = self.original[: token.start].lower()
        if re.search(r"\ban? $", before):  # a 12-page book, an 8-page book
            an = {v for v in found if re.match(r"8|1[18](\D|$)", str(v))}
            found = an if before.endswith("an ") else found - an
        return found | {value}

    # -------------------------------------------------------------- how they depend on one another

    def cell(self, value: Number) -> int:
        self.values.append(value)
        return len(self.values) - 1

    def require(self, program: tuple, low: Number, high: Number) -> None:
        self.steps.append(Step(self.cell(0), program, 10**6, low, high))

    def compute(self, program: tuple, value: Number, places: int = 6) -> int:
        """A cell for what a program gives: here this value, in other problems one of about its size."""
        low, high = sorted((value / Fraction(3), value * 3))
        if value in (-1, 0, 1):
            low = high = value
        elif value > 1:
            low = max(low, Fraction(1001, 1000))
        elif value > 0:
            high = min(high, Fraction(999, 1000))
        self.steps.append(Step(self.cell(value), program, 10**places, simple(low), simple(high)))
        return self.steps[-1].cell

    def valid(self, values: list[Number]) -> bool:
        """Recompute the cells, in place; False at the first that is not sensible."""
        for cell, program, unit, low, high in self.steps:
            stack = []
            for item in program:
                if type(item) is int:
                    stack.append(values[item])
                else:
                    b = stack.pop()
                    if item is divide and not b:
                        return False
                    stack[-1] = item(stack[-1], b)
            values[cell] = stack[0]
            if unit % stack[0].denominator or not low <= stack[0] <= high:
                return False
        return True

    def walk(self, rng: random.Random) -> Iterator[list[Number]]:
        """Values of valid problems, none twice and never the original, until no new one is found."""
        draw = lambda some: some[int(rng.random() * len(some))]  # the same on every platform and version
        values, moved = self.values, 0
        seen, misses = {tuple(values[cell] for cell, _ in self.free)}, 0
        while misses < 40 * len(self.free):
            tried, misses = values.copy(), misses + 1
            for _ in range(1 + (rng.random() < 0.4)):
                cell, some = draw(self.free)
                tried[cell] = draw(some)
            if self.valid(tried):
                values, moved = tried, moved + 1
                key = tuple(values[cell] for cell, _ in self.free)
                if moved >= len(self.free) and key not in seen:
                    seen.add(key)
                    yield values
                    moved = misses = 0

    def render(self, values: list[Number]) -> dict[str, str]:
        """A problem in GSM8K's form, and the question that it comes from."""
        text = lambda pieces: "".join(p if type(p) is str else show(values[p[0]], p[1]) for p in pieces)
        return {"question": text(self.question), "answer": text(self.answer), "template": self.original}


def cut(text: str, places: list[tuple[int, int, int]]) -> list[str | Slot]:
    """The text with slots in these places: (start, end, cell)."""
    pieces, at = [], 0
    for start, end, cell in places:
        pieces += [text[at:start], (cell, text[start:end])]
        at = end
    return [*pieces, text[at:]]
