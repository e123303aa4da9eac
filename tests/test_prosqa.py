"""mini_prosqa: a second reader finds the same ways in the text, no shortcut finds the answer, and a word can be judged."""

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

ALL = graph.load("mini_prosqa", "train", 1500)


def read(question: str) -> tuple[dict[str, set[str]], list[str], list[str]]:
    """Who gives to whom; the two that start, the one asked about first; and the two that it offers."""
    told, starts, asked = question.rsplit(". ", 2)
    gives: dict[str, set[str]] = {}
    for one in told.split(". "):
        giver, getter = re.fullmatch(r"(\w+) gives (\w+) coins", one).groups()
        assert getter not in gives.setdefault(giver, set())  # no sentence twice
        gives[giver].add(getter)
    *offered, start = re.fullmatch(
        r"After a week one of (\w+) and (\w+) has the coins that (\w+) has now\?", asked
    ).groups()
    starts = re.fullmatch(r"(\w+) and (\w+) have coins", starts).groups()
    return gives, sorted(starts, key=lambda name: name != start), offered


def walks(gives, start: str, end: str, n: int) -> list[list[str]]:
    """All walks of n edges, without any cleverness."""
    found = [[start]]
    for _ in range(n):
        found = [walk + [to] for walk in found for to in gives.get(walk[-1], ())]
    return [walk for walk in found if walk[-1] == end]


def test_a_second_reader_finds_the_same_shortest_ways_and_the_answer_in_the_text():
    for e in ALL[:500]:
        gives, (start, other), offered = read(e.question)
        (wrong,) = set(offered) - {e.answer}
        assert e.answer in offered and not any(walks(gives, start, wrong, n) for n in range(24))
        n = len(e.steps) // 2
        assert not any(
            walks(gives, *ends, shorter)
            for ends in ((start, e.answer), (other, wrong))
            for shorter in range(n)
        )
        tell = lambda walk: [f"{a} gives {b} coins." for a, b in zip(walk, walk[1:])]
        expected = {
            (*tell(one), *tell(two))
            for one in walks(gives, start, e.answer, n)
            for two in walks(gives, other, wrong, n)
        }
        assert set(e.chains) == expected and len(e.chains) == len(expected)
        assert e.steps == e.chains[0] and set(e.steps) <= set(
            re.findall(r"\w+ gives \w+ coins\.", e.question)
        )


def test_all_numbers_of_steps_occur_and_half_of_the_problems_have_two_ways_on_each_track():
    hops, ways = Counter(len(e.steps) for e in ALL), Counter(len(e.chains) for e in ALL)
    assert set(hops) == {6, 8, 10, 12} and min(hops.values()) > 0.2 * len(ALL)
    assert set(ways) == {1, 4} and 0.4 < ways[4] / len(ALL) < 0.6


def test_more_ways_than_the_cap_are_cut_and_a_place_that_is_not_reached_has_none():
    layers = [["a"], *[[f"{x}{i}" for x in "bcde"] for i in range(4)], ["z"]]
    edges = [edge for one, two in zip(layers, layers[1:]) for edge in itertools.product(one, two)]
    ways = graph.shortest_ways(edges, "a", "z")
    assert len(ways) == len(set(ways)) == graph.MAX_CHAINS < 4**4 and all(len(w) == 5 for w in ways)
    assert graph.shortest_ways(edges, "z", "a") == []
    assert graph.shortest_ways([("a", "b"), ("b", "c"), ("a", "c")], "a", "c") == [(("a", "c"),)]


def test_no_shortcut_is_much_better_than_a_coin():
    """Both ends are told alike: by place, by how often they or their giver occur, by who is near the start in the text."""

    def places(e, name):
        return [m.start() for m in re.finditer(rf"\b{name}\b", e.question)]

    def undirected(e, start, name):
        gives, _, _ = read(e.question)
        near = {frozenset((a, b)) for a, bs in gives.items() for b in bs}
        at, seen = 0, {start}
        while name not in seen and at < 30:
            at, seen = at + 1, seen | {x for pair in near if pair & seen for x in pair}
        return at

    def giver(e, name):
        return next(a for a, bs in read(e.question)[0].items() if name in bs)

    def in_order(e, name):
        _, (start, other), offered = read(e.question)
        return (places(e, start)[-2] < places(e, other)[-1]) == (name == offered[0])

    guesses = {
        "first offered": lambda e, name: -places(e, name)[-1],
        "told first": lambda e, name: -places(e, name)[0],
        "in-degree": lambda e, name: len(places(e, name)),
        "giver's degree": lambda e, name: len(places(e, giver(e, name))),
        "near the start in the text": lambda e, name: (
            -abs(places(e, name)[0] - places(e, read(e.question)[1][0])[0])
        ),
        "offered in the starts' order": in_order,
    }
    for label, score in guesses.items():
        right = sum(
            (a > b) + (a == b) / 2
            for e in ALL
            for w in set(read(e.question)[2]) - {e.answer}
            for a, b in [(score(e, e.answer), score(e, w))]
        )
        assert abs(right / len(ALL) - 0.5) < 0.06, label
    connected = [
        e
        for e in ALL[:100]
        if undirected(e, read(e.question)[1][0], (set(read(e.question)[2]) - {e.answer}).pop()) < 30
    ]
    assert len(connected) == 100  # without directions, both are reached


def test_mini_bases_tokenizer_has_every_word_as_one_token_and_steps_end_where_rows_say(tok):
    assert set(Tokenizer.load(BASE).ranks) >= set(tok.ranks)
    rows, skipped = encode(ALL[:200], tok, 512)
    assert skipped == 0
    for e, row in zip(ALL, rows):
        for ids in (row.question, row.chain, row.answer):
            assert not any(tok.name(i).isalpha() and len(tok.name(i)) == 1 for i in ids), "spelled out"
        assert len(row.answer) == 2 and len(row.chain) == 5 * len(e.steps) == row.ends[-1]
        assert [tok.decode(row.chain[:end]).strip() for end in row.ends] == [
            " ".join(e.steps[:i]) for i in range(1, len(e.steps) + 1)
        ]


def test_step_ends_of_equations_stand_behind_their_last_token(tok):
    examples = words.load("mini", "train", 50)
    for e, row in zip(examples, encode(examples, tok, 512)[0]):
        assert [tok.decode(row.chain[:end]) for end in row.ends] == [
            " ".join(e.steps[:i]) for i in range(1, len(e.steps) + 1)
        ]


# --- splits ------------------------------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_problems_and_splits_never_share_one_even_with_other_names():
    assert (
        ALL[:40] == graph.load("mini_prosqa", "train", 40) != graph.load("mini_prosqa", "train", 40, seed=1)
    )
    problems = {
        s: {words.normalise(e.question) for e in graph.load("mini_prosqa", s, 400)}
        for s in ("train", "val", "test")
    }
    assert all(len(p) > 395 for p in problems.values())
    for a, b in itertools.combinations(problems, 2):
        assert not problems[a] & problems[b]
    renamed = dict(zip(graph.PEOPLE, random.Random(0).sample(graph.PEOPLE, 24)))
    for e in ALL[:50]:
        other = re.sub(r"\b[A-Z]\w+\b", lambda m: renamed.get(m[0], m[0]), e.question)
        assert words.split_of(other) == "train"


def test_data_loads_it_by_name_and_refuses_a_style_that_it_has_not():
    assert tasks.load("mini_prosqa", "test", limit=5) == graph.load("mini_prosqa", "test", 5)
    assert len(tasks.load("mini_prosqa", "val")) == graph.SIZES["val"]
    drawn = tasks.load("mini_prosqa", "train", limit=200, chain_order="random")
    assert all(e.steps in e.chains for e in drawn) and any(e.steps != e.chains[0] for e in drawn)
    with pytest.raises(UserError, match="--chain_style"):
        tasks.load("mini_prosqa", "test", chain_style="text")
    with pytest.raises(UserError, match="mini_prosqa"):
        tasks.load("mini_prosq", "test")


# --- an answer that is a word ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prediction, answer, verdict",
    [
        ("Leo", "Leo", True),
        (" leo. ", "Leo", True),
        ("LEO", "Leo", True),
        ("New  York!", "New York", True),
        ("Leo and Mia", "Leo", False),
        ("Mia", "Leo", False),
        ("", "Leo", False),
        (None, "Leo", False),
        ("?", "Leo", False),
        ("Leo 3", "Leo", False),
        ("3", "Leo", False),
        ("Leo", "3", False),
        ("", "", False),
        ("...", "...", False),
    ],
)
def test_a_word_is_right_only_if_it_is_the_word_and_nothing_else(prediction, answer, verdict):
    assert is_correct(prediction, answer) is verdict


def test_what_a_text_answers_depends_on_what_is_asked_for():
    assert extract_answer("Leo has 3") == "3" and extract_answer("Leo has 3", "18") == "3"
    assert extract_answer("Leo has 3", "Mia") == "leo has 3" and extract_answer(" ", "Mia") is None


def test_interventions_tell_words_apart(tok):
    """Two answers without a number are not the same answer."""
    examples = tasks.load("mini_prosqa", "test", limit=24)
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


@pytest.mark.parametrize("method", ["cot_sft", "coconut"])
def test_a_run_on_it_goes_from_train_to_eval_and_sample(tmp_path, monkeypatch, tok, capsys, method):
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)
    train(tmp_path / "run", method, "--data", "mini_prosqa")
    assert "mini_prosqa test: accuracy" in capsys.readouterr().out
    script("eval")(
        [
            "--ckpt",
            str(tmp_path / "run"),
            "--limit",
            "6",
            "--intervene",
            "swap",
            "--json",
            str(tmp_path / "r.json"),
        ]
    )
    assert json.loads((tmp_path / "r.json").read_text())[0]["data"] == "mini_prosqa"
    script("sample")(
        [
            "--ckpt",
            str(tmp_path / "run"),
            "--question",
            tasks.load("mini_prosqa", "test", limit=1)[0].question,
        ]
    )
