"""mini: grade-school word problems made by a small grammar. No download, as many as you like.

    Ava has 12 apples. Ava swaps each for 3. Ava sells all full boxes of 8. Ben has 7 apples. Ben buys 9 more.
    How many have Ava and Ben together?
    steps   <<12*3=36>> <<36%8=4>> <<7+9=16>> <<4+16=20>>        answer 20

A problem is a graph of 1 to 6 operations on what people hold: with a number from the text (+ - * %), or on
the amounts of two people (+ -). More than half of the problems are not a plain chain: two or three
tracks, told one after the other, are merged. Then several orders of the steps are valid, and all are known:

    tracks   12 ──*3──> 36 ──%8──> 4 ──┐
              7 ──+9──> 16 ────────────+──> 20

What makes thinking necessary is the number of operations: half of the problems have five or six, more than
a small model soon learns to compute in one pass. *Remainders* forbid estimates: "sells all full boxes of 8"
leaves 36%8. A chain of sums and products can be estimated in one pass, ever more sharply. A remainder keeps
only what an estimate does not know: one unit wrong before it, and all that follows is wrong. With three
operations or more one comes before the last operation, with five or more two of them. Each step alone is
easy: small operands, every number in 1..99 (one token each), no number twice in a text (so that no operand
is ambiguous), and short sentences in which names say whose amount is meant.
"""

import operator
import random
import re
import zlib
from dataclasses import dataclass

from .answers import Example

PEOPLE = "Ava Ben Cleo Dan Emma Finn Gina Hugo Iris Jack Kate Leo".split()
PEOPLE += "Mia Max Nora Otto Pia Ray Sara Tom Uma Vera Will Zoe".split()
OBJECTS = "apples books cards coins eggs flowers kites marbles".split()
OBJECTS += "nuts pears pens plums rings shells stamps".split()

# {P} a person, {Q} another, {o} the objects, {c} the number. The last template of each kind (not of
# "irrelevant") is held out for mini_multiarith, that of a question for mini_svamp, too: training shows its
# words, but never the template. A name is always followed by a space: it is always the same token.
TABLE = """
start        {P} has {c} {o}. / {P} starts with {c} {o}. / At first {P} has {c} {o}.
start        At first {P} starts with {c} {o}.
event +      {P} buys {c} more. / {P} finds {c} {o}. / A friend gives {P} {c} more.
event +      Then {P} buys {c} more.
event -      {P} loses {c} {o}. / {P} gives {c} to a friend. / Then {P} sells {c}.
event -      Then {P} loses {c} {o}.
event *      {P} swaps each for {c}. / {P} gets {c} for each. / Soon {P} has {c} times as many.
event *      Soon {P} gets {c} for each.
event %      {P} sells all full boxes of {c}. / {P} gives away full bags of {c}.
event %      {P} packs by {c} and keeps the rest. / Then {P} sells full bags of {c}.
relation +   {Q} has {c} more than {P} has. / {Q} buys {c} more than {P} has.
relation +   {Q} gets {c} more than {P} has.
relation -   {Q} has {c} fewer than {P} has. / {Q} buys {c} fewer than {P} has.
relation -   {Q} gets {c} fewer than {P} has.
relation *   {Q} has {c} times what {P} has. / {Q} finds {c} times what {P} has.
relation *   {Q} gets {c} times what {P} has.
relation %   {P} packs by {c} and {Q} gets the rest. / {P} sells boxes of {c} and {Q} keeps the rest.
relation %   {P} packs bags of {c} and {Q} gets the rest.
merge        {P} gives {Q} all {o}. / {Q} takes all that {P} has. / {Q} gets all that {P} has.
ask          How many {o} has {P} now? / How many does {P} have? / How many has {P} now?
together     How many have {P} and {Q} together? / How many {o} do {P} and {Q} have?
together     How many {o} have {P} and {Q} together?
difference   How many more has {P} than {Q} has? / How many fewer has {Q} than {P} has?
difference   How many more {o} has {P} than {Q} has?
irrelevant   {Q} also has {c} {o}. / {Q} buys {c} {o}. / {P} is {c} years old.
"""
TEMPLATES: dict[str, list[str]] = {}
for line in TABLE.strip().splitlines():
    TEMPLATES.setdefault(line[:13].strip(), []).extend(line[13:].split(" / "))

TEST_SETS = ("mini", "mini_hard", "mini_svamp", "mini_multiarith", "mini_long")
SIZES = {"train": 50_000, "val": 500, "test": 1000}
MAX_NUMBER = 99
MAX_ORDERS = 24  # of chains kept per problem
RARE = 1 / 16  # share of the numbers that are from the rare tail
# Told numbers: the least, the largest as a rule, the largest of the rare ones (which mini_hard consists of).
RANGES = {"start": (5, 40, 60), "+": (2, 20, 30), "-": (2, 20, 30), "*": (2, 5, 7), "%": (7, 12, 15)}
OPERATORS = "+-*%%"  # as often as they are drawn; what does not fit is drawn anew
OPERATIONS = (1, 2, 3, 4, 5, 6), (1, 2, 3, 4, 5, 5)  # how many, with their weights
TRACKS = {1: (2, 1, 0), 2: (1, 1, 0), 3: (2, 3, 0), 4: (2, 3, 0), 5: (2, 2, 1)}  # weights of 1, 2, 3 tracks
REMAINDERS = {1: 0, 2: 0, 3: 1, 4: 1, 5: 2}  # before the last of n operations (5: or more), at least
APPLY = {"+": operator.add, "-": operator.sub, "*": operator.mul, "%": operator.mod}
# A step in sentences: "Ava has 12 apples. Ava gets 3 for each. Ava has 36 apples."
SPOKEN = {"+": "gets {} more", "-": "loses {}", "*": "gets {} for each", "%": "packs by {}"}

ATTEMPTS = 10_000  # at an operation

Quantity = tuple[int, int | None]  # a value, and the index of the step that computed it (None: from the text)


class DeadEnd(Exception):
    """No operation fits: mini_hard has few numbers, and a sum of two tracks may be large."""


@dataclass
class Step:
    equation: str  # "<<16-3=13>>"
    sentence: str  # the same in words
    result: int
    needs: tuple[int, ...]  # the earlier steps whose results it uses


class Problem:
    """A problem in the making: its sentences and steps so far, and who holds what."""

    def __init__(self, rng: random.Random, test_set: str):
        self.rng, self.test_set = rng, test_set
        self.thing = rng.choice(OBJECTS)
        self.names = rng.sample(PEOPLE, 8)  # that are still free
        self.numbers: set[int] = set()  # in the text; none comes twice
        self.held: dict[str, Quantity] = {}  # by name
        self.sentences: list[str] = []
        self.steps: list[Step] = []

    # ------------------------------------------------------------------ numbers and sentences

    def number(self, kind: str) -> int:
        """A number from its range in RANGES; one in sixteen is from the rare part, in mini_hard every one."""
        low, common, most = RANGES[kind]
        if self.test_set == "mini_hard" or self.rng.random() < RARE:
            return self.rng.randint(common + 1, most)
        return self.rng.randint(low, common)

    def operation(self, value: int) -> tuple[str, int]:
        """An operator and a new number whose result on `value` is in 1..99. DeadEnd if none is found."""
        for _ in range(ATTEMPTS):
            op = self.rng.choice(OPERATORS)
            c = self.number(op)
            fits = 0 < APPLY[op](value, c) <= MAX_NUMBER and (op != "%" or c < value)
            if fits and c not in self.numbers:
                return op, c
        raise DeadEnd

    def say(self, kind: str, c: int = 0, **people: str) -> None:
        """Add a sentence of this kind."""
        templates = TEMPLATES[kind]
        question = templates[0].endswith("?")
        held_out = self.test_set == "mini_multiarith" or self.test_set == "mini_svamp" and question
        template = templates[-1] if held_out else self.rng.choice(templates[:-1])
        self.sentences.append(template.format(c=c, o=self.thing, **people))
        self.numbers.add(c)

    def compute(self, person: str, a: Quantity, op: str, b: Quantity) -> None:
        """Add the step a op b; `person` holds its result from now on."""
        result = APPLY[op](a[0], b[0])
        needs = tuple(sorted({made for _, made in (a, b) if made is not None}))
        equation = f"<<{a[0]}{op}{b[0]}={result}>>"
        before, after = (f"{person} has {n} {self.thing}." for n in (a[0], result))
        sentence = f"{before} {person} {SPOKEN[op].format(b[0])}. {after}"
        self.steps.append(Step(equation, sentence, result, needs))
        self.held[person] = (result, len(self.steps) - 1)

    # ------------------------------------------------------------------ one sentence and its step

    def start(self) -> str:
        person, value = self.names.pop(), self.number("start")
        while value in self.numbers:
            value = self.number("start")
        self.say("start", value, P=person)
        self.held[person] = (value, None)
        return person

    def change(self, kind: str, person: str) -> str:
        """An event changes a person's quantity, a relation derives another's from it; returns whose it is."""
        holder = self.names.pop() if kind == "relation" else person
        op, c = self.operation(self.held[person][0])
        self.say(f"{kind} {op}", c, P=person, Q=holder)
        self.compute(holder, self.held[person], op, (c, None))
        return holder

    def merge(self, a: str, b: str) -> str:
        """b gets what a has."""
        self.say("merge", P=a, Q=b)
        self.compute(b, self.held[b], "+", self.held[a])
        return b

    def compare(self, a: str, b: str) -> None:
        """The question asks for the sum or the difference."""
        if self.held[a][0] < self.held[b][0]:
            a, b = b, a
        if self.held[a][0] > self.held[b][0] and self.rng.random() < 0.4:
            self.say("difference", P=a, Q=b)
            self.compute(a, self.held[a], "-", self.held[b])
        else:
            a, b = self.rng.sample([a, b], 2)
            self.say("together", P=a, Q=b)
            self.compute(a, self.held[a], "+", self.held[b])

    # ------------------------------------------------------------------ whole problems

    def tell(self, n: int, tracks: int) -> None:
        """Tell n operations in this many tracks, one after the other. A *move* is one operation, an event or
        a relation; a merge of two tracks is one, too."""
        parts = ["track"] * tracks + ["merge"] * (tracks - 1)
        if tracks == 3 and self.rng.random() < 0.5:
            parts = ["track", "track", "merge", "track", "merge"]
        moves = [0] * len(parts)  # after each part
        opening = [i for i, part in enumerate(parts) if part == "track"]  # a track has a move if one is left
        for _ in range(n - (tracks - 1)):
            moves[opening.pop(0) if opening else self.rng.randrange(len(parts))] += 1
        ends: list[str] = []  # who holds the last result of each track
        for i, part in enumerate(parts):
            if part == "merge" and i == len(parts) - 1 and not moves[i]:
                self.compare(*ends)
                return
            if part == "merge":
                a, b = self.rng.sample([ends.pop(), ends.pop()], 2)
                ends.append(self.merge(a, b))
            elif ends and moves[i] and self.rng.random() < 0.2:  # it leaves from the end of another track
                ends.append(self.change("relation", ends[-1]))
                moves[i] -= 1
            else:
                ends.append(self.start())
            for _ in range(moves[i]):
                related = self.names and self.rng.random() < 0.3
                ends[-1] = self.change("relation" if related else "event", ends[-1])
        self.say("ask", P=ends[0])

    def distract(self) -> None:
        """Add a sentence that does not matter, after the first one and before the question."""
        person, other = self.rng.choice(list(self.held)), self.names.pop()
        c = self.rng.choice([c for c in range(2, 21) if c not in self.numbers])
        sentence = self.rng.choice(TEMPLATES["irrelevant"]).format(P=person, Q=other, c=c, o=self.thing)
        self.sentences.insert(self.rng.randrange(1, len(self.sentences)), sentence)

    def example(self, chain_style: str) -> Example:
        told = [s.equation if chain_style == "equations" else s.sentence for s in self.steps]
        chains = [tuple(told[i] for i in order) for order in valid_orders([s.needs for s in self.steps])]
        chains = tuple(dict.fromkeys(chains))  # two equal steps make equal chains
        return Example(" ".join(self.sentences), tuple(told), str(self.steps[-1].result), chains)


def valid_orders(needs: list[tuple[int, ...]], cap: int = MAX_ORDERS) -> list[tuple[int, ...]]:
    """All orders in which each step comes after those it needs, the text's own first; at most `cap`."""
    orders: list[tuple[int, ...]] = []

    def extend(done: tuple[int, ...]) -> None:
        if len(orders) == cap:
            return
        if len(done) == len(needs):
            orders.append(done)
        for i, before in enumerate(needs):
            if i not in done and all(j in done for j in before):
                extend(done + (i,))

    extend(())
    return orders


def make(test_set: str, rng: random.Random, chain_style: str = "equations") -> Example:
    """One problem of a set."""
    n = {"mini_multiarith": 2, "mini_long": rng.randint(7, 8)}.get(test_set) or rng.choices(*OPERATIONS)[0]
    tracks = rng.choices((1, 2, 3), TRACKS[min(n, 5)])[0]
    while True:  # until no number is above 99, and remainders come early enough
        problem = Problem(rng, test_set)
        try:
            problem.tell(n, tracks)
        except DeadEnd:
            continue
        early = sum("%" in s.equation for s in problem.steps[:-1])
        if all(s.result <= MAX_NUMBER for s in problem.steps) and early >= REMAINDERS[min(n, 5)]:
            break
    if test_set == "mini_svamp" or test_set == "mini" and rng.random() < 0.1:
        problem.distract()
    return problem.example(chain_style)


# ------------------------------------------------------------------ splits

_NAME = re.compile(r"\b(" + "|".join(PEOPLE) + r")\b")
_OBJECT = re.compile(r"\b(" + "|".join(OBJECTS) + r")\b")


def normalise(question: str) -> str:
    """The question with its names numbered by first occurrence and its objects made nameless: two questions
    that differ only in these are the same problem."""
    seen: dict[str, str] = {}
    question = _NAME.sub(lambda m: seen.setdefault(m[0], f"P{len(seen)}"), question)
    return _OBJECT.sub("things", question)


def split_of(question: str) -> str:
    """The one split that a problem can be in, whatever the seed: from a hash of its normalised text."""
    return {0: "test", 1: "val"}.get(zlib.crc32(normalise(question).encode()) % 16, "train")


def collect(make_one, name: str, split: str, limit: int | None, seed: int, chain_order: str) -> list[Example]:
    """Problems of the split, by make_one(rng), until there are `limit` of them (default: SIZES[split])."""
    rng = random.Random(f"{name} {split} {seed}")
    examples: list[Example] = []
    while len(examples) < (SIZES[split] if limit is None else limit):
        e = make_one(rng)
        if split_of(e.question) == split:
            steps = rng.choice(e.chains) if chain_order == "random" else e.steps
            examples.append(Example(e.question, steps, e.answer, e.chains))
    return examples
