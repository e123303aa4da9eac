"""GSM8K with its numbers drawn anew: `python -m minilatent.tasks.redraw FILE --n 400000 --out x.jsonl`.

A question of GSM8K comes with a chain of equations, <<48/2=24>>. `Tracer` finds where each operand is from: a
number of the question, an earlier result, or a constant (60 minutes, "half"). Where the chain is ambiguous,
nothing is guessed: all candidates keep equal values. What comes out is a Template (template.py).

Of GSM8K's 7,473 training questions about 6,050 can be traced. The others have an operand that is written
nowhere (569: days counted in one's head, algebra), a mark that computes nothing (212), a number that no
equation uses (164), an answer that is not the last result (151), no free number (236) or no equation (86).
Of 100 drawn ones, read one by one, 98 were sensible; one had a bill of $60, one a gallon of 96 ounces (both
are kept now). In the 100 before, whose kinds of faults were mended, 92 were: a number mentioned twice but
used once, a tie with a constant that did not hold. Faults of GSM8K's own authors stay.
"""

import ast
import json
import operator
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from ..config import Parser, UserError, run_script, wrapped
from ..files import replace_file
from .published import Record, read
from .template import FORMS, KEPT, NAMES, OPERATORS, Number, Slot, Template, Untraceable, cut, number, scan

# ------------------------------------------------------------------ equations

_MARK = re.compile(r"<<([^<>]*)>>")
_SIGNS = str.maketrans("−–×÷’", "--*/'")
# An equation without a mark, units and all: "54 boxes * $5 = $270".
_TERM = r"\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)%?(?:\s[a-z]+(?:/[a-z]+)?){0,2}"
_LEFT = rf"(?<![\w.*/+=(-])(?<![-+*/x=(]\s)({_TERM}(?:\s*[-+*/x]\s*{_TERM})+)\s*=\s*(\$?)"
_PLAIN = re.compile(rf"{_LEFT}(\d[\d,]*(?:\.\d+)?)(?!\s*[-+*/x%\d]|\.\d)")
_EMPTY = re.compile(rf"{_LEFT}<<([\d.]+)=\3>>(?=\3)")  # "70-10=<<60=60>>60" says less than "70-10=60"


class Equation(NamedTuple):
    """left = right, the tree of left, and its literals: where in left, and the value."""

    left: str
    right: str
    tree: ast.expr
    literals: list[tuple[int, int, Number]]

    def program(self, cells: list[int]) -> tuple:
        """Postfix, as in Step. cells: of the literals, in order."""
        at = {start: cell for (start, _, _), cell in zip(self.literals, cells)}

        def visit(node: ast.expr) -> tuple:
            match node:
                case ast.Constant():
                    return (at[node.col_offset],)
                case ast.UnaryOp(op=ast.UAdd() | ast.USub()):
                    return (0, *visit(node.operand), OPERATORS[type(node.op)])
                case ast.BinOp() if type(node.op) in OPERATORS:
                    return (*visit(node.left), *visit(node.right), OPERATORS[type(node.op)])
            raise Untraceable("an equation that cannot be read")

        return visit(self.tree)


def parse(text: str) -> Equation:
    """An equation, without its units and with 20/100 for 20%."""
    text = re.sub(r"[a-z]+(/[a-z]+)*|[\s$,]", "", re.sub(r"\bx\b", "*", text)).replace("%", "/100")
    left, _, right = text.partition("=")
    try:
        number(right)
        tree = ast.parse(left, mode="eval").body
        if isinstance(tree, ast.Constant):  # it may pick from several, or come from nowhere
            raise Untraceable("an equation without an operation")
        nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        places = sorted((node.col_offset, node.end_col_offset) for node in nodes)
        return Equation(left, right, tree, [(a, b, number(left[a:b])) for a, b in places])
    except (SyntaxError, ValueError):
        raise Untraceable("an equation that cannot be read") from None


def add_equation(made: Template, e: Equation, cells: list[int]) -> int:
    """The cell of its result. Untraceable if the template's own numbers do not fulfil it exactly."""
    result = made.compute(e.program(cells), number(e.right), len(e.right.partition(".")[2].rstrip("0")))
    values = made.values.copy()
    if not made.valid(values) or values[result] != made.values[result]:
        raise Untraceable("an equation is rounded or wrong")
    return result


def with_marks(line: str) -> str:
    """A line of a solution, with marks also in the equations that lack them and are right."""

    def mark(m: re.Match) -> str:
        made = Template("")
        try:
            e = parse(f"{m[1]}={m[3]}")
            add_equation(made, e, [made.cell(value) for *_, value in e.literals])
        except Untraceable:
            return m[0]
        return f"{m[1]} = {m[2]}<<{e.left}={e.right}>>{m[3]}"

    parts = re.split(r"(<<[^<>]*>>)", _EMPTY.sub(r"\1 = \2", line.translate(_SIGNS)))
    return "".join(part if i % 2 else _PLAIN.sub(mark, part) for i, part in enumerate(parts))


# ------------------------------------------------------------------ tracing

_CHOICE = r"\b(most|least|best|better|cheap|high|larg|small|great|low|max|enough|old|fast|choos|choice|winn)"


class Tracer:
    """Makes a Template, `made`, of one record. Untraceable says why it cannot."""

    def __init__(self, question: str, solution: str, answer: str):
        if re.search(r"\b(what|which) time\b", question):
            raise Untraceable("asks for a time of day")
        self.made = Template(question)
        self.doubtful = self.made.constants()
        self.constants = self.doubtful | {0, 1, 2, Fraction(1, 100)}
        self.numbers: dict[tuple[Number, bool], int] = {}  # (value, is it a percentage) -> cell
        self.tokens = []  # of the question, with their cells; equal numbers share one
        for token in scan(question, KEPT):
            key = token.value, token.kind == "%"
            if key not in self.numbers:
                self.numbers[key] = self.made.cell(token.value)
            self.tokens.append((token, self.numbers[key]))
        self.results: list[int] = []
        self.used: Counter[int] = Counter()
        self.equal: list[tuple[int, int]] = []
        lines = [_MARK.split(with_marks(line)) for line in solution.strip().split("\n")]
        equations = [[parse(text) for text in line[1::2]] for line in lines]
        self.ahead = [value for found in equations for e in found for *_, value in e.literals]
        if self.ahead.count(2) > sum(token.value == 2 for token, _ in self.tokens):
            self.doubtful.add(2)  # there and back, say: no word of the question brings it along
        cells = [[self.equation(e) for e in found] for found in equations]
        if not self.results:
            raise Untraceable("no equation")
        if number(answer) != self.made.values[self.results[-1]]:
            raise Untraceable("the answer is not the last result")
        for line in zip(lines, equations, cells):
            self.made.answer += self.line(*line)
        self.made.answer += ["#### ", (self.results[-1], answer)]
        self.constrain()

    def equation(self, e: Equation) -> list[int]:
        """The cells of an equation: of its literals, and of its result."""
        cells = [self.operand(value, e.left[end:].startswith("/100")) for _, end, value in e.literals]
        self.results.append(add_equation(self.made, e, cells))
        return [*cells, self.results[-1]]

    def operand(self, value: Number, percent: bool) -> int:
        """The cell that an operand comes from."""
        last = self.ahead.count(value) == 1
        self.ahead.remove(value)
        values = self.made.values
        found = [cell for (v, p), cell in self.numbers.items() if v == value and (p or not percent)]
        results = [cell for cell in self.results if values[cell] == value]
        found = (found or self.derived(value, percent)) + results
        unused = [cell for cell in found if cell not in self.used]
        certain = last and len(unused) == 1  # each number and each result is there to be used
        found = unused if certain else found
        if not found and value not in self.constants:
            raise Untraceable("an operand from nowhere")
        cell = found[-1] if found else self.made.cell(value)
        if value in self.doubtful and not (certain and cell in results):
            found = [*found, self.made.cell(value)]
        self.equal += [(cell, other) for other in found if other != cell]
        self.used[cell] += 1
        return cell

    def derived(self, value: Number, percent: bool) -> list[int]:
        """Cells with this value that are computed from a percentage, cents, dozens or times."""
        made, found = self.made, []
        for token, cell in self.tokens:
            for offset, scale in FORMS.get(token.kind or token.unit, ()):
                if offset + scale * token.value == value and (percent or offset != 100):
                    program = made.cell(offset), made.cell(scale), cell, operator.mul, operator.add
                    found.append(made.compute(program, value))
                    self.used[cell] += 1
        return found

    def line(self, parts: list[str], equations: list[Equation], cells: list[list[int]]) -> list[str | Slot]:
        """A line of the solution with slots; its equations alone if a number of the prose cannot be told."""
        marks, bare = [[]], []  # marks: nothing before the first prose, then each equation's
        for e, found in zip(equations, cells):
            left = cut(e.left, [(start, end, c) for (start, end, _), c in zip(e.literals, found)])
            right = (found[-1], e.right)
            marks.append(["<<", *left, "=", right, ">>"])
            bare += [*left, " = ", *marks[-1], right, "\n"]
        try:
            told = [self.prose(text, equations, cells, i) for i, text in enumerate(parts[::2])]
        except Untraceable:
            return bare
        pieces = []
        for mark, text in zip(marks, told):
            pieces += [*mark, *text]
        return [*pieces, "\n"]

    def prose(self, text: str, equations: list[Equation], cells: list[list[int]], i: int) -> list[str | Slot]:
        """The prose before equation i of its line, with slots."""
        values, places, tokens = self.made.values, [], scan(text, NAMES)
        ahead = [value for *_, value in equations[i].literals] if i < len(equations) else []
        shown = len(tokens) - len(ahead) * ([t.value for t in tokens[-len(ahead) :]] == ahead)
        for k, t in enumerate(tokens):
            near = {c for found in cells for c in found if values[c] == t.value}
            if t.kind == "%" and (t.value, True) in self.numbers:
                near = {self.numbers[t.value, True]}
            far = {c for c in (*self.numbers.values(), *self.results) if values[c] == t.value}
            found = near or far
            if i and not k and not text[: t.start].strip(" $") and values[cells[i - 1][-1]] == t.value:
                found = {cells[i - 1][-1]}  # 24 in "<<48/2=24>>24"
            elif k >= shown:
                found = {cells[i][k - shown]}  # 48 in "48/2 = <<48/2=24>>"
            elif t.value in (0, 1) and not far:
                continue
            if len(found) > 1 or not found and t.value not in self.constants:
                raise Untraceable
            places += [(t.start, t.end, cell) for cell in found]
        return cut(text, places)

    def constrain(self) -> None:
        """Which numbers are free, from what they are drawn, and what keeps the question sensible."""
        made, values, allowed, sub = self.made, self.made.values, {}, operator.sub
        for t, cell in self.tokens:
            some = made.choices(t)
            allowed[cell] = allowed.get(cell, some) & some
        used = {cell for step in made.steps for cell in step.program if type(cell) is int}
        units = {t.unit[:4] for t, cell in self.tokens if cell in used}
        for t, cell in self.tokens:
            if cell not in used and t.value > 1 and (t.kind or t.unit[:4] in units):
                raise Untraceable("a number is not used")
        for cell, times in Counter(cell for _, cell in self.tokens).items():
            if times > self.used[cell]:  # one of them is not used, or another's double
                allowed[cell] = {values[cell]}
        computed = {step.cell for step in made.steps}
        for pair in self.equal:
            if pair[0] in allowed and pair[1] not in allowed and pair[1] not in computed:
                allowed[pair[0]] = {values[pair[0]]}
            else:
                made.require((*pair, sub), 0, 0)
        made.free = [(c, sorted(some)) for c, some in allowed.items() if len(some) > 1 and c in used]
        if not made.free:
            raise Untraceable("no number is free")
        made.question = cut(made.original, [(t.start, t.end, cell) for t, cell in self.tokens])
        if re.search(_CHOICE, made.original):
            for high, low in pairwise(sorted(self.results, key=values.__getitem__, reverse=True)):
                made.require((high, low, sub), Fraction(values[high] > values[low], 1000), 10**9)
        steps, made.steps = made.steps, []
        for kind in "%$":
            ranked = sorted({cell for t, cell in self.tokens if t.kind == kind}, key=values.__getitem__)
            for low, high in pairwise(ranked):
                made.require((high, low, sub), Fraction(1, 1000), 10**9)
            if kind == "%" and len(ranked) > 1:  # parts of a whole stay so
                total = sum(values[cell] for cell in ranked)
                low, high = (0, 99) if total < 100 else (100, 100 if total == 100 else 10**9)
                made.require((*ranked, *[operator.add] * (len(ranked) - 1)), low, high)
        made.steps += steps


# ------------------------------------------------------------------ drawing


def templates(records: Iterable[Record], source="") -> tuple[list[Template], Counter]:
    """The templates of the records that can be traced; how many cannot, by reason. UserError if none can."""
    made, reasons = [], Counter()
    for record in records:
        try:
            made.append(Tracer(*record).made)
        except Untraceable as error:
            reasons[str(error)] += 1
    if not made:
        raise UserError(f"{source}: no question can be traced ({dict(reasons)})")
    return made, reasons


def redraw(made: list[Template], n: int, seed: int = 0) -> Iterator[dict[str, str]]:
    """Up to n different problems, from all templates in turn; a longer run begins as a shorter one does."""
    rng = random.Random(seed)
    walks = [(one, one.walk(random.Random(f"{seed} {one.original}"))) for one in made]
    while walks:
        rng.shuffle(walks)
        alive = []
        for one, walk in walks:
            if n and (values := next(walk, None)):
                n -= 1
                alive.append((one, walk))
                yield one.render(values)
        walks = alive


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m minilatent.tasks.redraw", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("file", type=Path, help="training questions in GSM8K's form")
    add("--n", type=int, default=400_000, help="problems to draw [400000]")
    add("--seed", type=int, default=0, help="the same seed draws the same problems [0]")
    add("--out", type=Path, required=True, help="jsonl file to write")
    args = parser.parse_args(argv)
    made, reasons = templates(read(args.file), args.file)
    drawn = 0

    def write(path: Path) -> None:
        nonlocal drawn
        with path.open("w", encoding="utf-8", newline="\n") as f:
            for row in redraw(made, args.n, args.seed):
                drawn += 1
                f.write(json.dumps(row, ensure_ascii=False) + "\n")

    replace_file(args.out, write)
    print(wrapped(f"{len(made)} questions traced; not: {dict(reasons)}"), file=sys.stderr)
    print(f"{drawn} problems in {args.out}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
