"""Equal compute: what FLOPs are counted, and the steps that a budget pays for."""

import pytest
import torch

from minilatent import run
from minilatent.config import UserError
from minilatent.tools.benchmark import machine
from results.comparison import budget

CPU = torch.device("cpu")
SMALL = {"train_size": 64, "val_size": 8, "batch_size": 8, "max_chain": 8, "seed": 0}
TINY = {**SMALL, "init": "none", "n_layer": 1, "width": 32, "n_head": 2, "hidden": 32}
STAGE1 = {"stage1_steps": "1,1,1"}


@pytest.fixture(autouse=True)
def one_tokenizer(monkeypatch, tok):
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)


@pytest.mark.parametrize("method", ["cot_sft", "icot", "coconut", "latent_sft"])
def test_the_steps_spend_the_budget_to_within_one_step(method):
    own = STAGE1 if method == "latent_sft" else {}
    untrained, rows = budget.untrained({**TINY, **own, "method": method}, CPU)
    cost = budget.measure(untrained, rows)
    of = lambda steps: cost.of(budget.stage_steps(untrained, rows, steps))
    total = of(1) + 40 * max(cost.flops.values())
    steps = budget.affordable(untrained, rows, cost, total)
    assert of(steps) <= total < of(steps + 1)
    # A curriculum divides its steps: one more step is one more of some stage, give or take a rounding.
    assert total - of(steps) <= len(cost.flops) * max(cost.flops.values())
    with pytest.raises(UserError, match="not enough for one step"):
        budget.affordable(untrained, rows, cost, 10.0)


def test_the_count_is_that_of_the_matrices():
    """6 FLOPs for each weight and token, forward and backward, are most of it."""
    untrained, rows = budget.untrained({"method": "cot_sft", "train_size": 128, "batch_size": 16}, CPU)
    (stage,) = untrained.stages(rows)
    order = sorted(range(len(rows)), key=stage.lengths.__getitem__)
    start = (len(order) - 16) // 2
    batch = stage.collate([stage.items[i] for i in order[start : start + 16]], None)
    named = untrained.model.named_parameters()
    matrices = sum(p.numel() for name, p in named if p.dim() == 2 and "embed" not in name)
    least = 6 * matrices * batch["ids"].numel()
    assert least < budget.measure(untrained, rows).flops["cot"] < 1.6 * least


def test_chains_of_sentences_cost_more():
    cost = {}
    for style in ("equations", "text"):
        untrained, rows = budget.untrained({**TINY, "method": "cot_sft", "chain_style": style}, CPU)
        cost[style] = budget.measure(untrained, rows).flops["cot"]
    assert cost["text"] > 1.2 * cost["equations"]


def test_frozen_parameters_cost_no_gradient_and_labelling_is_counted():
    given = {**TINY, **STAGE1, "method": "latent_sft"}
    untrained, rows = budget.untrained(given, CPU)
    cost = budget.measure(untrained, rows)
    encoder, decoder, both = (cost.flops[f"stage1-{phase}"] for phase in ("encoder", "decoder", "both"))
    assert encoder < both and decoder < both and cost.once > 0
    untrained.config.train_size *= 2  # the same rows stand for twice as many
    assert budget.measure(untrained, rows).once == pytest.approx(2 * cost.once)


def test_a_step_is_measured_in_training_mode(monkeypatch):
    """Labelling leaves the model in evaluation mode, which on a CPU has slower attention in bfloat16."""
    untrained, rows = budget.untrained({**TINY, **STAGE1, "method": "latent_sft"}, CPU)
    real, modes = budget.one_step, []
    note = lambda method, stage: (modes.append((stage.name, method.training)), real(method, stage))[1]
    monkeypatch.setattr(budget, "one_step", note)
    budget.measure(untrained, rows)
    assert [name for name, _ in modes][-1] == "stage2" and all(training for _, training in modes)


def test_the_machine_is_described():
    found = machine(CPU)
    assert found["gflops_float32"] > 0 and found["threads"] == torch.get_num_threads() and found["hardware"]
