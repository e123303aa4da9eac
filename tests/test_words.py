"""The generated problems: right, readable by a second program, and never shared between splits."""

import itertools
import re
from collections import Counter

import pytest

from minilatent.tasks import words
from minilatent.tokenizer import MINI_PATTERN

TEST_SETS = words.TEST_SETS
OPERATIONS = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
}


@pytest.fixture(scope="module")
def train():
    return words.load("mini", "train", 8000)


@pytest.fixture(scope="module")
def tests():
    return {name: words.load(name, "test", 120) for name in TEST_SETS}


def sentences(question: str) -> list[str]:
    return [s.strip() for s in re.findall(r"[^.?]+[.?]", question)]


# --- a second reader: a small interpreter of the sentences, which shares the templates and nothing else -----


def pattern(template: str) -> re.Pattern:
    person, things = "|".join(words.PRONOUN), "|".join(words.OBJECTS)
    parts = {
        "P": rf"(?P<P>{person}|She|He)",
        "Q": rf"(?P<Q>{person})",
        "c": r"(?P<c>\d+)",
        "o": rf"(?P<o>{things})",
    }
    pieces = re.split(r"\{(\w)\}", template)
    seen, out = set(), re.escape(pieces[0])
    for name, rest in zip(pieces[1::2], pieces[2::2]):
        out += (f"(?P={name})" if name in seen else parts[name]) + re.escape(rest)
        seen.add(name)
    return re.compile(out)


KINDS = [("event", op, templates) for op, templates in words.EVENTS.items()]
KINDS += [("relation", op, templates) for op, templates in words.RELATIONS.items()]
for kind in ("START", "MERGE", "ASK", "TOGETHER", "DIFFERENCE", "IRRELEVANT"):
    KINDS.append((kind.lower(), "", getattr(words, kind)))
SENTENCES = [(kind, op, pattern(t)) for kind, op, templates in KINDS for t in templates]


def read(question: str) -> list[tuple[str, str, dict]]:
    """Each sentence as (kind, operation, its words); there is exactly one reading of each."""
    found = []
    for sentence in sentences(question):
        matches = [(kind, op, p.fullmatch(sentence)) for kind, op, p in SENTENCES]
        readings = [(kind, op, m.groupdict()) for kind, op, m in matches if m]
        assert len(readings) == 1, f"{len(readings)} readings of {sentence!r}"
        found += readings
    return found


def solve(question: str) -> tuple[list[str], list[set[int]], int]:
    """The steps as a reader writes them down, which earlier steps each needs, and the answer."""
    held, steps, needs, subject = {}, [], [], None  # held: name -> (value, step that made it)

    def compute(a, op, b):
        result = OPERATIONS[op](a[0], b[0])
        assert result == int(result)
        steps.append(f"<<{a[0]}{op}{b[0]}={int(result)}>>")
        needs.append({made for _, made in (a, b) if made is not None})
        return int(result), len(steps) - 1

    for kind, op, found in read(question):
        P, Q, c = found.get("P"), found.get("Q"), (int(found.get("c") or 0), None)
        if P in ("She", "He"):
            assert subject and words.PRONOUN[subject] == P, f"{P} after {subject}: {question}"
            P = subject
        subject = P
        if kind == "start":
            assert P not in held
            held[P] = c
        elif kind == "event":
            held[P] = compute(held[P], op, c)
        elif kind == "relation":
            assert Q not in held
            held[Q], subject = compute(held[P], op, c), Q
        elif kind == "merge":
            held[Q], subject = compute(held[Q], "+", held.pop(P)), None
        elif kind == "together":
            return steps, needs, compute(held[P], "+", held[Q])[0]
        elif kind == "difference":
            return steps, needs, compute(held[P], "-", held[Q])[0]
        elif kind == "ask":
            return steps, needs, held[P][0]
    raise AssertionError("no question")


@pytest.mark.parametrize("name", TEST_SETS)
def test_a_second_reader_finds_the_same_steps_orders_and_answer_in_the_text(tests, name):
    """Pronouns, each sentence's operation, who holds what by now, whom the question is about: all are in the
    text."""
    for e in tests[name]:
        steps, needs, answer = solve(e.question)
        assert (tuple(steps), str(answer)) == (e.steps, e.answer), e.question
        orders = []
        for order in itertools.permutations(range(len(steps))):
            if all(needs[i] <= set(order[:at]) for at, i in enumerate(order)):
                orders.append(order)
        expected = {tuple(steps[i] for i in order) for order in orders}  # two steps may read the same
        assert len(orders) <= words.MAX_ORDERS and Counter(e.chains) == Counter(expected), e.question
        assert e.chains[0] == e.steps


@pytest.mark.parametrize("name", TEST_SETS)
def test_every_step_is_right_and_uses_only_numbers_that_are_known_by_then(tests, name):
    for e in tests[name]:
        known = {int(x) for x in re.findall(r"\d+", e.question)}
        for chain in e.chains:
            so_far = set(known)
            for step in chain:
                a, op, b, c = re.fullmatch(r"<<(\d+)([-+*/])(\d+)=(\d+)>>", step).groups()
                a, b, c = int(a), int(b), int(c)
                assert OPERATIONS[op](a, b) == c, step
                assert {a, b} <= so_far, (step, e.question)
                assert 1 <= min(a, b, c) and max(a, b, c) <= 99
                so_far.add(c)
            assert step.endswith(f"={e.answer}>>")


def test_every_step_has_as_many_tokens_as_every_other(tests):
    """Segments of 2 and 4 line up with steps only then: 7 tokens and the space between two steps."""
    for e in itertools.chain(*tests.values()):
        assert len(re.findall(MINI_PATTERN, e.chain)) == 8 * len(e.steps) - 1


def test_all_numbers_are_from_1_to_99_and_training_shows_each(train, tests):
    """An embedding that training never touches is noise at test time."""
    numbers = lambda examples: {int(x) for e in examples for x in re.findall(r"\d+", e.question + e.chain)}
    assert numbers(train) == set(range(1, 100))
    assert numbers(itertools.chain(*tests.values())) <= set(range(1, 100))


# --- determinism and splits ---------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_problems_and_others_give_others():
    a = words.load("mini", "train", 50, seed=3)
    assert a == words.load("mini", "train", 50, seed=3) and a == words.load("mini", "train", 80, seed=3)[:50]
    questions = {e.question for e in a}
    assert not questions & {e.question for e in words.load("mini", "train", 50, seed=4)}
    assert not questions & {e.question for e in words.load("mini", "val", 50, seed=3)}


def test_the_problems_are_those_that_the_committed_results_were_made_with():
    """A change of a template, or of the order of random draws, changes every number in results/ without any
    other sign."""
    first = words.load("mini", "test", 1)[0]
    assert first.question == (
        "There are 14 eggs in the bag of Finn. He buys 4 more eggs. Finn works until there are 4 times as "
        "many eggs. Finn buys 6 more eggs. He makes 3 equal parts and keeps one. What is the number of eggs "
        "that Finn has?"
    )
    assert first.steps == ("<<14+4=18>>", "<<18*4=72>>", "<<72+6=78>>", "<<78/3=26>>")
    assert first.answer == "26"


def test_no_problem_is_in_two_splits_whatever_the_seed_even_with_other_names_and_objects(train, tests):
    normal = lambda examples: {words.normalise(e.question) for e in examples}
    seen = {
        "train": normal(train) | normal(words.load("mini", "train", 2000, seed=1)),
        "val": normal(words.load("mini", "val", 150) + words.load("mini", "val", 150, seed=1)),
        "test": normal(itertools.chain(*tests.values())) | normal(words.load("mini", "test", 100, seed=1)),
    }
    assert all(len(s) > 250 for s in seen.values())
    for a, b in itertools.combinations(seen, 2):
        assert not seen[a] & seen[b], (a, b)


def test_normalising_forgets_names_and_objects_and_nothing_else():
    a = words.normalise("Ava has 3 eggs. Ben has 2 more eggs than Ava. He loses 1 of them.")
    renamed = "Max has 3 kilos of rice. Mia has 2 more kilos of rice than Max. She loses 1 of them."
    who_is_who = "Ava has 3 eggs. Ava has 2 more eggs than Ben. He loses 1 of them."
    number = "Ava has 3 eggs. Ben has 4 more eggs than Ava. He loses 1 of them."
    assert a == words.normalise(renamed)
    assert a != words.normalise(who_is_who) and a != words.normalise(number)


def test_there_are_more_than_a_million_problems(train):
    """Birthday bound: n samples of D equally likely problems repeat about n² / 2D times (if some are likelier
    than others, more often)."""
    questions = Counter(e.question for e in train)
    repeats = sum(n * (n - 1) // 2 for n in questions.values())
    assert len(train) ** 2 / 2 / max(repeats, 1) > 1e6
    assert len(questions) > 0.99 * len(train)


# --- what kinds of problems ---------------------------------------------------------------------------------


def test_a_fifth_of_the_problems_is_no_single_chain_and_all_lengths_occur(train):
    sample = train[:3000]
    lengths = Counter(len(e.steps) for e in sample)
    assert set(lengths) == {2, 3, 4} and min(lengths.values()) > 0.2 * len(sample)
    assert sum(len(e.chains) > 1 for e in sample) > 0.2 * len(sample)  # two tracks merge
    assert {op for e in sample for op in re.findall("[-+*/]", e.chain)} == set("+-*/")


def test_random_order_samples_from_all_valid_orders():
    sampled = words.load("mini", "train", 600, chain_order="random")
    assert all(e.steps in e.chains for e in sampled)
    several = [e for e in sampled if len(e.chains) > 1]
    assert 0.3 < sum(e.steps != e.chains[0] for e in several) / len(several) < 0.8


def count_sentences(examples, templates: list[str]) -> int:
    """How many sentences of these questions follow one of the templates."""
    patterns = [pattern(t) for t in templates]
    found = 0
    for e in examples:
        found += sum(any(p.fullmatch(s) for p in patterns) for s in sentences(e.question))
    return found


def test_multiarith_has_two_steps_in_templates_that_training_never_shows_made_of_words_that_it_does(
    train, tests
):
    test = tests["mini_multiarith"]
    kinds = [templates for kind, _, templates in KINDS if kind != "irrelevant"]
    held_out, shown = [t[-1] for t in kinds], [s for t in kinds for s in t[:-1]]
    assert all(len(e.steps) == 2 for e in test)
    assert count_sentences(train[:1500], held_out) == 0 < count_sentences(train[:1500], shown)
    assert count_sentences(test, shown) == 0 < count_sentences(test, held_out)
    vocabulary = lambda examples: {w for e in examples for w in re.findall(r"[a-z]+", e.question.lower())}
    assert vocabulary(test) <= vocabulary(train)


def test_every_token_of_every_test_set_is_a_token_of_training(train, tests):
    """Words carry their spaces: `now?` of training is another token than `now ` of a test template."""
    tokens = lambda examples: {
        t for e in examples for t in re.findall(MINI_PATTERN, f"{e.question} {e.chain}")
    }
    known = tokens(train)
    for name, examples in tests.items():
        assert not tokens(examples) - known, name


def test_hard_problems_take_their_numbers_from_the_rare_tail(tests):
    starts = lambda examples: [int(re.search(r"\d+", e.question)[0]) for e in examples]
    assert min(starts(tests["mini_hard"])) > 40
    assert sum(n > 40 for n in starts(tests["mini"])) < 0.2 * len(tests["mini"])


def test_svamp_problems_hold_a_quantity_that_does_not_matter_and_long_ones_5_or_6_steps(tests):
    irrelevant = lambda e: sum(kind == "irrelevant" for kind, _, _ in read(e.question))
    assert all(irrelevant(e) == 1 for e in tests["mini_svamp"])
    assert {len(e.steps) for e in tests["mini_long"]} == {5, 6}
    assert 0.03 < sum(map(irrelevant, tests["mini"])) / len(tests["mini"]) < 0.2


def test_a_word_that_means_the_things_does_not_follow_a_sentence_about_other_things(tests):
    """`of them`, `13 more`, `equal parts`: after `Ivan also has 4 flowers.` these are flowers."""
    for e in tests["mini_svamp"] + tests["mini"]:
        for one, other in itertools.pairwise(sentences(e.question)):
            if " also has " in one:
                assert any(o in other for o in words.OBJECTS), e.question
