"""The benchmark measures both sides alike, and the machine before them."""

import json
import sys
import time

import pytest
import torch
from pytest import approx
from test_pretrained import make

from minilatent.config import UserError
from minilatent.tools import benchmark


@pytest.fixture(autouse=True)
def quick_rate(monkeypatch):
    """bfloat16 products take seconds on a CPU that emulates them."""
    monkeypatch.setattr(benchmark, "matrix_rate", lambda dtype, device: 12.5)


def test_both_are_called_in_turn_and_a_ratio_is_theirs_over_ours(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def side(name, seconds):
        def call():
            order.append(name)
            clock[0] += seconds * (10 if len(order) <= 2 else 1)  # the first of each is slow and not counted

        return call

    found = benchmark.in_turn(side("ours", 2.0), side("theirs", 3.0), 3)
    assert found == {"seconds": 2.0, "seconds_theirs": 3.0, "ratio": 1.5}
    assert "".join(name[0] for name in order) == "otototot"


def test_both_comparisons_are_made_and_written_behind_the_machine(tmp_path, capsys):
    folder, data, out = tmp_path / "hf", tmp_path / "data.jsonl", tmp_path / "out.json"
    make(folder, "llama untied")
    lines = [json.dumps({"question": f"{i}+1?", "answer": i}) for i in range(30)]
    data.write_text("\n".join(lines), encoding="utf-8")
    benchmark.main(f"{folder} --data {data} --json {out} --rows 3 --repeats 1".split())
    found = json.loads(out.read_text(encoding="utf-8"))
    for name in ("train_step", "decode"):
        assert found[name]["ratio"] == approx(found[name]["seconds_theirs"] / found[name]["seconds"])
    assert found["rows"] == 3 and found["decode"]["new_tokens"] == 32
    assert found["gflops_float32"] > 0 and found["gflops_bfloat16"] == 12.5
    assert found["threads"] == torch.get_num_threads()
    shown = capsys.readouterr().out
    assert shown.index("gflops_bfloat16") < shown.index("ratio")


def test_without_a_folder_only_the_machine_is_measured(tmp_path, capsys):
    benchmark.main(["--json", str(tmp_path / "out.json")])
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert found["gflops_bfloat16"] == 12.5 and "train_step" not in found
    assert '"gflops_bfloat16": 12.5' in capsys.readouterr().out


def test_without_transformers_the_benchmark_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="pip install transformers"):
        benchmark.main([str(tmp_path)])
