"""GSM8K with its numbers drawn anew: `python -m minilatent.tasks.redraw FILE --n 400000 --out x.jsonl`.

A question of GSM8K comes with a chain of equations, <<48/2=24>>. `trace` finds where each operand is from: a
number of the question, an earlier result, or a constant (60 minutes, "half"). That makes a Template: the same
text with cells in it, and equations between the cells. `Template.walk` changes numbers, one or two at a time,
and recomputes; what is no sensible problem is refused. So the walk needs no luck: it begins at a valid point,
the original, and each step of it ends at a valid one.
"""

import ast
import functools
import json
import operator
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from ..config import Parser, UserError, run_script
from ..files import replace_file
from .published import Record, read

# ------------------------------------------------------------------ numbers in a text

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
    sixteen seventeen eighteen nineteen twenty""".split()
_TENS = dict(zip(range(20, 100, 10), "twenty thirty forty fifty sixty seventy eighty ninety".split()))
WORDS = dict(enumerate(_ONES)) | _TENS
WORDS |= {ten + i: f"{_TENS[ten]}-{_ONES[i]}" for ten in _TENS for i in range(1, 10)}
VALUES = {word: value for value, word in WORDS.items()}

_WORD = r"\b(?:" + "|".join(sorted(VALUES, key=len, reverse=True)) + r")\b"
_PART = r"(?:hal(?:f|ves)|thirds?|fourths?|quarters?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?)\b"
# What is kept as it is: clock times, dates, fractions, round words.
_ORDINAL = r"\d+:\d+|\d+(?:st|nd|rd|th)\b|\b(?:19|20)\d\d\b(?!\s+\w+s\b)|\b[ap]\.?m\b|\bone\b"
_RATIO = (
    rf"(?:(?:\d+\s)?\d+/\d+|(?:(?:an?|\d+|{_WORD})[-\s])?{_PART}|{_WORD}\s(?:hundred|thousand|million)\b)"
)
_FIXED = re.compile(f"{_ORDINAL}|{_RATIO}", re.IGNORECASE)
_ONLY_ORDINAL = re.compile(_ORDINAL, re.IGNORECASE)
_DIGITS = r"(?<![\w.])(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+|(?=\.\d))(?:\.\d+)?(?![\d:]|,\d|[A-Za-z]{3})"
_NUMBER = re.compile(rf"{_DIGITS}|{_WORD}", re.IGNORECASE)
_BEHIND = re.compile(r"[\s-]*(%|percent|[A-Za-z]+)?")


class Token(NamedTuple):
    """A number in a text: where, how it is written, its value, the kind ($, % or nothing), the next word."""

    start: int
    end: int
    text: str
    value: int | Fraction
    kind: str
    unit: str


def simple(value: Fraction) -> int | Fraction:
    """An int where it is whole: ints are ten times as fast."""
    return value.numerator if value.denominator == 1 else value


def number(text: str) -> int | Fraction:
    return VALUES.get(text.lower()) or simple(Fraction(text.lower().replace("zero", "0").replace(",", "")))


def scan(text: str, keep: re.Pattern = _FIXED) -> list[Token]:
    """The numbers of a text, without those that are kept."""
    text = keep.sub(lambda m: "_" * len(m[0]), text)
    found = []
    for m in _NUMBER.finditer(text):
        unit = (_BEHIND.match(text, m.end())[1] or "").lower()
        kind = "%" if unit in ("%", "percent") else "$" if text[m.start() - 1 : m.start()] == "$" else ""
        found.append(Token(m.start(), m.end(), m[0], number(m[0]), kind, unit))
    return found


@functools.lru_cache(1 << 18)
def show(value: int | Fraction, like: str) -> str:
    """A value, written as the text `like` writes another: in words, with commas, with cents."""
    if like.lower() in VALUES:
        return WORDS[value].capitalize() if like[0].isupper() else WORDS[value]
    places = len(like.partition(".")[2])
    places = places if places > 1 else 0
    while 10**places % value.denominator:
        places += 1
    sign, digits = "-" * (value < 0), str(int(abs(value) * 10**places)).zfill(places + 1)
    whole, decimals = digits[: len(digits) - places], digits[len(digits) - places :]
    whole = f"{int(whole):,}" if "," in like else "" if whole == "0" and like.startswith(".") else whole
    return sign + whole + "." * bool(places) + decimals


# ------------------------------------------------------------------ what a question lets an equation use

# Constants, and the words that bring them along. Where a number of the question could be meant as well, it
# is not drawn.
CONSTANTS = {
    2: "twice|doubl|half|halve|both|couple|pair|second|average|other|twin|another|again|parents",
    3: "thrice|tripl|third|yard",
    4: "quarter|fourth|quadrupl|month",
    5: "fifth|nickel|weekday",
    7: "week|day|daily",
    10: "dime|decade|tenth",
    12: "dozen|year|month|annual|foot|feet|inch",
    16: "ounce|pound",
    24: "day|hour|daily",
    25: "quarter",
    30: "month|days",
    52: "week|year",
    60: "hour|minute|second",
    100: "%|percent|cent|meter",
    365: "year|day",
    1000: "kilo|gram|km|meter|liter|milli",
}
# Numbers that are facts before these words: 60 minutes, 4 legs.
FACTS = {
    2: "parent|grandparent|side|hand|eye|arm|wing|shoe|sock|time|half",
    3: "feet|side",
    4: "week|leg|wheel|side|quarter|tire|season",
    7: "day",
    10: "dime|year",
    12: "month|inch",
    16: "ounce",
    24: "hour",
    28: "day",
    30: "day",
    31: "day",
    52: "week|card",
    60: "minute|second",
    100: "cent|%",
    365: "day",
}
# Numbers before these words do not pass the first of these that they began below.
LIMITS = {"day": (7, 31), "hour": (12, 24), "minute": (60,), "second": (60,), "month": (12,)}
LIMITS |= {"week": (4, 52), "feet": (7,), "foot": (7,), "inch": (12,), "cent": (100,)}
_PARTS = {"hal": 2, "thi": 3, "fou": 4, "qua": 4, "fif": 5, "six": 6, "sev": 7, "eig": 8, "nin": 9, "ten": 10}


def constants(question: str) -> set[int | Fraction]:
    """What the words and fractions of a question allow as constants."""
    text = question.lower()
    found = {value for value, words in CONSTANTS.items() if re.search(words, text)}
    for m in _FIXED.finditer(text):
        digits = [number(d) for d in re.findall(r"\d+", m[0])]
        if part := re.search(_PART, m[0]):
            word = re.match(_WORD, m[0])
            top = digits[0] if digits else number(word[0]) if word else 1
            digits, found = [], found | _of_ratio(top, _PARTS[part[0][:3]])
        elif "/" in m[0] and digits[-1]:
            found |= _of_ratio(*digits[-2:])
        found |= set(digits)
    return found


def _of_ratio(top: int, bottom: int) -> set[int | Fraction]:
    ratio = Fraction(top, bottom)
    return {top, bottom, bottom - top, bottom + top, *map(simple, (ratio, 1 - ratio, 1 + ratio))}


def choices(token: Token, question: str) -> set[int | Fraction]:
    """The values that may take a number's place: about as large, as round, written in the same way."""
    value, places = token.value, len(token.text.partition(".")[2])
    unit = next((unit for unit in LIMITS if token.unit.startswith(unit)), "")
    if value <= 1 and not places or re.match(FACTS.get(value, "$^"), token.unit):
        return {value}
    scaled = int(value * 10**places)
    grid = next(g for g in (1000, 500, 100, 50, 10, 5, 1) if scaled % g == 0 and (scaled >= 3 * g or g == 1))
    low, high = scaled / 2, scaled * 2 + (scaled < 5)
    if token.unit.startswith("year") or token.unit == "old":
        low, high = scaled * 0.7, scaled * 1.5
    if token.kind == "%" and value <= 100:
        high = min(high, 95)
    if unit:
        high = min(high, next((limit for limit in LIMITS[unit] if value <= limit), high) * 10**places)
    least = 2 if not places else grid
    around = (
        simple(Fraction(n, 10**places)) for n in range(grid, int(high) + 1, grid) if n >= max(low, least)
    )
    article = question[: token.start].lower().split(" ")[-2:-1] in (["a"], ["an"])
    vowel = bool(re.match("8|11|18|eight|eleven", token.text.lower()))
    word = token.text.lower() in VALUES
    return {value} | {
        v
        for v in around
        if (not word or v in WORDS) and not (article and vowel != bool(re.match("8|11$|18$", str(v))))
    }


# ------------------------------------------------------------------ templates


class Untraceable(Exception):
    """Why no template can be made of a question."""


Slot = tuple[int, str]  # a cell, and how the original writes its value


class Step(NamedTuple):
    """A cell that is computed: the program is in postfix order, an int in it is a cell."""

    cell: int
    program: tuple
    unit: int  # the value is whole in 1 / unit
    low: float
    high: float


def divide(a, b):
    if type(a) is int and type(b) is int and b and a % b == 0:
        return a // b
    return Fraction(a) / b


OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: divide}


@dataclass
class Template:
    """A problem with cells for numbers. values: those of the original, cell by cell."""

    original: str
    values: list = field(default_factory=list)
    question: list[str | Slot] = field(default_factory=list)
    answer: list[str | Slot] = field(default_factory=list)
    free: list[tuple[int, list]] = field(default_factory=list)  # cells to draw, and from what
    steps: list[Step] = field(default_factory=list)
    equal: list[tuple[int, int]] = field(default_factory=list)  # cells that the chain cannot tell apart
    ordered: list[tuple[int, int]] = field(default_factory=list)  # the first is smaller than the second
    percents: list[int] = field(default_factory=list)

    def valid(self, values: list) -> bool:
        """Recompute all steps, in place; whether the result is a sensible problem."""
        for a, b in self.ordered:
            if values[a] >= values[b]:
                return False
        if self.percents and sign(self.percents, values) != sign(self.percents, self.values):
            return False
        try:
            for cell, program, unit, low, high in self.steps:
                stack = []
                for item in program:
                    if type(item) is int:
                        stack.append(values[item])
                    else:
                        b = stack.pop()
                        stack[-1] = item(stack[-1], b)
                x = stack[0]
                if unit % x.denominator or not low <= x <= high:
                    return False
                values[cell] = x
        except ZeroDivisionError:
            return False
        return all(values[a] == values[b] for a, b in self.equal)

    def walk(self, rng: random.Random) -> Iterator[list]:
        """Valid values, none twice and never the original, until no new ones are found."""
        values, seen = self.values, {tuple(self.values[cell] for cell, _ in self.free)}
        while True:
            moved = 0
            for _ in range(40 * len(self.free)):
                tried = values.copy()
                for _ in range(1 + (rng.random() < 0.4)):
                    cell, some = self.free[int(rng.random() * len(self.free))]
                    tried[cell] = some[int(rng.random() * len(some))]
                if not self.valid(tried):
                    continue
                values, moved = tried, moved + 1
                key = tuple(values[cell] for cell, _ in self.free)
                if moved >= len(self.free) and key not in seen:
                    seen.add(key)
                    yield values
                    break
            else:
                return


def sign(percents: list[int], values: list) -> int:
    total = sum(values[cell] for cell in percents)
    return (total > 100) - (total < 100)


def render(pieces: list[str | Slot], values: list) -> str:
    return "".join(p if type(p) is str else show(values[p[0]], p[1]) for p in pieces)


_MARK = re.compile(r"<<([^<>]*)>>")
# An equation without a mark, whole: "54*5 = $270".
_PLAIN = re.compile(
    r"(?<![\w.*/+=(-])(?<![-+*/x=(]\s)(\$?\d[\d,.]*%?(?:\s*[-+*/x]\s*\$?\d[\d,.]*%?)+)\s*=\s*(\$?)"
    r"(\d[\d,]*(?:\.\d+)?)(?!\s*[-+*/x%\d]|\.\d)"
)


class Tracer:
    """Makes a Template of one record. Untraceable says why not."""

    def __init__(self, question: str, solution: str, answer: str):
        self.made = Template(question)
        self.constants = constants(question)
        self.tokens, self.slots, self.uses = scan(question), [], Counter()
        self.numbers: dict[tuple, int] = {}  # (value, is it a percentage) -> cell
        for token in self.tokens:
            key = (token.value, token.kind == "%")
            self.numbers.setdefault(key, len(self.made.values))
            if self.numbers[key] == len(self.made.values):
                self.made.values.append(token.value)
        self.results: list[int] = []
        lines = [_MARK.split(complete(line)) for line in solution.strip().split("\n")]
        self.equations = [[parse(text) for text in line[1::2]] for line in lines]
        self.ahead = [value for line in self.equations for e in line for *_, value in e.literals]
        texts = []
        for line, equations in zip(lines, self.equations):
            texts.append((line, equations, [self.equation(e) for e in equations]))
        if not self.results:
            raise Untraceable("no equation")
        if number(answer) != self.made.values[self.results[-1]]:
            raise Untraceable("the answer is not the last result")
        for line in texts:
            self.made.answer += self.line(*line)
        self.made.answer += ["#### ", (self.results[-1], answer)]
        self.finish()

    def cell(self, value) -> int:
        self.made.values.append(value)
        return len(self.made.values) - 1

    def computed(self, value, program: tuple, places: int = 6) -> int:
        """A new cell for what a program gives; new values stay of about the size of this one."""
        cell = self.cell(value)
        low, high = sorted((value / Fraction(3), value * 3))
        if abs(value) in (0, 1):
            low = high = value
        elif value > 1:
            low = max(low, 1 + Fraction(1, 1000))
        elif 0 < value < 1:
            high = Fraction(999, 1000)
        self.made.steps.append(Step(cell, program, 10**places, simple(low), simple(high)))
        return cell

    def equation(self, e: "Equation") -> list[int]:
        """The cells of an equation's operands, and of its result behind them."""
        cells = {}
        for start, end, value in e.literals:
            cells[start] = self.operand(value, e.left[end : end + 4] == "/100")
        program = postfix(e.tree, cells, self.cell(0))
        places = len(e.right.partition(".")[2].rstrip("0"))
        result = self.computed(number(e.right), tuple(program), places)
        known = self.made.values.copy()
        if not self.made.valid(known) or known[result] != self.made.values[result]:
            raise Untraceable("an equation is rounded or wrong")
        self.results.append(result)
        return [*cells.values(), result]

    def operand(self, value, percent: bool) -> int:
        """The cell that an operand comes from."""
        remaining = self.ahead.count(value)
        self.ahead.remove(value)
        values = self.made.values
        found = [cell for (v, p), cell in self.numbers.items() if v == value and (p or not percent)]
        if percent and (value, True) in self.numbers:
            found = [self.numbers[value, True]]
        results = [cell for cell in self.results if values[cell] == value]
        derived = [] if found else self.derived(value)
        unused = [cell for cell in found + results if not self.uses[cell]]
        sources = found + derived + results
        if len(unused) == 1 and remaining == 1:
            sources, cell = unused, unused[0]
        elif sources:
            cell = (results or sources)[-1]
        elif value in self.constants | {1, 2}:
            return self.cell(value)
        else:
            raise Untraceable("an operand from nowhere")
        if value in self.constants and cell not in results:
            sources = [*sources, self.cell(value)]
        self.made.equal += [(cell, other) for other in sources if other != cell]
        self.uses[cell] += 1
        return cell

    def derived(self, value) -> list[int]:
        """Cells computed from a percentage, cents or dozens of the question, with this value."""
        found = []
        for token in self.tokens:
            cell = self.numbers[token.value, token.kind == "%"]
            forms = [
                (0, Fraction(1, 100)),
                (1, Fraction(-1, 100)),
                (1, Fraction(1, 100)),
                (100, -1),
                (100, 1),
            ]
            if token.kind != "%":
                forms = [(0, Fraction(1, 100))] * token.unit.startswith("cent")
                forms += [(0, 12)] * token.unit.startswith("dozen")
            for offset, scale in forms:
                if offset + scale * token.value == value:
                    program = (self.cell(offset), self.cell(scale), cell, operator.mul, operator.add)
                    found.append(self.computed(value, program))
                    self.uses[cell] += 1
        return found

    def line(self, parts: list[str], equations: list["Equation"], cells: list[list[int]]) -> list[str | Slot]:
        """A line of the solution with its numbers as slots; in the plain form if a number of the prose cannot
        be told."""
        marks = []
        for e, found in zip(equations, cells):
            places = [(start, end, cell) for (start, end, _), cell in zip(e.literals, found)]
            marks.append((cut(e.left, places), (found[-1], e.right)))
        try:
            pieces = []
            for i, part in enumerate(parts):
                if i % 2:
                    left, right = marks[i // 2]
                    pieces += ["<<", *left, "=", right, ">>"]
                else:
                    pieces += self.prose(part, i // 2, equations, cells)
            return [*pieces, "\n"]
        except Untraceable:
            pieces = []
            for left, right in marks:
                pieces += [*left, " = <<", *left, "=", right, ">>", right, "\n"]
            return pieces

    def prose(
        self, text: str, i: int, equations: list["Equation"], cells: list[list[int]]
    ) -> list[str | Slot]:
        """Prose before equation i of its line, or after the last."""
        values, tokens = self.made.values, scan(text, _ONLY_ORDINAL)
        here = {cell for line in cells for cell in line}
        everywhere = {*self.numbers.values(), *self.results}
        places = []
        ahead = [value for *_, value in equations[i].literals] if i < len(equations) else []
        shown = len(tokens) - len(ahead) if [t.value for t in tokens][-len(ahead) :] == ahead else len(tokens)
        for k, t in enumerate(tokens):
            if i and not k and t.value == values[cells[i - 1][-1]] and not text[: t.start].strip(" $"):
                places.append((t.start, t.end, cells[i - 1][-1]))
            elif k >= shown:
                places.append((t.start, t.end, cells[i][k - shown]))
            elif t.value not in (0, 1):
                found = {c for c in here if values[c] == t.value} or {
                    c for c in everywhere if values[c] == t.value
                }
                if len(found) > 1 or not found and t.value not in self.constants | {2}:
                    raise Untraceable
                places += [(t.start, t.end, c) for c in found]
        if any(t.text.lower() in VALUES and cell in self.results for t, (*_, cell) in zip(tokens, places)):
            raise Untraceable
        return cut(text, places)

    def finish(self) -> None:
        """The question's slots, and what keeps its numbers sensible."""
        made, values = self.made, self.made.values
        allowed: dict[int, set] = {}
        for t in self.tokens:
            cell = self.numbers[t.value, t.kind == "%"]
            allowed[cell] = allowed.get(cell, choices(t, made.original)) & choices(t, made.original)
            self.slots.append((t.start, t.end, cell))
        computed = {step.cell for step in made.steps}
        for a, b in made.equal:
            for one, other in ((a, b), (b, a)):
                if one in allowed and other not in allowed and other not in computed:
                    allowed[one] = {values[one]}
        made.free = [(c, sorted(some)) for c, some in allowed.items() if len(some) > 1 and self.uses[c]]
        if not made.free:
            raise Untraceable("no number is free")
        if any(t.value > 1 and not self.uses[self.numbers[t.value, t.kind == "%"]] for t in self.tokens):
            raise Untraceable("a number is not used")
        made.question = cut(made.original, self.slots)
        for kind in ("%", "$", ""):
            ranked = sorted(
                {self.numbers[t.value, t.kind == "%"] for t in self.tokens if t.kind == kind},
                key=values.__getitem__,
            )
            made.ordered += zip(ranked, ranked[1:])
            if kind == "%" and len(ranked) > 1:
                made.percents = ranked


class Equation(NamedTuple):
    left: str
    right: str
    tree: ast.expr
    literals: list[tuple]  # (start, end, value) in left


def parse(mark: str) -> Equation:
    left, _, right = re.sub(r"[\s$,]", "", mark).replace("%", "/100").replace("x", "*").partition("=")
    try:
        number(right)
        tree = ast.parse(left, mode="eval").body
        found = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        places = sorted((node.col_offset, node.end_col_offset) for node in found)
        return Equation(left, right, tree, [(a, b, number(left[a:b])) for a, b in places])
    except (SyntaxError, ValueError):
        raise Untraceable("an equation that cannot be read") from None


def postfix(node: ast.expr, cells: dict[int, int], zero: int) -> list:
    """A tree in postfix order. cells: where a literal begins -> its cell."""
    if isinstance(node, ast.Constant):
        return [cells[node.col_offset]]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.UAdd, ast.USub)):
        return [
            zero,
            *postfix(node.operand, cells, zero),
            OPERATORS[(ast.Add if isinstance(node.op, ast.UAdd) else ast.Sub)],
        ]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return [*postfix(node.left, cells, zero), *postfix(node.right, cells, zero), OPERATORS[type(node.op)]]
    raise Untraceable("an equation that cannot be read")


def complete(line: str) -> str:
    """With marks in the equations that lack them and are right."""

    def mark(m: re.Match) -> str:
        try:
            e = parse(f"{m[1]}={m[3]}")
            program = postfix(e.tree, {a: i for i, (a, *_) in enumerate(e.literals)}, len(e.literals))
            test = Template("", [*(v for *_, v in e.literals), 0, 0])
            test.steps.append(Step(len(e.literals) + 1, tuple(program), 10**6, -1e12, 1e12))
            right = test.valid(test.values) and test.values[-1] == number(e.right)
        except Untraceable:
            right = False
        return f"{m[1]} = {m[2]}<<{m[1]}={m[3]}>>{m[3]}" if right else m[0]

    parts = re.split(r"(<<[^<>]*>>)", line)
    return "".join(part if i % 2 else _PLAIN.sub(mark, part) for i, part in enumerate(parts))


def cut(text: str, places: list[tuple[int, int, int]]) -> list[str | Slot]:
    """The text with slots in these places: (start, end, cell)."""
    pieces, at = [], 0
    for start, end, cell in places:
        pieces += [text[at:start], (cell, text[start:end])]
        at = end
    return [*pieces, text[at:]]


def redraw(
    records: Iterable[Record], n: int, seed: int = 0, reasons: Counter | None = None
) -> Iterator[dict]:
    """n problems, drawn from all templates in turn."""
    walks = []
    for question, solution, answer in records:
        try:
            made = Tracer(question, solution, answer).made
            walks.append((made, made.walk(random.Random(f"{seed} {question}"))))
            why = "traced"
        except Untraceable as error:
            why = str(error)
        if reasons is not None:
            reasons[why] += 1
    rng = random.Random(seed)
    while walks and n:
        rng.shuffle(walks)
        left = []
        for made, walk in walks[:n]:
            values = next(walk, None)
            if values:
                left.append((made, walk))
                n -= 1
                yield {
                    "question": render(made.question, values),
                    "answer": render(made.answer, values),
                    "template": made.original,
                }
        walks = left


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m minilatent.tasks.redraw", description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--n", type=int, default=400_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    reasons = Counter()
    rows = redraw(read(args.file), args.n, args.seed, reasons)

    def write(path: Path) -> None:
        with path.open("w", encoding="utf-8", newline="\n") as f:
            for row in rows:
                f.write(json.dumps(row, ensure_ascii=False) + "\n")

    replace_file(args.out, write)
    print(reasons)


if __name__ == "__main__":
    run_script(main)
