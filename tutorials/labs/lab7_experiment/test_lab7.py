"""Tests of lab 7's rules on cases worked out by hand."""

import math

import pytest
import torch
from labkit import generator, load

lab = load(__file__)
POINTS = {"interval": 3, "admissible": 2, "choose": 3, "leaderboard": 4}


class Test_interval:
    @pytest.mark.parametrize(
        "right, n, z",
        [(0, 10, 1.96), (10, 10, 1.96), (3, 7, 1.96), (44_400, 50_000, 1.96), (5, 9, 1.0), (1, 1, 2.58)],
    )
    def test_both_ends_solve_the_equation(self, right, n, z):
        low, high = lab.interval(right, n, z)
        assert 0 <= low < high <= 1 and low <= right / n <= high
        for p in (low, high):
            assert (right / n - p) ** 2 == pytest.approx(z * z * p * (1 - p) / n, abs=1e-12)

    def test_numbers_by_hand(self):
        """8 of 10: 0.49 to 0.94, as in published tables."""
        low, high = lab.interval(8, 10)
        assert low == pytest.approx(0.49016, abs=1e-5) and high == pytest.approx(0.94332, abs=1e-5)

    def test_without_questions_the_interval_is_everything(self):
        assert tuple(lab.interval(0, 0)) == (0, 1)

    def test_all_correct_is_not_certainty(self):
        low, high = lab.interval(20, 20)
        assert low == pytest.approx(20 / (20 + 1.96**2)) and high == pytest.approx(1)


def entry(name="a", seed=0, accuracy=0.5, mean_len=6.0, cpu_seconds=500.0, **more):
    return {
        "name": name,
        "seed": seed,
        "accuracy": accuracy,
        "n": 500,
        "mean_len": mean_len,
        "cpu_seconds": cpu_seconds,
        **more,
    }


class Test_admissible:
    @pytest.mark.parametrize(
        "change, expected",
        [
            ({}, True),
            ({"mean_len": 8.0}, True),
            ({"mean_len": 8.01}, False),
            ({"cpu_seconds": 600.0}, True),
            ({"cpu_seconds": 600.5}, False),
            ({"mean_len": 0.0}, True),
            ({"mean_len": -1.0}, False),
            ({"cpu_seconds": -5}, False),
            ({"mean_len": math.nan}, False),
            ({"cpu_seconds": math.nan}, False),
            ({"cpu_seconds": math.inf}, False),
            ({"accuracy": 1.2}, False),
            ({"accuracy": math.nan}, False),
            ({"accuracy": -0.1}, False),
            ({"mean_len": None}, False),
            ({"mean_len": "6"}, False),
            ({"accuracy": 1}, True),
            ({"mean_len": 3}, True),
            ({"accuracy": None}, False),
            ({"cpu_seconds": "500"}, False),
            ({"accuracy": 0.0}, True),
            ({"cpu_seconds": 0}, True),
        ],
        ids=str,
    )
    def test_each_number_by_itself(self, change, expected):
        assert lab.admissible({**entry(), **change}, 8, 600) is expected

    @pytest.mark.parametrize("key", ["mean_len", "cpu_seconds", "accuracy"])
    def test_a_number_that_is_missing(self, key):
        e = entry()
        del e[key]
        assert lab.admissible(e, 8, 600) is False

    def test_the_limits_are_the_arguments(self):
        assert lab.admissible(entry(), 6, 500) is True
        assert lab.admissible(entry(cpu_seconds=math.inf), math.inf, math.inf) is False
        assert lab.admissible(entry(), 5, 600) is False and lab.admissible(entry(), 8, 499) is False


def trial(val, mean_len=5.0, seconds=100.0, **more):
    return {"val_accuracy": val, "val_mean_len": mean_len, "cpu_seconds": seconds, **more}


class Test_choose:
    def test_validation_chooses_and_the_test_accuracy_is_ignored(self):
        trials = [trial(0.6, test_accuracy=0.9), trial(0.8, test_accuracy=0.1), trial(0.7)]
        assert lab.choose(trials, 8, 600) is trials[1]

    def test_what_is_beyond_a_limit_is_not_chosen(self):
        trials = [
            trial(0.9, mean_len=8.1),
            trial(0.8, seconds=601),
            trial(0.5, mean_len=8.0, seconds=600),
            trial(0.4),
        ]
        assert lab.choose(trials, 8, 600) is trials[2]

    def test_of_equals_the_shorter_and_then_the_first(self):
        trials = [
            trial(0.7, 6.0),
            trial(0.7, 4.0, test_accuracy=0.1),
            trial(0.7, 4.0, test_accuracy=0.9),
            trial(0.6, 1.0),
        ]
        assert lab.choose(trials, 8, 600) is trials[1]

    def test_a_small_difference_is_one(self):
        trials = [trial(0.741, 2.0), trial(0.7420, 7.01), trial(0.7419, 3.0), trial(0.7420, 7.0)]
        assert lab.choose(trials, 8, 600) is trials[3]

    def test_nothing_is_a_number_too(self):
        trials = [trial(0.0, 3.0), trial(0.0, 0.0, seconds=0.0)]
        assert lab.choose(trials, 8, 600) is trials[1] and lab.choose(trials[:1], 8, 600) is trials[0]

    def test_none_within_the_limits(self):
        assert lab.choose([trial(0.9, 20.0)], 8, 600) is None and lab.choose([], 8, 600) is None

    def test_random_trials(self):
        g = generator(1)
        for _ in range(10):
            numbers = torch.rand(6, 3, generator=g).tolist()
            trials = [trial(round(a, 1), 10 * b, 700 * c) for a, b, c in numbers]
            best = None
            for t in trials:
                if t["val_mean_len"] <= 7 and t["cpu_seconds"] <= 500:
                    if (
                        best is None
                        or t["val_accuracy"] > best["val_accuracy"]
                        or t["val_accuracy"] == best["val_accuracy"]
                        and t["val_mean_len"] < best["val_mean_len"]
                    ):
                        best = t
            assert lab.choose(trials, 7, 500) is best


def board(entries, most_latents=8, most_seconds=600):
    return [
        (name, round(accuracy, 9)) for name, accuracy in lab.leaderboard(entries, most_latents, most_seconds)
    ]


class Test_leaderboard:
    def test_the_best_comes_first(self):
        assert board([entry("a", accuracy=0.5), entry("b", accuracy=0.9), entry("c", accuracy=0.7)]) == [
            ("b", 0.9),
            ("c", 0.7),
            ("a", 0.5),
        ]

    def test_seeds_are_averaged_not_selected(self):
        entries = [entry("a", 0, 0.9), entry("a", 1, 0.3), entry("b", 0, 0.7), entry("b", 1, 0.7)]
        assert board(entries) == [("b", 0.7), ("a", 0.6)]

    def test_one_entry_beyond_a_limit_takes_the_name_off_the_board(self):
        entries = [
            entry("a", 0, 0.9),
            entry("a", 1, 0.9, mean_len=9.0),
            entry("b", 0, 0.2),
            entry("c", 0, 0.95, cpu_seconds=601.0),
        ]
        assert board(entries) == [("b", 0.2)]

    def test_of_equals_the_shorter_chain_and_then_the_name(self):
        entries = [
            entry("c", mean_len=4.0),
            entry("a", mean_len=6.0),
            entry("b", 0, mean_len=3.0),
            entry("b", 1, mean_len=5.0),
        ]
        assert board(entries) == [("b", 0.5), ("c", 0.5), ("a", 0.5)]

    def test_the_first_entry_of_a_name_and_seed_counts(self):
        assert board([entry("a", 0, 0.4), entry("a", 0, 0.9), entry("a", 1, 0.6)]) == [("a", 0.5)]
        assert board([entry("a", 0, 0.4), entry("a", 0, 0.9, mean_len=99.0)]) == [("a", 0.4)]

    def test_each_seed_has_the_same_weight_whatever_its_number_of_questions(self):
        few = {**entry("a", 0, 0.2), "n": 20}
        assert board([few, entry("a", 1, 0.8), entry("a", 2, 0.8)]) == [("a", 0.6)]

    def test_every_name_is_listed_and_upper_case_matters(self):
        names = ["ada", "Ada", "b", "c", "d"]
        assert board([entry(name, accuracy=0.9 - i / 10) for i, name in enumerate(names)]) == [
            (name, round(0.9 - i / 10, 9)) for i, name in enumerate(names)
        ]

    def test_a_small_difference_is_one(self):
        assert board(
            [
                entry("a", accuracy=0.7419, mean_len=2.0),
                entry("b", accuracy=0.7420, mean_len=7.01),
                entry("c", accuracy=0.7420, mean_len=7.0),
            ]
        ) == [("c", 0.742), ("b", 0.742), ("a", 0.7419)]

    def test_an_accuracy_of_0_is_listed(self):
        assert board([entry("a", accuracy=0.0), entry("b", accuracy=0.1)]) == [("b", 0.1), ("a", 0.0)]

    def test_any_number_of_seeds_of_any_size(self):
        assert board([entry("a", 10 * i, i / 10) for i in range(6)]) == [("a", 0.25)]

    def test_an_empty_board(self):
        assert board([]) == [] and board([entry(mean_len=50.0)]) == []

    def test_the_limits_are_the_arguments(self):
        assert (
            board([entry(mean_len=6.0)], 6, 500) == [("a", 0.5)]
            and board([entry(mean_len=6.0)], 5.9, 500) == []
        )
