"""From settings to a run folder: which model, data and device, and what a run may be continued with."""

import json

import pytest
import torch
from conftest import new_method, tiny_model, train

from minilatent import checkpoint, machine, run, tasks
from minilatent.batch import encode
from minilatent.config import UserError
from minilatent.model import ModelConfig
from minilatent.run import resolve
from minilatent.tasks.answers import Example

pytestmark = pytest.mark.usefixtures("one_tokenizer")


def example(words: int = 3, steps: int = 2) -> Example:
    return Example("word " * words, [f"<<{i}+1={i + 1}>>" for i in range(steps)], str(steps))


def sums(path, n: int, words=lambda i: 0):
    """A file of n sums, question i with so many words more."""
    lines = []
    for i in range(n):
        question = f"What is {i} + 1?" + " more" * words(i)
        lines.append(json.dumps({"question": question, "answer": f"<<{i}+1={i + 1}>> #### {i + 1}"}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return lines


# --- what fits ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0, 2, 4])
def test_a_row_that_is_kept_fits_with_the_latents_between_its_segments(tok, ratio):
    """Stage 1's encoder reads the chain and a latent behind every segment."""
    (row,), _ = encode([example()], tok, 512)
    read = [len(row.prompt + row.chain + row.tail)]
    if ratio:
        method = new_method("latent_sft", tok, tiny_model(tok.vocab_size), ratio=ratio)
        layouts = (method.encoder_layout, method.decoder_layout, method.student_layout)
        read = [len(layout(row).ids) for layout in layouts]
    longest = next(n for n in range(512) if encode([example()], tok, n, ratio)[0])
    assert max(read) <= longest <= max(read) + len(row.answer)


def test_examples_that_are_too_long_or_have_no_chain_are_skipped_and_counted(tok, tmp_path):
    path = tmp_path / "own.jsonl"

    def load(method="latent_sft", **more):
        return run.load_data(resolve({"method": method, "data": str(path), **more}), tok, 160)

    sums(path, 40)
    train, val = (tasks.load(path, split) for split in ("train", "val"))
    at = {e.question: n for n, e in enumerate(tasks.load(path, "test"))}
    long = [at[e.question] for e in (*train[:3], val[0])]
    lines = sums(path, 40, words=lambda i: 200 * (i in long))
    rows, examples, left_out = load()
    assert len(rows) + len(examples) < 40
    lines.append('{"question": "And without a chain?", "answer": "7"}\n')
    path.write_text("".join(lines), encoding="utf-8")
    assert len(load("no_cot")[0]) == len(load()[0]) + 1  # it needs no chain
    assert "1 without a chain" in load()[2] and "longer than 160 tokens" in load()[2]
    assert load(data="mini", train_size=8)[2] == ""
    sums(path, 40, words=lambda i: 200)
    with pytest.raises(UserError, match="no example has a chain and fits in 160 tokens"):
        load()


def test_validation_questions_are_not_trained_on(tok, tmp_path):
    path = tmp_path / "own.jsonl"
    sums(path, 20)
    rows, val, _ = run.load_data(resolve({"method": "cot_sft", "data": str(path)}), tok, 160)
    assert len(rows) + len(val) == 20 and not {row.text for row in rows} & {e.question for e in val}


def test_latent_sft_leaves_room_for_the_latents_that_its_encoder_reads(tok, tmp_path):
    path = tmp_path / "own.jsonl"
    sums(path, 20)
    (row,), _ = encode(tasks.load(path, "test", limit=1), tok, 160)
    n = len(row.prompt + row.chain + row.tail)  # of every row, with 6 chain tokens
    for method, longest in (("cot_sft", n), ("latent_sft", n + 3)):
        config = resolve({"method": method, "data": str(path), "max_answer": 1})
        assert len(run.load_data(config, tok, longest + 1)[0]) == 18
        with pytest.raises(UserError, match="no example has a chain and fits"):
            run.load_data(config, tok, longest - 1)


def test_a_test_question_that_is_too_long_does_not_undo_a_finished_run(tmp_path, monkeypatch, capsys):
    real = tasks.load

    def load(data, split, **options):
        return real(data, split, **options) + [example(600)] * (split == "test")

    monkeypatch.setattr(tasks, "load", load)
    train(tmp_path / "run", "cot_sft", "--steps", 1)
    assert "n 8)" in capsys.readouterr().out and (tmp_path / "run" / "model.safetensors").exists()


# --- what a run goes on with --------------------------------------------------------------------------------


def test_a_run_is_continued_with_its_own_settings_and_data_only(tmp_path):
    """Its soft labels, for one, belong to the rows that it had."""
    data, out = tmp_path / "own.jsonl", tmp_path / "run"
    lines = sums(data, 30)
    train(out, "cot_sft", "--data", data, "--steps", 1)
    (out / "model.safetensors").unlink()
    go_on = {"method": "cot_sft", "out": str(out), "resume": True}
    with pytest.raises(UserError, match="--steps 1; --resume cannot change it"):
        run.train({**go_on, "steps": 2})
    data.write_text("".join(lines[::-1]), encoding="utf-8")
    with pytest.raises(UserError, match="is not what it was when the run"):
        run.train(go_on)
    data.write_text("".join(lines), encoding="utf-8")
    whole = (out / "config.json").read_text(encoding="utf-8")
    strange = json.loads(whole)
    strange["config"]["warp"] = 9
    (out / "config.json").write_text(json.dumps(strange), encoding="utf-8")
    with pytest.raises(UserError, match="config.json has a setting that this version does not know: warp"):
        run.train(go_on)
    (out / "config.json").write_text(whole, encoding="utf-8")
    run.train(go_on)
    assert (out / "model.safetensors").exists()


def test_a_run_goes_on_with_the_device_and_threads_it_had_unless_others_are_given(tmp_path):
    """`auto` would continue a run that was started with --device cpu on a GPU, where its bits are others."""
    config = resolve({"method": "cot_sft", "device": "cpu", "threads": 1})
    checkpoint.write_config(tmp_path, config, ModelConfig(vocab_size=300))
    for more in ({}, {"device": "cuda:1"}, {"threads": 2}):
        given = {"method": "cot_sft", "out": str(tmp_path), "resume": True, **more}
        found = run.resume_config(resolve(given), given, tmp_path)
        expected = {"device": "cpu", "threads": 1, **more}
        assert {"device": found.device, "threads": found.threads} == expected


def test_a_run_folder_keeps_the_settings_that_its_method_has(tmp_path, uninterrupted):
    written = json.loads((uninterrupted / "config.json").read_text(encoding="utf-8"))
    assert written["minilatent"] == 2 and written["method"] == "latent_sft"
    assert written["config"]["stage1_steps"] == "3,3,3" and "num_latents" not in written["config"]
    method = run.load_run(uninterrupted, torch.device("cpu"))
    assert vars(method.config) == written["config"]


# --- the model that --init names ----------------------------------------------------------------------------


@pytest.mark.parametrize("width, n_head", [(132, 4), (100, 8)])
def test_heads_that_rotary_positions_cannot_turn_are_refused(width, n_head):
    config = resolve({"method": "cot_sft", "init": "none", "width": width, "n_head": n_head})
    with pytest.raises(UserError, match=f"--width {width}"):
        run.initial_model(config)


def test_a_folder_whose_config_is_no_configuration(tmp_path):
    (tmp_path / "config.json").write_text("7", encoding="utf-8")
    with pytest.raises(UserError, match="config.json"):
        run.initial_model(resolve({"method": "cot_sft", "init": str(tmp_path)}))


def test_other_data_than_mini_needs_a_model_that_can_read_them(tmp_path):
    with pytest.raises(UserError, match="--data gsm8k needs --init"):
        run.initial_model(resolve({"method": "cot_sft", "data": "gsm8k"}))


# --- the machine --------------------------------------------------------------------------------------------


def test_dtype_auto_is_bfloat16_where_the_processor_multiplies_it(monkeypatch):
    cpu = torch.device("cpu")
    for can, dtype in (
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        assert machine.pick_dtype("auto", cpu) == dtype
        assert machine.pick_dtype("float16", cpu) == "float16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert machine.pick_dtype("auto", torch.device("mps")) == "float32"


def test_a_device_that_is_not_there_is_named_with_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.pick_device("auto").type == "cpu"
    for name in ("gpu", "mps:7", "cuda:99"):
        with pytest.raises(UserError, match=f"--device {name}: this machine has none; try --device cpu"):
            machine.pick_device(name)
