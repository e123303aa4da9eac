"""The comparison's entries: what differs between them, and which learning rates are tried."""

import pytest
from pytest import approx

from minilatent import run
from minilatent.config import UserError
from minilatent.methods import METHODS
from results.comparison import claims
from results.comparison.comparison import entry_named, trials_of, tuned_as
from results.comparison.entries import ENTRIES, LATENT_ROWS, ROWS


def test_every_method_gets_as_many_trials_and_they_follow_its_preset(monkeypatch):
    families = {tuned_as(e): [t.train for t in trials_of(e)] for e in ENTRIES if e.train}
    methods = set(METHODS) - {"looped"} | {"looped_scratch"}  # one that has no other entry
    assert set(families) >= methods and {len(trials) for trials in families.values()} == {3}
    assert {t["ratio"] for t in families["latent_sft"]} == {2}  # the main entry's
    assert "latent_loss" not in families["colar"][0]
    monkeypatch.setitem(METHODS["cot_sft"].PRESETS, "mini", {"lr": 0.375})
    assert [t.train["lr"] for t in trials_of(entry_named("cot_sft"))] == approx([0.125, 0.375, 1.125])


def test_every_entry_can_be_resolved_and_every_trend_is_about_rows_that_exist():
    assert len(ROWS) == sum(len(entry.variants) for entry in ENTRIES)
    for entry in ENTRIES:
        assert not entry.train or run.resolve(entry.train)
    assert all(entry_named(entry.after) for entry in ENTRIES if entry.after)
    assert all(v.parent in ROWS for _, v in ROWS.values() if v.claim)
    for trend in [*claims.TRENDS, *(trend for claim in claims.CLAIMS for trend in claim.trends)]:
        rows = {trend.a, trend.b} - {""}
        assert rows <= ROWS.keys(), trend


def test_an_entry_can_be_asked_for_with_a_multiple_of_its_compute():
    longer = entry_named("no_cot_scratch@3")
    assert (longer.share, longer.times, longer.row(longer.variants[0])) == (3.0, 3, "no_cot_scratch@3")
    for name in ("no_cot@", "no_cot@1", "no_cot@x", "no_kot@2"):
        with pytest.raises(UserError, match=name.partition("@")[0]):
            entry_named(name)


def test_an_ablation_differs_from_its_entry_in_what_its_name_says_and_in_nothing_else():
    wordy = {"chain_style": "text", "max_chain": 128}
    nll = {"latent_loss": "nll", "latent_weight": 1.0, "sigma_floor": 0.1}
    differs = {
        "no_ltim": {"ltim": False},
        "no_ltsum": {"ltsum": False},
        "hidden": {"latent": "hidden"},
        "gumbel": {"gumbel": True},
        "uniform": {"labels": "uniform"},
        "paths": {"labels": "paths"},
        "k1": {"k": 1},
        "k5": {"k": 5},
        "k50": {"k": 50},
        "det": {"latent_loss": "mse"},
        "no_labels": {"compressed_labels": False},
        "mean": {"pooling": "mean"},
        "nll": nll,
        "text": wordy,
        "sentences": {**nll, **wordy},
        "sentences_more": {**nll, **wordy},
        "part": {"gumbel": True, "gumbel_scale": 0.5},
        "more": {"gumbel": True, "gumbel_scale": 0.5},
        "no_curriculum": {"curriculum": 0.0},
        "12": {"num_latents": 12},
        "no_average": {"average": False},
        "scratch": {"init": "none", "lr": 4e-3},
        "": {},
    }
    wholes = {f"latent_sft_{r}": {"ratio": r} for r in (2, 3, 6)}
    wholes |= {"latent_sft": {"ratio": 2}, "latent_rl": {"ratio": 2, "gumbel_scale": 0.5}}
    wholes["colar_rl"] = wordy
    others = "colar cot_sft no_cot pause icot coconut sim_cot codi"
    wholes |= {name: {} for name in others.split()} | {"looped": {"init": "none", "lr": 4e-3}}
    for entry in ENTRIES[1:]:  # the first is the base
        whole = next(w for w in wholes if entry.name == w or entry.name.startswith(w + "_"))
        changed = differs[entry.name.removeprefix(whole).removeprefix("_")]
        method = entry.train["method"]
        assert entry.name.startswith(method), entry.name
        assert entry.train == {"method": method, **wholes[whole], **changed}, entry.name


def test_claims_and_trials_stay_within_the_common_budget():
    assert {"coconut", "sim_cot", "latent_sft_2", "latent_rl"} <= set(LATENT_ROWS)
    assert not {"coconut_12", "sim_cot_12", "colar_rl"} & set(LATENT_ROWS)  # these have more
    for name in ("coconut", "sim_cot"):
        assert "num_latents" not in trials_of(entry_named(f"{name}_12"))[0].train


def test_rl_and_its_control_start_from_the_same_run_and_get_the_same_compute():
    for rl, control in (("colar_rl", "colar_sentences_more"), ("latent_rl", "latent_sft_more")):
        one, other = entry_named(rl), entry_named(control)
        assert (one.after, one.share) == (other.after, other.share) and one.after
