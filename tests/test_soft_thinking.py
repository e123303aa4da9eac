"""Soft Thinking: another way to decode an explicit model, from the command line to the numbers."""

import json

import pytest
import torch
from conftest import script

from minilatent import tasks
from minilatent.config import SoftThinking, UserError
from minilatent.latent import superpose
from minilatent.run import load_run
from minilatent.study.evaluation import evaluate

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def problems():
    return tasks.load("mini", "test", limit=8)


def load(runs, **settings):
    return load_run(runs["cot_sft"], CPU, SoftThinking(soft_thinking=True, **settings))


def test_a_mixture_of_one_token_is_plain_chain_of_thought_and_so_is_a_temperature_near_zero(runs, problems):
    questions = [e.question for e in problems]
    plain = load_run(runs["cot_sft"], CPU).solve(questions)
    for settings in ({"soft_k": 1}, {"soft_temperature": 1e-3}):
        out = load(runs, **settings).solve(questions)
        assert out.answers == plain.answers and torch.equal(out.chain, plain.chain)
    soft = load(runs, soft_temperature=2.0).solve(questions)
    assert not torch.equal(soft.chain, plain.chain)


def test_what_is_fed_is_the_mixture_at_its_temperature(runs, problems):
    method, question = load(runs, soft_k=4, soft_temperature=0.5), problems[0].question
    out, table = method.solve([question]), method.model.embed.weight
    with torch.no_grad():
        hidden = method.model(torch.tensor([method.prompt(question)]))[0, -1]
        z, probs, _ = superpose(method.model.logits(hidden) / 0.5, table, 4, method.tok.never)
    torch.testing.assert_close(out.latents[0, 0], z, rtol=0, atol=1e-4)
    assert len(probs) == 4


def test_its_steps_are_measured_as_the_mixtures_that_were_fed_not_as_words(runs, problems):
    """At a low temperature hardly more than one token is fed, whatever the model's own distribution is."""
    assert load_run(runs["cot_sft"], CPU).explicit and not load(runs).explicit and load(runs).ratio == 1
    methods = [load(runs, soft_k=4, soft_temperature=t) for t in (1e-3, 1.0)]
    cold, warm = (evaluate(method, problems, "mini") for method in methods)
    assert cold["entropy"] < 0.05 < warm["entropy"]


def test_eval_and_sample_take_it(runs, tmp_path, capsys):
    out, options = tmp_path / "r.json", ["--ckpt", str(runs["cot_sft"]), "--soft_thinking", "--soft_k", "5"]
    script("eval")([*options, "--limit", "6", "--json", str(out), "--intervene", "noise"])
    (result,) = json.loads(out.read_text(encoding="utf-8"))
    assert result["method"] == "soft_thinking" and result["entropy"] is not None
    script("sample")(options)
    assert "latents, " in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, extra, message",
    [
        ("latent_sft", ["--soft_thinking"], "belongs to cot_sft"),
        ("cot_sft", ["--soft_k", "3"], "--soft_thinking"),
        ("cot_sft", ["--no-soft_thinking", "--soft_temperature", "1"], "--soft_thinking"),
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
