"""Soft Thinking: another way to decode an explicit model, from the command line to the numbers."""

import json

import pytest
import torch
from conftest import chatty, save, script

from minilatent import tasks
from minilatent.config import SoftThinking, UserError
from minilatent.latent import superpose
from minilatent.run import load_run
from minilatent.study.evaluation import evaluate


@pytest.fixture(scope="module")
def runs(tok, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {name: save(chatty(tok, name), root / name) for name in ("cot_sft", "latent_sft")}


def load(runs, **settings):
    return load_run(runs["cot_sft"], torch.device("cpu"), SoftThinking(soft_thinking=True, **settings))


def test_a_mixture_of_one_token_is_plain_chain_of_thought_and_so_is_a_temperature_near_zero(runs):
    questions = [e.question for e in tasks.load("mini", "test", limit=8)]
    plain = load_run(runs["cot_sft"], torch.device("cpu")).solve(questions)
    for settings in ({"soft_k": 1}, {"soft_temperature": 1e-3}):
        out = load(runs, **settings, cold_steps=0).solve(questions)
        assert out.answers == plain.answers and torch.equal(out.chain, plain.chain)
    soft = load(runs, soft_temperature=2.0).solve(questions)
    assert not torch.equal(soft.chain, plain.chain)


def test_what_is_fed_is_the_mixture_at_its_temperature(runs):
    method = load(runs, soft_k=4, soft_temperature=0.5)
    question = tasks.load("mini", "test", limit=1)[0].question
    out = method.solve([question])
    with torch.no_grad():
        hidden = method.model(torch.tensor([method.prompt(question)]))[0, -1]
        z, probs, _ = superpose(
            method.model.logits(hidden) / 0.5, method.model.embed.weight, 4, method.tok.never
        )
    torch.testing.assert_close(out.latents[0, 0], z, rtol=0, atol=1e-4)
    assert len(probs) == 4


def test_its_steps_are_judged_as_mixtures_of_one_token_each_not_as_words(runs):
    method = load(runs)
    result = evaluate(method, tasks.load("mini", "test", limit=8), "mini")
    assert not method.explicit and method.ratio == 1 and result["entropy_mixture"] is not None
    assert load_run(runs["cot_sft"], torch.device("cpu")).explicit


def test_eval_and_sample_take_it(runs, tmp_path, capsys):
    out = tmp_path / "r.json"
    options = [
        "--ckpt",
        str(runs["cot_sft"]),
        "--soft_thinking",
        "--soft_k",
        "5",
        "--cold_entropy",
        "1000",
        "--cold_steps=3",
    ]
    script("eval")([*options, "--limit", "6", "--json", str(out), "--intervene", "noise"])
    (result,) = json.loads(out.read_text())
    assert result["method"] == "soft_thinking" and result["mean_len"] <= 2  # stopped at the third step
    script("sample")(options)
    assert "latents, ended by itself" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, extra, message",
    [
        ("latent_sft", ["--soft_thinking"], "thinks in words"),
        ("cot_sft", ["--soft_k", "3"], "--soft_thinking"),
        ("cot_sft", ["--no-soft_thinking", "--cold_steps", "3"], "--soft_thinking"),
        ("cot_sft", ["--soft_thinking", "--soft_k", "0"], "--soft_k 0 is out of range: 1 or more"),
        ("cot_sft", ["--soft_thinking", "--soft_temperature", "0"], "--soft_temperature"),
        ("cot_sft", ["--soft_thinking", "--soft_temperature", "nan"], "--soft_temperature"),
        ("cot_sft", ["--soft_thinkin"], "--soft_thinking"),
    ],
)
def test_a_wrong_call_is_one_clear_line(runs, name, extra, message):
    for program in ("eval", "sample"):
        with pytest.raises(UserError) as caught:
            script(program)(["--ckpt", str(runs[name]), *extra])
        assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_mixtures_that_are_told_of_are_those_that_were_fed(runs):
    """At a low temperature hardly more than one token is fed, whatever the model's own distribution is."""
    examples = tasks.load("mini", "test", limit=8)
    cold, warm = (
        evaluate(load(runs, soft_k=4, soft_temperature=t), examples, "mini", ks=()) for t in (1e-3, 1.0)
    )
    assert cold["top1"] > 0.99 > warm["top1"] and cold["entropy_mixture"] < 0.05 < warm["entropy_mixture"]
