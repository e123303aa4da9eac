"""mini: grade-school word problems made by a small grammar, no download, as many as you like.

    Ava has 12 apples. Ben has 3 times as many apples as Ava. Ava buys 5 more apples.
    How many apples do Ava and Ben have together?
    steps   <<12*3=36>> <<12+5=17>> <<17+36=53>>        answer 53

A problem is a graph of 2 to 4 operations over the quantities that people hold. Each sentence moves one of
them (an *event*: "Ava buys 5 more"), derives a new one (a *relation*: "Ben has 3 times as many as Ava") or
merges two. Three quarters of the problems are one chain, each step working on the last result; in the others two
tracks run side by side and are merged, so that several orders of the steps are right, and all are known:

    chain   12 ──*3──> 36 ──-4──> 32           tracks   12 ──*3──> 36 ──┐
                                                         └───+5──> 17 ──+──> 53

Kept easy to learn on purpose: every number lies in 1..99 (one token each), sentences come in an order in
which one can compute, and few of them (one problem in ten has one) do not matter. What is left is the
subject: who holds what by now, which operation, and carrying intermediate results.
"""

import random
import re
import zlib
from dataclasses import dataclass, field

from .answers import Example

NAMES = {
    "She": "Ava Cleo Dora Emma Fay Gina Hana Iris Jane Kate Lily Mia".split(),
    "He": "Ben Carl Dan Eli Finn Gus Hugo Ivan Jack Kurt Leo Max".split(),
}
PRONOUN = {name: pronoun for pronoun, names in NAMES.items() for name in names}
OBJECTS = [
    "apples",
    "books",
    "cards",
    "coins",
    "eggs",
    "flowers",
    "marbles",
    "nuts",
    "pens",
    "shells",
    "stamps",
    "tickets",
    "dollars",
    "kilos of rice",
    "liters of milk",
    "meters of rope",
]

# {P} a person, {Q} another, {o} the objects, {c} the number. The last template of each list is kept for
# mini_multiarith (and the questions of mini_svamp) and never seen in training; its words are.
START = [
    "{P} has {c} {o}.",
    "{P} starts with {c} {o}.",
    "There are {c} {o} in the bag of {P}.",
    "{P} starts with a bag of {c} {o}.",
]
EVENTS = {
    "+": [
        "{P} buys {c} more {o}.",
        "{P} finds {c} more.",
        "A friend gives {P} {c} more {o}.",
        "Then {P} gets {c} more {o}.",
    ],
    "-": [
        "{P} gives {c} {o} to a friend.",
        "{P} loses {c} of them.",
        "Then {P} sells {c} {o}.",
        "Then {P} loses {c} {o}.",
    ],
    "*": [
        "After a week {P} has {c} times as many.",
        "{P} works until there are {c} times as many {o}.",
        "Then {P} has {c} times as many {o} as before.",
        "After a week there are {c} times as many {o} in the bag of {P}.",
    ],
    "/": [
        "{P} makes {c} equal parts and keeps one.",
        "{P} packs the {o} into {c} equal boxes and keeps one.",
        "Then {P} keeps one of {c} equal parts.",
        "Then {P} makes {c} equal boxes and keeps one.",
    ],
}
RELATIONS = {
    "+": [
        "{Q} has {c} more {o} than {P}.",
        "{Q} has as many {o} as {P} and {c} more.",
        "Compared with {P}, {Q} has {c} more {o}.",
        "{Q} finds as many {o} as {P} and {c} more.",
    ],
    "-": [
        "{Q} has {c} fewer {o} than {P}.",
        "{Q} has as many {o} as {P} but {c} fewer.",
        "Compared with {P}, {Q} has {c} fewer {o}.",
        "{Q} finds as many {o} as {P} but {c} fewer.",
    ],
    "*": [
        "{Q} has {c} times as many {o} as {P}.",
        "{Q} has {c} times the {o} of {P}.",
        "Compared with {P}, {Q} has {c} times as many {o}.",
        "{Q} gets {c} times as many {o} as {P}.",
    ],
    "/": [
        "{Q} has one in {c} of the {o} of {P}.",
        "{Q} has as many {o} as {P} divided by {c}.",
        "Compared with {P}, {Q} has one in {c} of the {o}.",
        "{Q} gets one in {c} of the {o} of {P}.",
    ],
}
MERGE = [
    "{P} gives all of them to {Q}.",
    "Then {Q} gets all the {o} of {P}.",
    "{Q} buys all the {o} of {P}.",
    "{Q} finds all the {o} of {P}.",
]
ASK = [
    "How many {o} does {P} have?",
    "How many {o} are in the bag of {P} now?",
    "What is the number of {o} that {P} has?",
    "What is the number of {o} in the bag of {P}?",
]
TOGETHER = [
    "How many {o} do {P} and {Q} have together?",
    "How many {o} do {P} and {Q} have in total?",
    "What is the total of the {o} of {P} and {Q}?",
    "What is the number of {o} of {P} and {Q} together?",
]
DIFFERENCE = [
    "How many more {o} does {P} have than {Q}?",
    "How many fewer {o} does {Q} have than {P}?",
    "Compared with {Q}, how many more {o} does {P} have?",
    "What is the number of {o} that {P} has more than {Q}?",
]
IRRELEVANT = ["{P} also has {c} {o}.", "{P} is {c} years old.", "{P} walks {c} minutes to school."]

TEST_SETS = ("mini", "mini_hard", "mini_svamp", "mini_multiarith", "mini_long")
SIZES = {"train": 50_000, "val": 500, "test": 1000}
MAX_NUMBER = 99
MAX_ORDERS = 24  # of chains kept per problem
APPLY = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a // b}


@dataclass
class Step:
    text: str  # "<<16-3=13>>"
    needs: tuple[int, ...]  # the steps whose results it uses


@dataclass
class Problem:
    """A story being told: sentences and steps so far, and who holds what."""

    rng: random.Random
    hard: bool = False  # every number from the rare tail
    new_sentences: bool = False  # the templates that training never shows
    new_question: bool = False  # those of the question only
    thing: str = ""
    names: list[str] = field(default_factory=list)  # not used yet
    held: dict[str, tuple[int, int | None]] = field(default_factory=dict)  # name -> value, step that made it
    sentences: list[str] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    subject: str = ""  # of the last sentence: whom a pronoun would mean

    def __post_init__(self):
        self.thing = self.rng.choice(OBJECTS)
        names = NAMES["She"] + NAMES["He"]
        self.names = self.rng.sample(names, 5)

    def draw(self, low: int, common: int, most: int) -> int | None:
        """A number in low..most that is at most `common` as a rule; one in twelve is from the tail above it."""
        tail = self.hard or self.rng.random() < 1 / 12
        low, high = (common + 1, most) if tail and most > common else (low, min(common, most))
        return self.rng.randint(low, high) if low <= high else None

    def say(self, templates: list[str], subject: str, **words) -> None:
        new = self.new_sentences or self.new_question and templates[0].endswith("?")
        template = templates[-1] if new else self.rng.choice(templates[:-1])
        person = subject
        if template.startswith("{P}") and subject == self.subject and self.rng.random() < 0.5:
            person = PRONOUN[subject]
        self.sentences.append(template.format(**{"P": person, "o": self.thing, **words}))
        self.subject = subject

    def start(self) -> str:
        person, value = self.names.pop(), self.draw(2, 40, MAX_NUMBER)
        self.say(START, person, c=value)
        self.held[person] = (value, None)
        return person

    def compute(self, a: tuple[int, int | None], op: str, b: tuple[int, int | None]) -> tuple[int, int]:
        """Append the step a op b; return its value and its index."""
        result = APPLY[op](a[0], b[0])
        needs = tuple(sorted({made for _, made in (a, b) if made is not None}))
        self.steps.append(Step(f"<<{a[0]}{op}{b[0]}={result}>>", needs))
        return result, len(self.steps) - 1

    def operation(self, value: int) -> tuple[str, int]:
        """An operation with a number that keeps `value` whole and within 1..99."""
        while True:
            op = self.rng.choice("+-*/")
            if op == "+":
                c = self.draw(2, 20, MAX_NUMBER - value)
            elif op == "-":
                c = self.draw(2, 20, value - 1)
            elif op == "*":
                c = self.draw(2, 5, min(9, MAX_NUMBER // value))
            else:
                c = self.draw(2, 5, 9)
                c = c if c and value % c == 0 else None
            if c is not None:
                return op, c

    def event(self, person: str) -> str:
        """The person's quantity changes."""
        op, c = self.operation(self.held[person][0])
        self.say(EVENTS[op], person, c=c)
        self.held[person] = self.compute(self.held[person], op, (c, None))
        return person

    def relation(self, person: str) -> str:
        """Another person's quantity is told by this one's."""
        other = self.names.pop()
        op, c = self.operation(self.held[person][0])
        self.say(RELATIONS[op], person, Q=other, c=c)
        self.subject = other
        self.held[other] = self.compute(self.held[person], op, (c, None))
        return other

    def move(self, person: str) -> str:
        """One operation further on a track; returns who holds its result."""
        return self.relation(person) if self.names and self.rng.random() < 0.4 else self.event(person)

    def chain(self, n: int) -> None:
        person = self.start()
        for _ in range(n):
            person = self.move(person)
        self.say(ASK, person)

    def two_tracks(self, n: int) -> None:
        """n operations: n - 1 - after on two tracks in any order, a merge, `after` more on the merged one."""
        after = self.rng.randint(0, n - 3) if n > 3 and self.rng.random() < 0.5 else 0
        before = n - 1 - after
        a = self.start()
        if self.rng.random() < 0.5:
            b = self.start()
        else:
            b, before = self.relation(a), before - 1  # both tracks leave from one quantity
        for _ in range(before):
            _, made_a = self.held[a]
            if made_a is None or self.held[b][1] is not None and self.rng.random() < 0.5:
                a = self.move(a)  # an idle track goes first: two busy
            else:  # tracks make several valid orders
                b = self.move(b)
        (x, _), (y, _) = self.held[a], self.held[b]
        if after:
            self.say(MERGE, a, Q=b)
            self.held[b] = self.compute(self.held[b], "+", self.held[a])
            self.subject = ""
            for _ in range(after):
                b = self.event(b)
            self.say(ASK, b)
        elif x != y and self.rng.random() < 0.4:
            a, b = (a, b) if x > y else (b, a)
            self.say(DIFFERENCE, a, Q=b)
            self.compute(self.held[a], "-", self.held[b])
        else:
            self.say(TOGETHER, a, Q=b)
            self.compute(self.held[a], "+", self.held[b])

    def distract(self) -> None:
        """A quantity that does not matter, after the first sentence and before the question."""
        person = self.rng.choice(list(self.held))
        other = self.rng.choice([o for o in OBJECTS if o != self.thing])
        sentence = self.rng.choice(IRRELEVANT).format(P=person, c=self.rng.randint(2, 20), o=other)
        # What follows names its person, or the pronoun would change its meaning; and behind other objects it names
        # its own: in "Ava also has 4 pens. Ava loses 9 of them." they would be pens.
        places = [
            i
            for i in range(1, len(self.sentences))
            if not re.match("(She|He) ", self.sentences[i])
            and (other not in sentence or self.thing in self.sentences[i])
        ]
        self.sentences.insert(self.rng.choice(places), sentence)

    def example(self) -> Example:
        steps = [s.text for s in self.steps]
        orders = valid_orders([s.needs for s in self.steps])
        chains = tuple(
            dict.fromkeys(tuple(steps[i] for i in order) for order in orders)
        )  # two that read the same are one
        answer = re.search(r"=(\d+)>>", steps[-1]).group(1)
        return Example(" ".join(self.sentences), tuple(steps), answer, chains)


def valid_orders(needs: list[tuple[int, ...]], cap: int = MAX_ORDERS) -> list[tuple[int, ...]]:
    """All orders of the steps in which each comes after those it needs, the text's own first; at most `cap`."""
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


def make(name: str, rng: random.Random) -> Example:
    """One problem of a set."""
    n = {"mini_multiarith": 2, "mini_long": rng.randint(5, 6)}.get(name) or rng.choices(
        (2, 3, 4), (30, 35, 35)
    )[0]
    tracks = rng.random() < 1 / 3
    while True:  # until no number is beyond 99
        problem = Problem(
            rng,
            hard=name == "mini_hard",
            new_sentences=name == "mini_multiarith",
            new_question=name == "mini_svamp",
        )
        (problem.two_tracks if tracks else problem.chain)(n)
        numbers = [int(x) for step in problem.steps for x in re.findall(r"\d+", step.text)]
        if max(numbers) <= MAX_NUMBER:
            break
    if name == "mini_svamp" or name == "mini" and rng.random() < 0.1:
        problem.distract()
    return problem.example()


_NAME = re.compile(r"\b(" + "|".join(PRONOUN) + r")\b")
_PRONOUN = re.compile(r"\b(She|He)\b")
_OBJECT = re.compile(r"\b(" + "|".join(OBJECTS) + r")\b")


def normalise(question: str) -> str:
    """The question with its names numbered by first occurrence and its objects made nameless: two questions that
    differ only in these are the same problem."""
    seen: dict[str, str] = {}
    question = _NAME.sub(lambda m: seen.setdefault(m[0], f"P{len(seen)}"), question)
    return _OBJECT.sub("things", _PRONOUN.sub("They", question))


def split_of(question: str) -> str:
    """The one split that a problem can ever be in, whatever the seed: read off a hash of its normalised text."""
    return {0: "test", 1: "val"}.get(zlib.crc32(normalise(question).encode()) % 16, "train")


def load(
    name: str = "mini",
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    chain_order: str = "text",
) -> list[Example]:
    """`limit` problems (default: SIZES[split]) of the named set and split, the same for the same arguments.

    chain_order: "text" tells `steps` in the text's order, "random" in a random valid one per problem.
    """
    rng = random.Random(f"{name} {split} {seed}")
    examples: list[Example] = []
    while len(examples) < (SIZES[split] if limit is None else limit):
        example = make(name, rng)
        if split_of(example.question) != split:
            continue
        if chain_order == "random":
            example = Example(example.question, rng.choice(example.chains), example.answer, example.chains)
        examples.append(example)
    return examples
