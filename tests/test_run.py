"""What stands around a training: what fits, which base, which options."""

import json

import pytest
import torch
from conftest import tiny_model

from minilatent import checkpoint, run
from minilatent.batch import encode
from minilatent.config import Config, UserError, resolve
from minilatent.methods import METHODS
from minilatent.model import ModelConfig
from minilatent.tasks.answers import Example
from minilatent.tools import rebuild_base


def example(words: int = 3, steps: int = 2) -> Example:
    return Example("word " * words, [f"<<{i}+1={i + 1}>>" for i in range(steps)], str(steps))


# --- what fits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0, 2, 4])
def test_a_row_that_is_kept_fits_with_the_latents_between_its_segments(tok, ratio):
    """Stage 1's encoder reads the chain and a latent behind every segment."""
    rows, _ = encode([example()], tok, 512)
    method = METHODS["latent_sft"](
        resolve({"method": "latent_sft", "ratio": ratio or 2}), tok, tiny_model(tok.vocab_size)
    )
    inputs = (
        [len(rows[0].explicit(tok)[0])]
        if not ratio
        else [
            len(layout(rows[0]).ids)
            for layout in (method.encoder_layout, method.decoder_layout, method.student_layout)
        ]
    )
    fitting = next(n for n in range(512) if encode([example()], tok, n, "skip", ratio)[0])
    assert max(inputs) <= fitting <= max(inputs) + len(rows[0].answer)


def test_the_examples_that_are_left_out_are_counted(tok, tmp_path):
    def load(n_long, **more):
        path = tmp_path / "val.jsonl"
        path.write_text(
            "".join(
                json.dumps(
                    {"question": "word " * (200 if i < n_long else 3) + str(i), "answer": "<<1+1=2>> #### 2"}
                )
                + "\n"
                for i in range(6)
            )
        )
        return run.load_data(
            resolve({"method": "latent_sft", "val_data": str(path), "train_size": 8, **more}), tok, 160
        )

    rows, val, left_out = load(2)
    assert len(val) == 4 and "2 of the validation examples" in left_out
    assert load(0)[2] == "" and len(load(0)[0]) == 8
    with pytest.raises(UserError, match="2 of 6 validation examples"):
        load(2, too_long="error")
    with pytest.raises(UserError, match="6 of 6 validation examples"):
        load(6)


def test_a_test_question_that_is_too_long_does_not_undo_a_finished_run(tok, tmp_path, monkeypatch, capsys):
    real = run.data.load
    monkeypatch.setattr(
        run.data, "load", lambda data, split, **k: real(data, split, **k) + [example(600)] * (split == "test")
    )
    run.train(
        {
            "method": "cot_sft",
            "preset": "smoke",
            "out": str(tmp_path / "run"),
            "steps": 1,
            "test_size": 4,
            "threads": 1,
        }
    )
    assert "n 4)" in capsys.readouterr().out and (tmp_path / "run" / "model.safetensors").exists()


# --- wrong calls -----------------------------------------------------------------------------------------------------


def test_a_setting_of_another_version_is_named_on_resume(tmp_path):
    run = tmp_path / "run"
    run.train(
        {"method": "cot_sft", "preset": "smoke", "out": str(run), "steps": 1, "test_size": 4, "threads": 1}
    )
    (run / "model.safetensors").unlink()
    with pytest.raises(UserError, match="--preset smoke; --resume cannot change it"):
        run.train({"method": "cot_sft", "preset": "mini", "out": str(run), "resume": True})
    written = json.loads((run / "config.json").read_text())
    written["config"]["warp"] = 9
    (run / "config.json").write_text(json.dumps(written))
    with pytest.raises(UserError, match="config.json has a setting that this version does not know: warp"):
        run.train({"method": "cot_sft", "out": str(run), "resume": True})


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    """Its soft labels, for one, belong to the rows that it had."""
    lines = [
        json.dumps({"question": f"What is {i} + 1?", "answer": f"<<{i}+1={i + 1}>> #### {i + 1}"}) + "\n"
        for i in range(30)
    ]
    file, run = tmp_path / "own.jsonl", tmp_path / "run"
    file.write_text("".join(lines))
    given = {
        "method": "cot_sft",
        "preset": "smoke",
        "init": str(run.BASE),
        "data": str(file),
        "out": str(run),
        "steps": 1,
        "val_size": 4,
        "threads": 1,
    }
    run.train(given)
    (run / "model.safetensors").unlink()
    file.write_text("".join(lines[::-1]))
    with pytest.raises(UserError, match="is not what it was when the run"):
        run.train({"method": "cot_sft", "out": str(run), "resume": True})
    file.write_text("".join(lines))
    run.train({"method": "cot_sft", "out": str(run), "resume": True})
    assert (run / "model.safetensors").exists()


@pytest.mark.parametrize(
    "more, said", [({"width": 132, "n_head": 4}, "--width 132"), ({"width": 100, "n_head": 8}, "--width 100")]
)
def test_heads_that_rotary_positions_cannot_turn_are_refused(more, said):
    with pytest.raises(UserError, match=said):
        run.initial_model(resolve({"method": "cot_sft", "init": "none", **more}))


def test_a_run_goes_on_with_the_device_and_threads_it_had_unless_told_otherwise(tmp_path):
    """`auto` would take a run that was started with --device cpu on to a GPU, where its bits are others."""
    checkpoint.write_config(
        tmp_path, Config(method="cot_sft", device="cpu", threads=1), ModelConfig(vocab_size=300)
    )
    for more, device, threads in (
        ({}, "cpu", 1),
        ({"device": "cuda:1"}, "cuda:1", 1),
        ({"threads": 2}, "cpu", 2),
    ):
        given = {"method": "cot_sft", "out": str(tmp_path), "resume": True, **more}
        found, _ = run.resume_config(resolve(given), given)
        assert (found.device, found.threads) == (device, threads)


def test_a_cuda_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert run.pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UserError, match="cuda:7.*1 CUDA device"):
        run.pick_device("cuda:7")


def test_a_folder_whose_config_is_no_configuration(tmp_path):
    (tmp_path / "config.json").write_text("7")
    with pytest.raises(UserError, match="config.json"):
        run.initial_model(resolve({"method": "cot_sft", "init": str(tmp_path)}))


# --- mini-base anew --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accuracy, code", [(0.9, 0), (0.4, 1)])
def test_a_rebuilt_base_is_installed_only_if_it_is_as_good(tmp_path, monkeypatch, capsys, accuracy, code):
    base, out, trained = tmp_path / "base", tmp_path / "out", []
    for folder, text in ((base, "old"), (out, "new")):
        folder.mkdir()
        for name in rebuild_base.FILES:
            (folder / name).write_text(text)
    monkeypatch.setattr(rebuild_base, "BASE", base)
    monkeypatch.setattr(rebuild_base, "train", trained.append)
    monkeypatch.setattr(rebuild_base, "load_run", lambda folder, device: str(folder))
    monkeypatch.setattr(
        rebuild_base,
        "solve_all",
        lambda method, test: {"accuracy": accuracy if method == str(out) else 0.8, "ci95": [0.7, 0.9]},
    )
    call = lambda: rebuild_base.main(["--out", str(out), "--install"])
    if code:
        with pytest.raises(SystemExit) as caught:
            call()
        assert caught.value.code == 1 and "not as good" in capsys.readouterr().out
    else:
        call()
    assert trained == [{"method": "cot_sft", "preset": "base", "out": str(out), "resume": False}]
    assert {p.read_text() for p in base.iterdir()} == {"old" if code else "new"}
