"""The command line as scripts and graders use it: keys, presets, exit codes, and one clear line for bad input."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from minilatent import config, run
from minilatent.config import Config, UserError, parse_args, resolve

TINY = (
    "--init none --n_layer 1 --width 32 --n_head 2 --hidden 32 --train_size 64 --val_size 8 --steps 2 --stage1_steps 1,1,1 "
    "--batch_size 8 --max_chain 8 --test_size 8 --device cpu"
).split()


@pytest.fixture
def call(monkeypatch, capsys, tok):
    """Run train.py's main in this process: exit code, stdout, stderr."""
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)

    def run(*argv) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, argv)])
        with pytest.raises(SystemExit) as caught:
            config.run_script(lambda given: run.train(parse_args(given)))
        return caught.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def refused(call):
    """The one line that a wrong call gets."""

    def run(*argv) -> str:
        code, _, err = call(*argv)
        assert code == 2 and err.endswith("\n") and err.count("\n") == 1 and "Traceback" not in err, err
        return err

    return run


# --- keys ------------------------------------------------------------------------------------------------------


def test_both_ways_to_give_a_value_and_both_ways_to_set_a_flag():
    given = parse_args(["--method", "latent_sft", "--ratio=4", "--lr", "3e-4", "--gumbel", "--no-ltim"])
    assert given == {"method": "latent_sft", "ratio": 4, "lr": 3e-4, "gumbel": True, "ltim": False}
    assert parse_args(["--no-gumbel"]) == {
        "gumbel": False
    }  # the released code's `--flag False` parses as True


def test_every_field_has_its_key_and_its_help(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_args(["--help"])
    assert not caught.value.code
    text = " ".join(capsys.readouterr().out.split())
    for f in dataclasses.fields(Config):
        assert f"--{f.name}" in text and f.metadata["help"].split("=")[0][:25] in text, f.name
        if f.type in (bool, "bool"):
            assert f"--no-{f.name}" in text


def test_defaults_give_way_to_the_preset_to_its_lines_for_the_method_and_to_what_the_user_gave(monkeypatch):
    monkeypatch.setitem(config.PRESETS, "test", {"steps": 5, "lr": 0.5, "no_cot": {"steps": 7}})
    plain = resolve({"method": "cot_sft", "preset": "test"})
    assert (plain.steps, plain.lr, plain.k) == (5, 0.5, Config().k)
    assert resolve({"method": "no_cot", "preset": "test"}).steps == 7
    assert resolve({"method": "no_cot", "preset": "test", "steps": 9}).steps == 9


def test_every_preset_resolves_for_every_method():
    for preset in config.PRESETS:
        for method in config.METHODS:
            resolve({"method": method, "preset": preset})
    given = resolve({"method": "latent_sft", "preset": "llama-3.2-1b", "ratio": 4})
    assert (given.lora_rank, given.lora_alpha, given.steps, given.lr, given.ratio) == (
        64,
        128.0,
        105_000,
        3e-4,
        4,
    )
    assert resolve({"method": "cot_sft", "preset": "smollm2-135m"}).lora_rank == 0
    given = resolve({"method": "colar", "preset": "llama-3.2-1b"})
    assert (given.lr, given.batch_size, given.c_max, given.head_width, given.lora_rank) == (
        1e-4,
        256,
        5,
        0,
        128,
    )
    given = resolve({"method": "colar_rl", "preset": "llama-3.2-1b"})
    assert (given.lr, given.group, given.lora_rank, given.lora_dropout) == (1e-6, 8, 64, 0.0)
    for method in (
        "icot",
        "coconut",
    ):  # a hub's model has not learnt the chain: the curriculum begins with it
        assert (
            resolve({"method": method, "preset": "gpt2"}).first_stage == 0
            and resolve({"method": method}).first_stage == 1
        )
    codi = [resolve({"method": "codi", "preset": preset}) for preset in ("gpt2", "llama-3.2-1b")]
    assert [(c.lora_rank, c.lr, c.distill_weight) for c in codi] == [(128, 3e-3, 1.0), (128, 3e-4, 20.0)]
    assert {c.max_chain for c in codi} == {256}


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--metod", "cot_sft"], "--method"),
        (["--method=cot_sft", "--stpes=3"], "--steps"),
        (["--method", "latnt_sft"], "latent_sft"),
        (["--method", "cot_sft", "--preset", "smok"], "smoke"),
        (["--method", "cot_sft", "--no-ltin"], "--no-ltim"),
        ([], "--method is required"),
        (["--method", "cot_sft", "--steps", "many"], "many"),
        (["--method", "cot_sft", "--steps"], "--steps"),
        (["--method", "cot_sft", "--latent", "soft"], "superposition"),
        (["--method", "cot_sft", "stray"], "stray': see --help"),
        (["--method", "cot_sft", "--device", "mps"], "--device mps"),
        (["--method", "latent_sft", "--ratio", "0"], "--ratio 0"),
        (["--method", "cot_sft", "--lr", "-1"], "--lr -1"),
        (["--method", "cot_sft", "--lr", "nan"], "--lr nan"),
        (["--method", "latent_sft", "--stage1_steps", "3,3"], "--stage1_steps 3,3"),
        (
            ["--method", "latent_sft", "--labels", "uniform", "--latent", "hidden"],
            "--labels uniform is about mixtures",
        ),
        (["--method", "latent_sft", "--gumbel", "--latent", "hidden"], "--gumbel is about mixtures"),
        (["--method", "colar", "--speed", "fast"], "--speed fast"),
    ],
)
def test_a_wrong_call_gets_one_line_that_names_the_nearest(refused, argv, said):
    assert said in refused(*argv)


# --- bad input -------------------------------------------------------------------------------------------------


def test_dtype_auto_is_bfloat16_where_the_processor_multiplies_it(monkeypatch):
    cpu = torch.device("cpu")
    for can, dtype in (
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"avx512_bf16": False}, "float32"),
        ({}, "float32"),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda can=can: can)
        assert run.pick_dtype("auto", cpu) == dtype and run.pick_dtype("float16", cpu) == "float16"


def test_cuda_that_is_not_there(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    args = ["--method", "cot_sft", *TINY, "--out", tmp_path / "run"]
    assert "--device cpu" in refused(*args, "--device", "cuda")
    assert "no such device" in refused(*args, "--device", "gpu")
    assert not (tmp_path / "run").exists()  # nothing was begun


@pytest.mark.parametrize(
    "lines, said",
    [
        (None, "cannot read"),
        ([], "is empty"),
        (["{bad"], "line 1"),
        (['{"question": "a?", "answer": "<<1+1=2>> #### 2"}', '{"question": "b?"}'], "line 2"),
        (['{"question": "a?", "answer": "none"}'], "no answer"),
    ],
)
def test_a_bad_data_file_is_named_with_its_line(refused, tmp_path, lines, said):
    path = tmp_path / "data.jsonl"
    if lines is not None:
        path.write_text("".join(line + "\n" for line in lines))
    err = refused("--method", "cot_sft", *TINY, "--data", path, "--out", tmp_path / "run")
    assert said in err and str(path) in err
    assert not (tmp_path / "run").exists()


def questions(path, n=20, long=3):
    """n short questions, `long` of them far beyond any small context."""
    rows = [
        {
            "question": f"What is {i} and 1?" + " and more" * (300 if i < long else 0),
            "answer": f"<<{i}+1={i + 1}>> #### {i + 1}",
        }
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_questions_longer_than_the_context_are_skipped_and_counted_or_refused_by_option(
    call, refused, tmp_path
):
    path = questions(tmp_path / "data.jsonl")
    args = ["--method", "cot_sft", *TINY, "--data", path, "--steps", 1, "--max_tokens", 100]
    code, out, err = call(*args, "--out", tmp_path / "a")
    assert code == 0, err
    counted = [line for line in out.splitlines() if "longer than 100 tokens" in line]
    assert len(counted) == 1 and 1 <= int(counted[0].split("chain, ")[1].split()[0]) <= 3
    assert "more than 100" in refused(*args, "--too_long", "error", "--out", tmp_path / "b")
    only_long = questions(tmp_path / "long.jsonl", long=20)
    assert "fits in 100 tokens" in refused(
        "--method", "cot_sft", *TINY, "--data", only_long, "--max_tokens", 100
    )


def test_the_folder_of_another_method_is_not_touched(call, refused, tmp_path):
    out = tmp_path / "run"
    assert call("--method", "cot_sft", *TINY, "--steps", 1, "--out", out)[0] == 0
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert "cot_sft" in refused("--method", "no_cot", *TINY, "--out", out)
    assert "cot_sft" in refused("--method", "no_cot", *TINY, "--out", out, "--resume")
    assert "--lr" in refused(
        "--method", "cot_sft", *TINY, "--steps", 1, "--out", out, "--resume", "--lr", 0.5
    )
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    code, text, _ = call(
        "--method", "cot_sft", *TINY, "--steps", 1, "--out", out
    )  # of the same method: moved aside
    assert code == 0 and "run.1" in text
    moved = {p: p.read_bytes() for p in (tmp_path / "run.1").rglob("*") if p.is_file()}
    assert sorted(moved.values()) == sorted(before.values())
    code, text, _ = call("--method", "cot_sft", "--out", out, "--resume")
    assert code == 0 and "finished" in text


def test_a_chain_that_leaves_no_room_for_a_question_is_refused_before_anything_is_made(refused, tmp_path):
    said = refused("--method", "cot_sft", *TINY, "--max_chain", 600, "--out", tmp_path / "run")
    assert "--max_chain 600" in said and "no room" in said and not (tmp_path / "run").exists()


def test_an_earlier_run_that_cannot_be_moved_aside_stays(call, refused, tmp_path, monkeypatch):
    assert call("--method", "cot_sft", *TINY, "--out", tmp_path / "run")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    monkeypatch.setattr(
        type(tmp_path), "rename", lambda *_: (_ for _ in ()).throw(OSError(16, "Device or resource busy"))
    )
    said = refused("--method", "cot_sft", *TINY, "--out", tmp_path / "run")
    assert "cannot be moved aside: Device or resource busy; choose another --out" in said
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_after_a_run_on_a_file_the_next_command_asks_for_a_test_set(call, tmp_path):
    (tmp_path / "own.jsonl").write_text(
        "".join(
            json.dumps({"question": f"What is {i} + 1?", "answer": f"<<{i}+1={i + 1}>> #### {i + 1}"}) + "\n"
            for i in range(40)
        )
    )
    code, out, _ = call(
        "--method", "cot_sft", *TINY, "--data", tmp_path / "own.jsonl", "--out", tmp_path / "run"
    )
    assert code == 0 and "--data TEST_FILE    python sample.py" in out


def test_a_pipe_whose_reader_is_gone_a_full_disk_and_a_terminal_without_our_letters_are_no_tracebacks(
    tmp_path,
):
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop()); from minilatent.config import run_script\n"
        "run(lambda argv: [print('\u03b1 ' * 40) for _ in range(5000)])"
    )
    command = [sys.executable, "-c", program, str(ROOT)]
    for out, said in (
        (subprocess.PIPE, ""),
        (open("/dev/full", "w") if sys.platform == "linux" else None, "No space left"),
    ):
        if out is None:
            continue
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True)
        if process.stdout:
            process.stdout.close()
        err = process.stderr.read()
        assert (
            process.wait() == 2 and "Traceback" not in err and "Exception ignored" not in err and said in err
        )
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0 and done.stdout.startswith(b"? ?") and not done.stderr


def test_an_output_that_is_a_file_or_a_folder_of_something_else(refused, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert "file" in refused("--method", "cot_sft", *TINY, "--out", tmp_path / "file")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    assert "no run folder" in refused("--method", "cot_sft", *TINY, "--out", tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    assert "no run folder" in refused("--method", "cot_sft", "--resume", "--out", tmp_path / "nothing")


def test_the_script_itself_exits_with_2_and_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", "--method", "cotsft"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "cot_sft" in done.stderr


def test_nonsense_from_the_user_is_never_an_exception_of_another_kind():
    for given in (
        {"method": "x"},
        {"method": "cot_sft", "preset": "y"},
        {"method": "cot_sft", "dtype": "int8"},
    ):
        with pytest.raises(UserError):
            resolve(given)
