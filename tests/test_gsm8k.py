"""The GSM8K runs, rehearsed: rows that are missing are made, others skipped, and the table reads them."""

import json
import sys

import pytest
import test_pretrained
from conftest import ROOT
from pytest import approx
from test_redraw import RECORDS

sys.path.insert(0, str(ROOT))
from minilatent.config import UserError  # noqa: E402
from results import gpu_speed, gsm8k, table  # noqa: E402

LLAMA = test_pretrained.LLAMA | {"max_position_embeddings": 1024, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The command line of a rehearsal: a model, training questions and test sets, all very small."""
    root = tmp_path_factory.mktemp("gsm8k")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(test_pretrained.FAMILIES, "tiny", ("Llama", LLAMA))
        test_pretrained.make(root / "model", "tiny")
    lines = [json.dumps({"question": q, "answer": f"{chain}\n#### {a}"}) for q, chain, a in RECORDS]
    (root / "train.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name in gsm8k.SETS:
        tests = [json.dumps({"question": f"{i} pens and {i} more?", "answer": str(2 * i)}) for i in range(4)]
        (root / f"{name}_test.jsonl").write_text("\n".join(tests), encoding="utf-8")
    data = ["--data", f"gsm8k_redrawn={root / 'train.jsonl'}", "--tests", str(root)]
    return [str(root / "model"), *data, "--tiny", "--out", str(root / "out")], root / "out"


def test_a_rehearsal_makes_rows_once_and_each_from_its_start(given, capsys):
    words, out = given
    for name in ("cot_sft-seed0", "latent_sft_2-seed0", "colar-seed0"):
        gsm8k.main([*words, "--only", name])
        assert f"{name}: trained in" in capsys.readouterr().out
    cot, latent, colar = (
        json.loads((out / f"results/{name}-seed0.json").read_text(encoding="utf-8"))
        for name in ("cot_sft", "latent_sft_2", "colar")
    )
    assert [r["data"] for r in cot] == [r["data"] for r in latent] == list(gsm8k.SETS)
    assert [(r["data"], r["speed"]) for r in colar] == [(name, c) for name in gsm8k.SETS for c in (2, 5)]
    assert {r["training_data"] for r in cot} == {"gsm8k_redrawn"} and {r["size"] for r in cot} == {120_000}
    assert latent[0]["interventions"]["n"] == 3 and "swap" in latent[0]["interventions"]
    assert (out / "results/latent_sft_2-seed0.jsonl").exists()
    config = json.loads((out / "latent_sft_2-seed0/config.json").read_text(encoding="utf-8"))["config"]
    assert config["init"].endswith("cot_sft-seed0") and config["lora_rank"] == 2
    gsm8k.main([*words, "--only", "cot_sft-seed0"])
    assert capsys.readouterr().out == ""  # it is there


def test_on_a_cpu_each_example_is_seen_once_and_only_gsm8k_is_judged(given):
    words, out = given
    for row in gsm8k.rows(cpu=True):
        trained = dict(zip((options := row.options().split())[::2], options[1::2]))
        phases = [int(n) for n in trained.get("--stage1_steps", "0").split(",")]
        seen = (int(trained["--steps"]) + 2 * sum(phases)) * int(trained["--batch_size"])
        assert row.size - 32 < seen <= row.size  # stage 1 trains two models
    gsm8k.main([*words, "--cpu", "--only", "cot_sft_7000-seed0"])
    (found,) = json.loads((out / "results/cot_sft_7000-seed0.json").read_text(encoding="utf-8"))
    assert found["data"] == "gsm8k" and found["size"] == 7000 and "swap" in found["interventions"]


def test_the_plan_names_what_is_missing_and_its_time(given, capsys):
    words, out = given
    (out / "results").mkdir(parents=True, exist_ok=True)
    there = len(list((out / "results").glob("*.json")))
    gsm8k.main([*words, "--plan"])
    *shown, total = capsys.readouterr().out.splitlines()
    assert len(shown) == len(gsm8k.rows()) - there and f"{len(shown)} of {len(gsm8k.rows())} rows" in total
    runs = [row.run for row in gsm8k.rows()]
    assert len(set(runs)) == len(runs) == 7 + 9 + 6  # the table, the curve, two more seeds of three
    for at, row in enumerate(gsm8k.rows()):
        assert not row.start or row.start in runs[:at]


def test_no_row_is_begun_that_would_not_fit_into_the_time(given, capsys, monkeypatch):
    words, done = [word for word in given[0] if word != "--tiny"], []
    monkeypatch.setattr(gsm8k, "HERE", given[1] / "elsewhere")
    monkeypatch.setattr(gsm8k, "do", lambda row, args: done.append(row.run))
    gsm8k.main([*words, "--minutes", "2.4", "--rate", "350"])
    assert "cot_sft-seed0" in done and "coconut-seed0" not in done
    assert "coconut-seed0: no time left" in capsys.readouterr().err
    with pytest.raises(UserError, match="no row 'nothing'"):
        gsm8k.main([*words, "--only", "nothing"])


def test_the_table_has_a_row_for_each_kind_and_speed_with_the_mean_of_its_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "HERE", tmp_path)
    assert table.gsm8k_redrawn() == table.gsm8k_curve() == ""  # nothing yet
    (tmp_path / "gsm8k").mkdir()

    def write(run, accuracy, **more):
        results = [{"data": d, "accuracy": accuracy, "mean_len": 9.0, "n": 10, **more} for d in gsm8k.SETS]
        (tmp_path / f"gsm8k/{run}.json").write_text(json.dumps(results), encoding="utf-8")
        return results

    write("cot_sft-seed0", 0.2, size=120_000), write("cot_sft-seed1", 0.3, size=120_000)
    write("cot_sft_7000-seed0", 0.1, size=7000)
    fast = write("colar-seed0", 0.05, speed=5, size=120_000)
    slow = [{**r, "speed": 2, "accuracy": 0.04} for r in fast]
    (tmp_path / "gsm8k/colar-seed0.json").write_text(json.dumps(slow + fast), encoding="utf-8")
    shown = table.gsm8k_redrawn().splitlines()
    assert shown[2].startswith("| CoT-SFT | 2 | 25.0 (20.0 to 30.0) | 25.0 |")
    assert [line[2:10] for line in shown[3:]] == ["CoLaR-2 ", "CoLaR-5 "] and "| 4.0 |" in shown[3]
    assert "| CoT-SFT | 10.0 | – | 25.0 | – |" in table.gsm8k_curve()
    assert table.gsm8k_curve_cpu() == ""
    (tmp_path / "gsm8k").rename(tmp_path / "gsm8k_cpu")
    assert "| CoT-SFT | 10.0 (9.0) | – |" in table.gsm8k_curve_cpu()


def test_the_speed_of_every_stage_and_of_decoding_is_measured(given, tmp_path, capsys):
    words, out = given
    data, file = words[2].partition("=")[2], tmp_path / "speed.json"
    options = "--device cpu --dtype float32 --backend eager --repeats 1 --rows 2 --peak 0.1".split()
    gpu_speed.main([words[0], "--data", data, "--json", str(file), *options])
    found = json.loads(file.read_text(encoding="utf-8"))
    stages = {name: found[name] for name in found if name == "cot" or name.startswith("stage")}
    assert list(stages) == ["cot", "stage1-encoder", "stage1-decoder", "stage1-both", "stage2"]
    for speed in stages.values():
        for way in ("eager", "compiled"):
            assert speed[way]["mfu"] == approx(speed["tflop"] / speed[way]["seconds"] / 0.1)
    assert found["stage1-both"]["tflop"] > found["cot"]["tflop"] > found["stage2"]["tflop"] > 0
    assert found["decode"]["ratio"] == approx(found["decode"]["transformers"] / found["decode"]["recorded"])
