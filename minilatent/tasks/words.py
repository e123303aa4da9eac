"""mini: grade-school word problems made by a small grammar. No download, as many as you like.

    Ava has 12 apples. Ben has 3 times as many apples as Ava. Ava buys 5 more apples.
    How many apples do Ava and Ben have together?
    steps   <<12*3=36>> <<12+5=17>> <<17+36=53>>        answer 53

A problem is a graph of 2 to 4 operations over the quantities that people hold. Each sentence changes one of
them (an *event*: "Ava buys 5 more"), derives a new one (a *relation*: "Ben has 3 times as many as Ava") or
merges two. Three quarters of the problems are one chain, where each step uses the last result. In the others
two tracks run side by side and are merged, so that the steps have several valid orders, and all are known:

    chain   12 ──*3──> 36 ──-4──> 32           tracks   12 ──*3──> 36 ──┐
                                                         └───+5──> 17 ──+──> 53

The problems are easy on purpose: every number is in 1..99 (one token each), each sentence uses only what
came before, and one problem in ten has a sentence that does not matter. What is left to learn is who holds
what by now, which operation a sentence means, and how to carry intermediate results.
"""

import random
import re
import zlib
from collections.abc import Callable

from .answers import Example

PRONOUN = dict.fromkeys("Ava Cleo Dora Emma Fay Gina Hana Iris Jane Kate Lily Mia".split(), "She")
PRONOUN |= dict.fromkeys("Ben Carl Dan Eli Finn Gus Hugo Ivan Jack Kurt Leo Max".split(), "He")
PEOPLE = list(PRONOUN)
OBJECTS = (
    "apples, books, cards, coins, eggs, flowers, marbles, nuts, pens, shells, stamps, tickets, dollars, "
    "kilos of rice, liters of milk, meters of rope"
).split(", ")

# {P} a person, {Q} another, {o} the objects, {c} the number. The last template of each list is held out for
# mini_multiarith and for the questions of mini_svamp: training shows its words, but never the template.
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

Quantity = tuple[int, int | None]  # a value, and the index of the step that computed it (None: from the text)


class Problem:
    """A problem in the making: its sentences and steps so far, and who holds what."""

    def __init__(self, rng: random.Random, test_set: str):
        self.rng, self.test_set = rng, test_set
        self.thing = rng.choice(OBJECTS)
        self.names = rng.sample(PEOPLE, 5)  # that are still free
        self.held: dict[str, Quantity] = {}  # by name
        self.sentences: list[str] = []
        self.steps: list[str] = []  # "<<16-3=13>>"
        self.needs: list[tuple[int, ...]] = []  # for each step, the earlier steps whose results it uses
        self.subject = ""  # of the last sentence: whom a pronoun would mean

    # ------------------------------------------------------------------ numbers and sentences

    def number(self, low: int, common: int, most: int) -> int | None:
        """A number in low..most, usually at most `common`; one in twelve is from the tail above, in mini_hard
        every one. None if there is no such number."""
        tail = self.test_set == "mini_hard" or self.rng.random() < 1 / 12
        low, high = (common + 1, most) if tail and most > common else (low, min(common, most))
        return self.rng.randint(low, high) if low <= high else None

    def operation(self, value: int) -> tuple[str, int]:
        """An operation and a number that keep `value` whole and within 1..99."""
        while True:
            op = self.rng.choice("+-*/")
            if op == "+":
                c = self.number(2, 20, MAX_NUMBER - value)
            elif op == "-":
                c = self.number(2, 20, value - 1)
            elif op == "*":
                c = self.number(2, 5, min(9, MAX_NUMBER // value))
            else:
                c = self.number(2, 5, 9)
                c = c if c and value % c == 0 else None
            if c is not None:
                return op, c

    def say(self, templates: list[str], subject: str, **words) -> None:
        """Add a sentence about `subject`, in half of the cases by a pronoun where that is clear."""
        question = templates[0].endswith("?")
        held_out = self.test_set == "mini_multiarith" or self.test_set == "mini_svamp" and question
        template = templates[-1] if held_out else self.rng.choice(templates[:-1])
        person = subject
        if template.startswith("{P}") and subject == self.subject and self.rng.random() < 0.5:
            person = PRONOUN[subject]
        self.sentences.append(template.format(P=person, o=self.thing, **words))
        self.subject = subject

    def compute(self, a: Quantity, op: str, b: Quantity) -> Quantity:
        """Add the step a op b; returns its result."""
        result = APPLY[op](a[0], b[0])
        self.steps.append(f"<<{a[0]}{op}{b[0]}={result}>>")
        self.needs.append(tuple(sorted({made for _, made in (a, b) if made is not None})))
        return result, len(self.steps) - 1

    # ------------------------------------------------------------------ one sentence and its step

    def start(self) -> str:
        person, value = self.names.pop(), self.number(2, 40, MAX_NUMBER)
        self.say(START, person, c=value)
        self.held[person] = (value, None)
        return person

    def event(self, person: str) -> str:
        """The person's quantity changes."""
        op, c = self.operation(self.held[person][0])
        self.say(EVENTS[op], person, c=c)
        self.held[person] = self.compute(self.held[person], op, (c, None))
        return person

    def relation(self, person: str) -> str:
        """Another person's quantity is derived from this one's."""
        other = self.names.pop()
        op, c = self.operation(self.held[person][0])
        self.say(RELATIONS[op], person, Q=other, c=c)
        self.subject = other
        self.held[other] = self.compute(self.held[person], op, (c, None))
        return other

    def move(self, person: str) -> str:
        """One operation further on a track; returns who holds its result."""
        return self.relation(person) if self.names and self.rng.random() < 0.4 else self.event(person)

    # ------------------------------------------------------------------ whole problems

    def chain(self, n: int) -> None:
        person = self.start()
        for _ in range(n):
            person = self.move(person)
        self.say(ASK, person)

    def two_tracks(self, n: int) -> None:
        """n operations: some on two tracks in any order, a merge, then `after` more on the merged one."""
        after = self.rng.randint(0, n - 3) if n > 3 and self.rng.random() < 0.5 else 0
        before = n - 1 - after
        a = self.start()
        if self.rng.random() < 0.5:
            b = self.start()
        else:
            b, before = self.relation(a), before - 1  # both tracks leave from one quantity
        for _ in range(before):
            # A track without a step goes first: only two tracks with steps have several valid orders.
            idle_a, idle_b = self.held[a][1] is None, self.held[b][1] is None
            if idle_a or not idle_b and self.rng.random() < 0.5:
                a = self.move(a)
            else:
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
        """Add a quantity that does not matter, after the first sentence and before the question."""
        person = self.rng.choice(list(self.held))
        other = self.rng.choice([o for o in OBJECTS if o != self.thing])
        distraction = self.rng.choice(IRRELEVANT).format(P=person, c=self.rng.randint(2, 20), o=other)
        # The sentence after it must not begin with a pronoun, which would now mean somebody else. After other
        # objects it must name its own: in "Ava also has 4 pens. Ava loses 9 of them." they would be pens.
        places = []
        for i, sentence in enumerate(self.sentences):
            clear = other not in distraction or self.thing in sentence
            if i > 0 and clear and not re.match("(She|He) ", sentence):
                places.append(i)
        self.sentences.insert(self.rng.choice(places), distraction)

    def example(self) -> Example:
        chains = [tuple(self.steps[i] for i in order) for order in valid_orders(self.needs)]
        chains = tuple(dict.fromkeys(chains))  # two equal steps make equal chains
        answer = re.search(r"=(\d+)>>", self.steps[-1]).group(1)
        return Example(" ".join(self.sentences), tuple(self.steps), answer, chains)


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


def make(test_set: str, rng: random.Random) -> Example:
    """One problem of a set."""
    n = rng.randint(5, 6)  # for every set: another number of random draws would make other problems
    if test_set == "mini_multiarith":
        n = 2
    elif test_set != "mini_long":
        n = rng.choices((2, 3, 4), (30, 35, 35))[0]
    tracks = rng.random() < 1 / 3
    while True:  # until no number is above 99
        problem = Problem(rng, test_set)
        (problem.two_tracks if tracks else problem.chain)(n)
        if all(int(x) <= MAX_NUMBER for step in problem.steps for x in re.findall(r"\d+", step)):
            break
    if test_set == "mini_svamp" or test_set == "mini" and rng.random() < 0.1:
        problem.distract()
    return problem.example()


# ------------------------------------------------------------------ splits

_NAME = re.compile(r"\b(" + "|".join(PEOPLE) + r")\b")
_PRONOUN = re.compile(r"\b(She|He)\b")
_OBJECT = re.compile(r"\b(" + "|".join(OBJECTS) + r")\b")


def normalise(question: str) -> str:
    """The question with its names numbered by first occurrence and its objects made nameless: two questions
    that differ only in these are the same problem."""
    seen: dict[str, str] = {}
    question = _NAME.sub(lambda m: seen.setdefault(m[0], f"P{len(seen)}"), question)
    return _OBJECT.sub("things", _PRONOUN.sub("They", question))


def split_of(question: str) -> str:
    """The one split that a problem can be in, whatever the seed: from a hash of its normalised text."""
    return {0: "test", 1: "val"}.get(zlib.crc32(normalise(question).encode()) % 16, "train")


Maker = Callable[[random.Random], Example]


def collect(
    make_one: Maker, name: str, split: str, limit: int | None, seed: int, chain_order: str
) -> list[Example]:
    """Problems of the split, made until there are `limit` of them (default: SIZES[split])."""
    rng = random.Random(f"{name} {split} {seed}")
    examples: list[Example] = []
    while len(examples) < (SIZES[split] if limit is None else limit):
        e = make_one(rng)
        if split_of(e.question) == split:
            steps = rng.choice(e.chains) if chain_order == "random" else e.steps
            examples.append(Example(e.question, steps, e.answer, e.chains))
    return examples


def load(
    name: str, split: str = "train", limit: int | None = None, seed: int = 0, chain_order: str = "text"
) -> list[Example]:
    """`limit` problems (default: SIZES[split]) of the named set, the same for the same arguments.

    chain_order: "text" gives `steps` in the text's order, "random" in a random valid one for each problem.
    """
    return collect(lambda rng: make(name, rng), name, split, limit, seed, chain_order)
