"""The benchmark measures both sides alike; the memory of a preset is counted, not guessed."""

import json
import sys

import pytest
import torch
from test_pretrained import make

from minilatent.config import Config, UserError
from minilatent.model import ModelConfig
from minilatent.tools import benchmark

SMALL = ModelConfig(1000, n_layer=4, n_head=4, n_kv_head=2, width=64, head_dim=16, hidden=128)


def test_both_are_called_in_turn_and_a_ratio_is_theirs_over_ours(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])

    def side(name, seconds):
        def call():
            order.append(name)
            clock[0] += seconds * (10 if len(order) <= 2 else 1)  # the first of each is slow, and not counted

        return call

    found = benchmark.in_turn(side("ours", 2.0), side("theirs", 3.0), 3)
    assert found == {"seconds": 2.0, "seconds_theirs": 3.0, "ratio": 1.5}
    assert "".join(name[0] for name in order) == "toottoot"


def test_every_comparison_is_made_and_written(tmp_path, monkeypatch, capsys):
    make(tmp_path / "hf", "llama untied")
    monkeypatch.setattr(
        benchmark, "loading", lambda folder, repeats: {"ratio": 1.0}
    )  # two fresh processes: slow
    (tmp_path / "data.jsonl").write_text(
        "".join(json.dumps({"question": f"{i}+1?", "answer": i}) + "\n" for i in range(30))
    )
    benchmark.main(
        f"{tmp_path / 'hf'} --data {tmp_path / 'data.jsonl'} --json {tmp_path / 'out.json'} --rows 3 --new 6 --repeats 1".split()
    )
    found = json.loads((tmp_path / "out.json").read_text())
    for name in ("tokenise", "train_step", "decode"):
        assert found[name]["ratio"] == pytest.approx(found[name]["seconds_theirs"] / found[name]["seconds"])
    assert (
        found["rows"] == 3
        and found["decode"]["new_tokens"] == 6
        and found["threads"] == torch.get_num_threads()
    )
    assert "ratio" in capsys.readouterr().out


def test_without_transformers_the_benchmark_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers"):
        benchmark.benchmark(str(tmp_path), [], torch.device("cpu"), torch.float32, 1, 1, 4)


def test_the_memory_of_training_is_what_the_formula_says():
    of = lambda method="cot_sft", length=64, **more: benchmark.training_memory(
        SMALL, Config(**{"method": method, "batch_size": 4096, "dtype": "float32", **more}), length, 16
    )
    size = 1000 * 64 + 4 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 128) + 64
    full = of()
    assert full["weights"] == round(4 * size / 1e9, 2) and full["total"] == pytest.approx(
        sum(list(full.values())[:3]), abs=0.02
    )
    assert of(length=128)["activations"] > 1.5 * full["activations"]
    assert of(dtype="bfloat16")["activations"] < 0.85 * full["activations"]
    assert of(grad_checkpoint=True)["activations"] < 0.6 * full["activations"]
    assert of(accumulate=4)["activations"] == pytest.approx(full["activations"] / 4, rel=0.02)
    assert of("latent_sft")["activations"] > 1.5 * full["activations"]


def test_what_is_counted_without_computing_is_what_a_real_pass_keeps():
    kept = {}

    def keep(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    model = benchmark.Transformer(SMALL)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        logits = model.logits(model(torch.zeros(8, 32, dtype=torch.long))[:, :16])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.zeros(128, dtype=torch.long))
    real = sum(
        s.nbytes() for pointer, s in kept.items() if pointer not in {p.data_ptr() for p in model.parameters()}
    )
    assert loss.isfinite() and benchmark.saved_bytes(SMALL, 8, 32, 16, torch.float32) == pytest.approx(
        real, rel=0.25
    )


def test_a_run_on_an_unknown_preset_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="llama-3.2-1b"):
        benchmark.main([str(tmp_path), "--memory", "llama-3.2"])
