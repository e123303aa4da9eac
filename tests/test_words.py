"""The generated problems: right, readable by a second program, and never shared between splits."""

import itertools
import random
import re
from collections import Counter

import pytest

from minilatent import tasks
from minilatent.tasks import words
from minilatent.tokenizer import MINI_PATTERN

TEST_SETS = words.TEST_SETS
OPERATIONS = words.APPLY


@pytest.fixture(scope="module")
def train():
    return tasks.load("mini", "train", limit=8000)


@pytest.fixture(scope="module")
def tests():
    return {name: tasks.load(name, "test", limit=120) for name in TEST_SETS}


def sentences(question: str) -> list[str]:
    return [s.strip() for s in re.findall(r"[^.?]+[.?]", question)]


# --- a second reader: a small interpreter of the sentences, which shares the templates and nothing else -----


def pattern(template: str) -> re.Pattern:
    person, things = "|".join(words.PEOPLE), "|".join(words.OBJECTS)
    parts = {"P": rf"(?P<P>{person})", "Q": rf"(?P<Q>{person})", "c": r"(?P<c>\d+)", "o": rf"(?P<o>{things})"}
    pieces = re.split(r"\{(\w)\}", template)
    seen, out = set(), re.escape(pieces[0])
    for name, rest in zip(pieces[1::2], pieces[2::2]):
        out += (f"(?P={name})" if name in seen else parts[name]) + re.escape(rest)
        seen.add(name)
    return re.compile(out)


KINDS = [(*kind.partition(" ")[::2], templates) for kind, templates in words.TEMPLATES.items()]
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
    held, steps, needs = {}, [], []  # held: name -> (value, step that made it)

    def compute(a, op, b):
        result = OPERATIONS[op](a[0], b[0])
        steps.append(f"<<{a[0]}{op}{b[0]}={result}>>")
        needs.append({made for _, made in (a, b) if made is not None})
        return result, len(steps) - 1

    for kind, op, found in read(question):
        P, Q, c = found.get("P"), found.get("Q"), (int(found.get("c") or 0), None)
        if kind == "start":
            assert P not in held
            held[P] = c
        elif kind == "event":
            held[P] = compute(held[P], op, c)
        elif kind == "relation":
            assert Q not in held
            held[Q] = compute(held[P], op, c)
        elif kind == "merge":
            held[Q] = compute(held[Q], "+", held.pop(P))
        elif kind == "together":
            return steps, needs, compute(held[P], "+", held[Q])[0]
        elif kind == "difference":
            return steps, needs, compute(held[P], "-", held[Q])[0]
        elif kind == "ask":
            return steps, needs, held[P][0]
    raise AssertionError("no question")


@pytest.mark.parametrize("name", TEST_SETS)
def test_a_second_reader_finds_the_same_steps_orders_and_answer_in_the_text(tests, name):
    """Each sentence's operation, who holds what by now, whom the question is about: all are in the text."""
    for e in tests[name]:
        steps, needs, answer = solve(e.question)
        assert (tuple(steps), str(answer)) == (e.steps, e.answer), e.question
        if len(steps) > 6:
            continue  # of mini_long: too many permutations
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
                a, op, b, c = re.fullmatch(r"<<(\d+)([-+*%])(\d+)=(\d+)>>", step).groups()
                a, b, c = int(a), int(b), int(c)
                assert OPERATIONS[op](a, b) == c, step
                assert {a, b} <= so_far, (step, e.question)
                assert 1 <= min(a, b, c) and max(a, b, c) <= 99
                so_far.add(c)
            assert step.endswith(f"={e.answer}>>")


def test_every_step_has_as_many_tokens_as_every_other(tests):
    """Segments of 2, 3 and 6 line up with steps only then. The first `<<` is left to <think>."""
    for e in itertools.chain(*tests.values()):
        assert len(re.findall(MINI_PATTERN, e.chain.removeprefix("<<"))) == 6 * len(e.steps)


def test_no_number_is_told_twice(tests):
    """Else it would be ambiguous which one a step has looked up."""
    for e in itertools.chain(*tests.values()):
        numbers = re.findall(r"\d+", e.question)
        assert len(numbers) == len(set(numbers)), e.question


def test_all_numbers_are_from_1_to_99_and_training_shows_each(train, tests):
    """An embedding that training never touches is noise at test time."""
    numbers = lambda examples: {int(x) for e in examples for x in re.findall(r"\d+", e.question + e.chain)}
    assert numbers(train) == set(range(1, 100))
    assert numbers(itertools.chain(*tests.values())) <= set(range(1, 100))


# --- determinism and splits ---------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_problems_and_others_give_others():
    a = tasks.load("mini", "train", limit=50, seed=3)
    assert (
        a == tasks.load("mini", "train", limit=50, seed=3)
        and a == tasks.load("mini", "train", limit=80, seed=3)[:50]
    )
    questions = {e.question for e in a}
    assert not questions & {e.question for e in tasks.load("mini", "train", limit=50, seed=4)}
    assert not questions & {e.question for e in tasks.load("mini", "val", limit=50, seed=3)}


def test_the_problems_are_those_that_the_committed_results_were_made_with():
    """A change of a template, or of the order of random draws, changes every number in results/ without any
    other sign."""
    first = tasks.load("mini", "test", limit=1)[0]
    assert first.question == (
        "Ava starts with 36 books. Then Ava sells 2. Ava packs by 7 and Finn gets the rest. Leo buys "
        "13 more than Finn has. Leo packs by 9 and Gina gets the rest. Gina gives Leo all books. Leo "
        "sells all full boxes of 12. How many books has Leo now?"
    )
    assert first.chain == "<<36-2=34>> <<34%7=6>> <<6+13=19>> <<19%9=1>> <<19+1=20>> <<20%12=8>>"
    assert first.answer == "8"


def test_no_problem_is_in_two_splits_whatever_the_seed_even_with_other_names_and_objects(train, tests):
    normal = lambda examples: {words.normalise(e.question) for e in examples}
    seen = {
        "train": normal(train) | normal(tasks.load("mini", "train", limit=2000, seed=1)),
        "val": normal(tasks.load("mini", "val", limit=150) + tasks.load("mini", "val", limit=150, seed=1)),
        "test": normal(itertools.chain(*tests.values()))
        | normal(tasks.load("mini", "test", limit=100, seed=1)),
    }
    assert all(len(s) > 250 for s in seen.values())
    for a, b in itertools.combinations(seen, 2):
        assert not seen[a] & seen[b], (a, b)


def test_normalising_forgets_names_and_objects_and_nothing_else():
    a = words.normalise("Ava has 3 eggs. Ben has 2 more than Ava has. Ben loses 1 eggs.")
    renamed = "Max has 3 rings. Mia has 2 more than Max has. Mia loses 1 rings."
    who_is_who = "Ava has 3 eggs. Ava has 2 more than Ben has. Ben loses 1 eggs."
    number = "Ava has 3 eggs. Ben has 4 more than Ava has. Ben loses 1 eggs."
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


def test_half_of_the_problems_are_no_single_chain_and_all_lengths_occur(train):
    lengths = Counter(len(e.steps) for e in train)
    for n, weight in zip(*words.OPERATIONS):
        share = weight / sum(words.OPERATIONS[1])
        assert lengths[n] / len(train) == pytest.approx(share, abs=0.02), n
    assert lengths[5] + lengths[6] > 0.45 * len(train)
    assert sum(len(e.chains) > 1 for e in train) > 0.33 * len(train)  # tracks merge, in any order
    assert {op for e in train for op in re.findall(r"[-+*%]", e.chain)} == set("+-*%")


def test_remainders_come_before_the_last_step(train):
    """One wrong unit before a remainder, and the answer is another: no estimate survives it."""
    early = {n: [] for n in range(1, 7)}
    for e in train:
        early[len(e.steps)].append(sum("%" in step for step in e.steps[:-1]))
    assert {n: min(found) for n, found in early.items()} == {1: 0, 2: 0, 3: 1, 4: 1, 5: 2, 6: 2}


def test_guessing_does_not_pay(train):
    """(results/guesses.py asks better guessers.)"""
    val = tasks.load("mini", "val", limit=500)
    best = Counter(e.answer for e in train).most_common(1)[0][0]
    assert sum(e.answer == best for e in val) < 0.07 * len(val)


def test_a_chain_in_words_says_the_same_as_the_equations():
    equations = tasks.load("mini", "train", limit=30)
    sentences = tasks.load("mini", "train", limit=30, chain_style="text")
    for e, s in zip(equations, sentences):
        assert (e.question, e.answer) == (s.question, s.answer) and len(e.chains) == len(s.chains)
        for step, sentence in zip(e.steps, s.steps):
            a, _, b, c = re.fullmatch(r"<<(\d+)(\D)(\d+)=(\d+)>>", step).groups()
            assert re.findall(r"\d+", sentence) == [a, b, c]


def test_random_order_samples_from_all_valid_orders():
    sampled = tasks.load("mini", "train", limit=600, chain_order="random")
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


def test_svamp_problems_hold_a_quantity_that_does_not_matter_and_long_ones_7_or_8_steps(tests):
    irrelevant = lambda e: sum(kind == "irrelevant" for kind, _, _ in read(e.question))
    assert all(irrelevant(e) == 1 for e in tests["mini_svamp"])
    assert {len(e.steps) for e in tests["mini_long"]} == {7, 8}
    assert 0.03 < sum(map(irrelevant, tests["mini"])) / len(tests["mini"]) < 0.2


def test_a_problem_that_no_operation_continues_is_given_up():
    problem = words.Problem(random.Random(0), "mini_hard")
    problem.numbers = {13, 14}  # 150 - 30 is above 99, and 150 % 15 is 0
    with pytest.raises(words.DeadEnd):
        problem.operation(150)
    assert problem.operation(100)[0] in "-%"
