"""mini_prosqa: a second reader finds the same paths in the text, no shortcut finds the answer, and an answer
that is a word can be judged."""

import itertools
import json
import random
import re
from collections import Counter

import pytest
from conftest import chatty, script, train

from minilatent import tasks
from minilatent.batch import encode
from minilatent.config import UserError
from minilatent.run import BASE
from minilatent.study.interventions import intervene
from minilatent.tasks import graph, words
from minilatent.tasks.answers import extract_answer, is_correct
from minilatent.tokenizer import Tokenizer


def load(split: str = "train", limit: int | None = None, **options):
    return tasks.load("mini_prosqa", split, limit=limit, **options)


ALL = load(limit=1500)


def read(question: str) -> tuple[dict[str, set[str]], list[str], list[str]]:
    """Who gives to whom; the two starts, the one asked about first; and the two ends that are offered."""
    edges, starts, asked = question.rsplit(". ", 2)
    gives: dict[str, set[str]] = {}
    for one in edges.split(". "):
        giver, getter = re.fullmatch(r"(\w+) gives (\w+) coins", one).groups()
        assert getter not in gives.setdefault(giver, set())  # no sentence twice
        gives[giver].add(getter)
    asked_for = r"After a week one of (\w+) and (\w+) has the coins that (\w+) has now\?"
    *offered, start = re.fullmatch(asked_for, asked).groups()
    starts = re.fullmatch(r"(\w+) and (\w+) have coins", starts).groups()
    return gives, sorted(starts, key=lambda name: name != start), offered


def walks(gives, start: str, end: str, n: int) -> list[list[str]]:
    """All walks of n edges, without any cleverness."""
    found = [[start]]
    for _ in range(n):
        found = [walk + [to] for walk in found for to in gives.get(walk[-1], ())]
    return [walk for walk in found if walk[-1] == end]


def test_a_second_reader_finds_the_same_shortest_paths_and_the_answer_in_the_text():
    sentences = lambda walk: [f"{a} gives {b} coins." for a, b in itertools.pairwise(walk)]
    for e in ALL[:300]:
        gives, (start, other), offered = read(e.question)
        (wrong,) = set(offered) - {e.answer}
        assert e.answer in offered and not any(walks(gives, start, wrong, n) for n in range(24))
        n = len(e.steps) // 2
        for shorter in range(n):
            assert not walks(gives, start, e.answer, shorter) and not walks(gives, other, wrong, shorter)
        expected = set()
        for one in walks(gives, start, e.answer, n):
            for two in walks(gives, other, wrong, n):
                expected.add((*sentences(one), *sentences(two)))
        assert set(e.chains) == expected and len(e.chains) == len(expected)
        assert e.steps == e.chains[0]
        assert set(e.steps) <= set(re.findall(r"\w+ gives \w+ coins\.", e.question))


def test_all_numbers_of_steps_occur_and_half_of_the_problems_have_two_paths_on_each_track():
    hops, paths = Counter(len(e.steps) for e in ALL), Counter(len(e.chains) for e in ALL)
    assert set(hops) == {6, 8, 10, 12} and min(hops.values()) > 0.2 * len(ALL)
    assert set(paths) == {1, 4} and 0.4 < paths[4] / len(ALL) < 0.6


def test_more_paths_than_the_cap_are_dropped_and_a_place_that_is_not_reached_has_none():
    layers = [["a"], *[[f"{x}{i}" for x in "bcde"] for i in range(4)], ["z"]]
    edges = [edge for one, two in itertools.pairwise(layers) for edge in itertools.product(one, two)]
    paths = graph.shortest_paths(edges, "a", "z")
    assert len(paths) == len(set(paths)) == graph.MAX_CHAINS < 4**4 and all(len(p) == 5 for p in paths)
    assert graph.shortest_paths(edges, "z", "a") == []
    assert graph.shortest_paths([("a", "b"), ("b", "c"), ("a", "c")], "a", "c") == [(("a", "c"),)]


def test_no_shortcut_is_much_better_than_a_coin():
    """Both ends look alike: by their place in the text, by how often they or their givers occur, by who is
    near the start in the text."""
    problems = []
    for e in ALL:
        gives, (start, other), offered = read(e.question)
        (wrong,) = set(offered) - {e.answer}
        places = {name: [m.start() for m in re.finditer(rf"\b{name}\b", e.question)] for name in graph.PEOPLE}
        giver = {to: name for name in reversed(gives) for to in gives[name]}  # the first in the text
        problems.append((e.answer, wrong, start, other, offered, places, giver, gives))

    def in_order(name, start, other, offered, places, giver):
        return (places[start][-2] < places[other][-1]) == (name == offered[0])

    guesses = {
        "offered first": lambda name, start, other, offered, places, giver: -places[name][-1],
        "first in the text": lambda name, start, other, offered, places, giver: -places[name][0],
        "in-degree": lambda name, start, other, offered, places, giver: len(places[name]),
        "giver's degree": lambda name, start, other, offered, places, giver: len(places[giver[name]]),
        "near the start in the text": lambda name, start, other, offered, places, giver: (
            -abs(places[name][0] - places[start][0])
        ),
        "offered in the starts' order": in_order,
    }
    for label, score in guesses.items():
        right = 0.0
        for answer, wrong, *given, _ in problems:
            a, b = score(answer, *given), score(wrong, *given)
            right += (a > b) + (a == b) / 2
        assert abs(right / len(ALL) - 0.5) < 0.06, label
    for _, wrong, start, *_, gives in problems[:100]:  # without directions, both ends are reached
        edges = {frozenset((a, b)) for a, bs in gives.items() for b in bs}
        seen, before = {start}, set()
        while seen != before:
            before, seen = seen, seen.union(*(pair for pair in edges if pair & seen))
        assert wrong in seen


def test_mini_bases_tokenizer_has_every_word_as_one_token_and_steps_end_where_rows_say(tok):
    assert set(Tokenizer.load(BASE).backend.ranks) >= set(tok.backend.ranks)
    rows, skipped = encode(ALL[:200], tok, 512)
    assert skipped == 0
    for e, row in zip(ALL, rows):
        for ids in (row.prompt, row.chain):  # (an answer is: mini has no name without a space behind it)
            assert not any(tok.name(i).isalpha() and len(tok.name(i)) == 1 for i in ids), "spelled out"
        assert tok.decode(row.answer) == e.answer and len(row.chain) == 5 * len(e.steps) == row.ends[-1]
        for i, end in enumerate(row.ends, 1):
            assert tok.decode(row.chain[:end]).strip() == " ".join(e.steps[:i])


def test_step_ends_of_equations_stand_behind_their_last_token(tok):
    examples = tasks.load("mini", "train", limit=50)
    for e, row in zip(examples, encode(examples, tok, 512)[0]):
        for i, end in enumerate(row.ends, 1):
            told = " ".join(e.steps[:i]).removeprefix("<<")  # a step ends with the `<<` of the next one
            assert tok.decode(row.chain[:end]).removesuffix(" <<") == told and end == 6 * i


# --- splits -------------------------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_problems_and_splits_never_share_one_even_with_other_names():
    assert ALL[:40] == load(limit=40) != load(limit=40, seed=1)
    problems = {}
    for split in ("train", "val", "test"):
        problems[split] = {words.normalise(e.question) for e in load(split, 300)}
        assert len(problems[split]) > 295
    for a, b in itertools.combinations(problems, 2):
        assert not problems[a] & problems[b]
    renamed = dict(zip(graph.PEOPLE, random.Random(0).sample(graph.PEOPLE, 24)))
    for e in ALL[:50]:
        other = re.sub(r"\b[A-Z]\w+\b", lambda m: renamed.get(m[0], m[0]), e.question)
        assert words.split_of(other) == "train"


def test_it_is_loaded_by_name_and_a_style_that_it_does_not_have_is_refused():
    assert len(load("val")) == words.SIZES["val"]
    sampled = load(limit=200, chain_order="random")
    assert all(e.steps in e.chains for e in sampled) and any(e.steps != e.chains[0] for e in sampled)
    with pytest.raises(UserError, match="--chain_style"):
        load("test", chain_style="text")
    with pytest.raises(UserError, match="mini_prosqa"):
        tasks.load("mini_prosq", "test")


# --- an answer that is a word -------------------------------------------------------------------------------

RIGHT = [("Leo", "Leo"), (" leo. ", "Leo"), ("LEO", "Leo"), ("New  York!", "New York")]
WRONG = [("Leo and Mia", "Leo"), ("Mia", "Leo"), ("", "Leo"), (None, "Leo"), ("?", "Leo"), ("Leo 3", "Leo")]
WRONG += [("3", "Leo"), ("Leo", "3"), ("", ""), ("...", "...")]


@pytest.mark.parametrize("prediction, answer", RIGHT + WRONG)
def test_a_word_is_right_only_if_it_is_the_word_and_nothing_else(prediction, answer):
    assert is_correct(prediction, answer) is ((prediction, answer) in RIGHT)


def test_what_a_text_answers_depends_on_what_is_asked_for():
    assert extract_answer("Leo has 3") == "3" and extract_answer("Leo has 3", "18") == "3"
    assert extract_answer("Leo has 3", "Mia") == "leo has 3" and extract_answer(" ", "Mia") is None


def test_interventions_tell_words_apart(tok):
    """Two answers without a number are not the same answer."""
    examples = load("test", 24)
    method = chatty(tok, "latent_sft")
    found = intervene(method, examples, ["keep", "noise"])
    assert found["keep"]["unchanged"] == 1.0 and found["noise"]["unchanged"] < 1.0
    plain = method.solve
    names = [e.answer for e in examples]

    def solve(questions, **options):
        out = plain(questions, **options)
        out.answers = [names[i % len(names)] for i in range(len(questions))]
        return out

    method.solve = solve
    assert intervene(method, examples, ["swap"])["swap"]["n"] > 0


@pytest.mark.usefixtures("one_tokenizer")
def test_a_run_on_it_goes_from_train_to_eval_and_sample(tmp_path, capsys):
    run, result = tmp_path / "run", tmp_path / "r.json"
    train(run, "coconut", "--data", "mini_prosqa")
    assert "mini_prosqa test: accuracy" in capsys.readouterr().out
    script("eval")(["--ckpt", str(run), "--limit", "6", "--intervene", "swap", "--json", str(result)])
    assert json.loads(result.read_text(encoding="utf-8"))[0]["data"] == "mini_prosqa"
    script("sample")(["--ckpt", str(run), "--question", load("test", 1)[0].question])
