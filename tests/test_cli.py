"""The command line as scripts and graders use it: keys, presets, exit codes, one message for bad input."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, the_message, tiny

from minilatent import config, run
from minilatent.config import GROUPS, PRESETS, Config, UserError
from minilatent.methods import METHODS
from minilatent.run import parse_args, resolve

COMMON = {f.name for f in dataclasses.fields(Config)}
SHORT = [*tiny("cot_sft"), "--steps", "1"]


@pytest.fixture
def call(monkeypatch, capsys, one_tokenizer):
    """Run train.py's main in this process: exit code, stdout, stderr."""

    def main(*argv) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, argv)])
        with pytest.raises(SystemExit) as caught:
            config.run_script(lambda argv: run.train(parse_args(argv)))
        return caught.value.code or 0, *capsys.readouterr()

    return main


@pytest.fixture
def refused(call):
    """The one message that a wrong call gets."""

    def main(*argv) -> str:
        code, _, err = call(*argv)
        assert code == 2
        return the_message(err)

    return main


def own_settings(method: str) -> set[str]:
    return {f.name for f in dataclasses.fields(METHODS[method].Settings)} - COMMON


def files(folder) -> dict:
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- keys ---------------------------------------------------------------------------------------------------


def test_both_ways_to_give_a_value_and_both_ways_to_set_a_flag():
    given = parse_args(["--method", "latent_sft", "--ratio=4", "--lr", "3e-4", "--gumbel", "--no-ltim"])
    assert given == {"method": "latent_sft", "ratio": 4, "lr": 3e-4, "gumbel": True, "ltim": False}
    # The released code's `--flag False` parses as True.
    assert parse_args(["--method=latent_sft", "--no-gumbel"]) == {"method": "latent_sft", "gumbel": False}


def test_there_are_at_most_50_common_settings_and_each_stands_in_a_group():
    assert len(COMMON) <= 50
    assert set(GROUPS) <= COMMON and next(iter(GROUPS)) == dataclasses.fields(Config)[0].name


@pytest.mark.parametrize("method", METHODS)
def test_a_method_adds_its_own_settings_only_and_leaves_the_common_ones_as_they_are(method):
    cls = METHODS[method].Settings
    assert issubclass(cls, Config)
    if cls is not Config:
        assert cls.__module__ == METHODS[method].__module__  # it stands in the method's file
    for f in dataclasses.fields(Config):
        assert cls.__dataclass_fields__[f.name] is Config.__dataclass_fields__[f.name]
    for settings in METHODS[method].PRESETS.values():
        assert set(settings) <= COMMON | own_settings(method)
    assert set(METHODS[method].PRESETS) <= set(PRESETS)


def shown_help(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as caught:
        parse_args([*argv, "--help"])
    assert not caught.value.code
    return capsys.readouterr().out


def test_the_help_fits_on_two_screens_and_is_grouped(capsys):
    text = shown_help(capsys)
    lines = text.splitlines()
    assert len(lines) <= 100 and max(map(len, lines)) <= 100
    for title in ("data", "optimisation", "machine", "decoding"):
        assert f"{title}:" in lines
    words = " ".join(text.split())
    for f in dataclasses.fields(Config):
        assert f"--{f.name}" in words and f.metadata["help"] in words, f.name
        if isinstance(f.default, bool):
            assert f"--no-{f.name}" in words
    assert all(method in words for method in METHODS)
    assert not any(f"--{name}" in words.split() for m in METHODS for name in own_settings(m))


@pytest.mark.parametrize("method", METHODS)
def test_the_help_of_a_method_adds_its_group_with_a_line_for_each_option(capsys, method):
    common, lines = shown_help(capsys).splitlines(), shown_help(capsys, "--method", method).splitlines()
    assert max(map(len, lines)) <= 100
    own = own_settings(method)
    assert (f"{method}:" in lines) == bool(own)
    words = " ".join(" ".join(lines).split())
    for f in dataclasses.fields(METHODS[method].Settings):
        assert f"--{f.name}" in words and f.metadata["help"] in words, f.name
    assert len(lines) <= len(common) + 4 + 3 * len(own)


def test_defaults_give_way_to_the_preset_to_the_methods_part_and_to_what_the_user_gave(monkeypatch):
    monkeypatch.setitem(PRESETS, "test", {"steps": 5, "lr": 0.5})
    monkeypatch.setitem(METHODS["no_cot"].PRESETS, "test", {"steps": 7})
    plain = resolve({"method": "cot_sft", "preset": "test"})
    assert (plain.steps, plain.lr, plain.batch_size) == (5, 0.5, Config().batch_size)
    assert resolve({"method": "no_cot", "preset": "test"}).steps == 7
    assert resolve({"method": "no_cot", "preset": "test", "steps": 9}).steps == 9


def test_every_preset_resolves_for_every_method():
    for preset in set(PRESETS) - {"gpu", "lora"}:  # these two are parts of others
        for method in METHODS:
            resolve({"method": method, "preset": preset})


@pytest.mark.parametrize(
    "method, preset, expected",
    [
        ("latent_sft", "llama-3.2-1b", {"lora_rank": 64, "lora_alpha": 128.0, "steps": 105_000, "lr": 3e-4}),
        ("cot_sft", "smollm2-135m", {"lora_rank": 0}),
        (
            "colar",
            "llama-3.2-1b",
            {"lr": 1e-4, "batch_size": 256, "c_max": 5, "head_width": 0, "lora_rank": 128},
        ),
        ("colar_rl", "llama-3.2-1b", {"lr": 1e-6, "group": 8, "lora_rank": 64, "lora_dropout": 0.0}),
        # A hub's model has not learnt the chain: the curriculum begins with it.
        ("icot", "gpt2", {"first_stage": 0}),
        ("icot", "mini", {"first_stage": 1}),
        ("coconut", "gpt2", {"first_stage": 0}),
        ("coconut", "mini", {"first_stage": 1}),
        ("codi", "gpt2", {"lora_rank": 128, "lr": 3e-3, "distill_weight": 1.0, "max_chain": 256}),
        ("codi", "llama-3.2-1b", {"lora_rank": 128, "lr": 3e-4, "distill_weight": 20.0, "max_chain": 256}),
    ],
)
def test_presets_of_pretrained_models_are_the_papers_settings(method, preset, expected):
    config = resolve({"method": method, "preset": preset})
    assert {name: getattr(config, name) for name in expected} == expected


WRONG = {
    "--metod cot_sft": "--method",
    "--method=cot_sft --stpes=3": "--steps",
    "--method latnt_sft": "latent_sft",
    "--method cot_sft --preset smok": "smoke",
    "--method latent_sft --no-ltin": "--no-ltim",
    "": "--method is required",
    "--method cot_sft --steps many": "many",
    "--method cot_sft --steps": "--steps",
    "--method latent_sft --latent soft": "superposition",
    "--method cot_sft stray": "stray': see --help",
    "--method no_cot --pull 5": "--pull belongs to latent_sft",
    "--method cot_sft --no-ltim": "--no-ltim belongs to latent_sft",
    "--method cot_sft --group 3": "--group belongs to latent_rl and colar_rl",
    "--method latent_sft --ratio 0": "--ratio 0",
    "--method cot_sft --lr -1": "--lr -1",
    "--method cot_sft --lr nan": "--lr nan",
    "--method latent_sft --stage1_steps 3,3": "--stage1_steps 3,3",
    "--method latent_sft --labels uniform --latent hidden": "--labels uniform is about mixtures",
    "--method latent_sft --gumbel --latent hidden": "--gumbel is about mixtures",
    "--method colar --speed fast": "--speed fast",
    "--method colar --speed ²": "--speed ²",
    "--method cot_sft --threads=1_000": "invalid int value: '1_000'",
    "--method cot_sft --threads 1000000": "--threads 1000000 is out of range: 0 to 1024",
    "--method cot_sft --beta2 1": "--beta2 1.0 is out of range: 0 to 0.9999",
    "--method cot_sft --lora_rank 2 --lora_dropout 1.5": "--lora_dropout 1.5 is out of range",
    "--method cot_sft --warmup 2": "--warmup 2.0 is out of range: 0 to 1.0",
    "--method colar --latent_loss mse --entropy_weight 0.1": "--entropy_weight belongs to --latent_loss",
    "--method cot_sft --lr 1_0": "invalid float value",
    "--method cot_sft --lr 1e999": "--lr inf",
}


@pytest.mark.parametrize("argv, said", WRONG.items())
def test_a_wrong_call_gets_one_message_that_names_what_is_right(refused, argv, said):
    assert said in refused(*argv.split())


def test_a_new_line_in_an_argument_makes_no_second_line(refused):
    assert "str ay" in refused("--method", "cot_sft", "str\nay")
    assert "unknown method 'a b" in refused("--method", "a\r\nb")


def test_more_problems_than_the_grammar_can_give_in_a_day_are_refused_at_once(refused, tmp_path):
    said = refused(*SHORT, "--train_size", 10**12, "--out", tmp_path / "run")
    assert "mini has at most 1000000 problems" in said and not (tmp_path / "run").exists()


def test_nonsense_from_the_user_is_never_an_exception_of_another_kind():
    for given in (
        {"method": "x"},
        {"method": "cot_sft", "preset": "y"},
        {"method": "cot_sft", "dtype": "int8"},
    ):
        with pytest.raises(UserError):
            resolve(given)


# --- bad input ----------------------------------------------------------------------------------------------


def test_nothing_is_begun_on_a_device_that_is_not_there(refused, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--device cpu" in refused(*SHORT, "--out", tmp_path / "run", "--device", "cuda")
    assert not (tmp_path / "run").exists()


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
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    err = refused(*SHORT, "--data", path, "--out", tmp_path / "run")
    assert said in err and str(path) in err
    assert not (tmp_path / "run").exists()


def test_a_run_on_a_file_counts_what_it_skips_and_the_next_command_asks_for_a_test_set(call, tmp_path):
    path = tmp_path / "own.jsonl"
    rows = [
        {"question": f"What is {i} + 1?" + " more" * (200 if i < 3 else 0), "answer": i} for i in range(40)
    ]
    path.write_text("".join(json.dumps({**r, "steps": ["<<1+1=2>>"]}) + "\n" for r in rows), encoding="utf-8")
    code, out, err = call(*SHORT, "--data", path, "--max_tokens", 100, "--out", tmp_path / "run")
    assert code == 0, err
    counted = [line for line in out.splitlines() if "longer than 100 tokens" in line]
    assert len(counted) == 1 and 1 <= int(counted[0].split("chain, ")[1].split()[0]) <= 3
    assert f"next: python eval.py --ckpt {tmp_path / 'run'} --data TEST_FILE\n      python sample.py" in out


def test_a_chain_that_leaves_no_room_for_a_question_is_refused_before_anything_is_made(refused, tmp_path):
    said = refused(*SHORT, "--max_chain", 600, "--out", tmp_path / "run")
    assert "--max_chain 600" in said and "no room" in said and not (tmp_path / "run").exists()


# --- the folder in --out ------------------------------------------------------------------------------------


def test_an_earlier_run_is_not_touched_or_moved_aside_whole(call, refused, tmp_path, monkeypatch):
    out = tmp_path / "run"
    assert call(*SHORT, "--out", out)[0] == 0
    before = files(out)
    assert "cot_sft" in refused(*tiny("no_cot"), "--out", out)
    assert "cot_sft" in refused(*tiny("no_cot"), "--out", out, "--resume")
    assert "--lr" in refused(*SHORT, "--out", out, "--resume", "--lr", 0.5)
    with monkeypatch.context() as patch:

        def busy(*_):
            raise OSError(16, "Device or resource busy")

        patch.setattr(type(out), "rename", busy)
        said = refused(*SHORT, "--out", out)
    assert "Device or resource busy; choose another" in said
    assert files(out) == before
    code, text, _ = call(*SHORT, "--out", out)  # of the same method: moved aside
    assert code == 0 and "run.1" in text and files(tmp_path / "run.1") == before
    code, text, _ = call("--method", "cot_sft", "--out", out, "--resume")
    assert code == 0 and "finished" in text


def test_a_command_that_fails_has_not_moved_an_earlier_run(refused, tmp_path, uninterrupted):
    """latent_rl finds out only from its --init that it cannot start."""
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    settings = json.loads((out / "config.json").read_text(encoding="utf-8"))
    settings["method"] = settings["config"]["method"] = "latent_rl"
    (out / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    before = files(out)
    rl = [*tiny("latent_rl"), "--out", out]
    assert "starts from a Latent-SFT run" in refused(*rl)
    assert "--lora_dropout 0" in refused(
        *rl, "--lora_rank", 2, "--lora_dropout", 0.1, "--init", uninterrupted
    )
    assert files(out) == before and [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("method", ["latent_rl", "colar_rl"])
def test_a_group_of_one_has_no_advantage_and_is_refused(refused, method):
    assert "--group 1 is out of range: 2 or more" in refused(*tiny(method), "--group", 1)


def test_smoke_does_not_warn_of_its_own_settings(call, tmp_path):
    argv = ["--method", "cot_sft", "--preset", "smoke", "--max_steps", 1, "--test_size", 1, "--init", "none"]
    code, out, _ = call(*argv, "--max_chain", 4, "--max_answer", 2, "--out", tmp_path / "run")
    assert code == 0 and "longer than" not in out


def test_an_output_that_is_a_file_or_a_folder_of_something_else(refused, tmp_path):
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    assert "file" in refused(*SHORT, "--out", tmp_path / "file")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work", encoding="utf-8")
    assert "no run folder" in refused(*SHORT, "--out", tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter1.tex").read_text(encoding="utf-8") == "years of work"
    assert "no run folder" in refused("--method", "cot_sft", "--resume", "--out", tmp_path / "nothing")


# --- the script itself --------------------------------------------------------------------------------------


def test_a_broken_pipe_a_full_disk_and_a_terminal_without_our_letters_are_no_tracebacks(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop()); from minilatent.config import run_script\n"
        "run_script(lambda argv: [print('\u03b1 ' * 40) for _ in range(5000)])"
    )
    command = [sys.executable, "-c", program, str(ROOT)]
    targets = [(subprocess.PIPE, "")]
    if sys.platform == "linux":
        targets.append((open("/dev/full", "w", encoding="utf-8"), "No space left"))
    for out, said in targets:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        if process.stdout:
            process.stdout.close()
        err = process.stderr.read()
        assert process.wait() == 2 and said in err
        assert "Traceback" not in err and "Exception ignored" not in err
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0 and done.stdout.startswith(b"? ?") and not done.stderr


def test_the_script_itself_exits_with_2_and_one_message(tmp_path):
    command = [sys.executable, ROOT / "train.py", "--method", "no_cot", "--pull", "5"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, encoding="utf-8")
    assert done.returncode == 2 and done.stdout == ""
    assert "--pull belongs to latent_sft" in the_message(done.stderr)


PIP = "python -m pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"


@pytest.mark.parametrize(
    "message, whole",
    [
        ("error: " + "a word " * 40, ()),
        ("error: " + "-".join("the" for _ in range(18)) + " well-known and state-of-the-art", ()),
        (f"error: to compare, and for nothing else, take another torch first: {PIP}; then go on", (PIP,)),
        (
            "error: " + "so many words before it " * 3 + "use --chain_style equations",
            ("--chain_style equations",),
        ),
        (
            f"error: {'why ' * 14}/home/Ada Lovelace/my thesis/data.jsonl, line 3: no",
            ("/home/Ada Lovelace/my thesis/",),
        ),
        ("error: " + "why " * 18 + "results of today.jsonl is empty", ("results of today.jsonl",)),
        ("error: cannot read /" + "x/" * 80 + "y: no such file", ("/" + "x/" * 80 + "y:",)),
    ],
)
def test_a_long_message_is_wrapped_and_what_can_be_pasted_stays_whole(monkeypatch, message, whole):
    monkeypatch.setattr(sys, "argv", ["train.py", "--data=results of today.jsonl", "--out", " "])
    text = config.wrapped(message)
    assert the_message(text + "\n").split() == message.split()  # not a letter is lost
    lines = text.split("\n")
    assert len(lines) > 1 and all(any(part in line for line in lines) for part in whole)
    assert max(len(line) for line in lines if not any(part in line for part in whole)) <= 100
    assert config.wrapped("error: short") == "error: short"


LOCALE = r"""
import json, locale, sys
from pathlib import Path
root, tests, folder = map(Path, sys.argv[1:])
sys.path[:0] = [str(root), str(tests)]
from conftest import script, tiny
from minilatent import run
text = "Zo\u00eb has 3 \u00e9clairs at 2\u202f\u20ac each, \u2212 1. \u65e5?"
data, out = folder / "data.jsonl", folder / "run"
lines = [json.dumps({"question": f"{n} {text}", "answer": f"<<{n}+1={n + 1}>> #### {n + 1}"},
                    ensure_ascii=False) for n in range(30)]
data.write_bytes("\n".join(lines).encode())
run.train(run.parse_args([*tiny("cot_sft"), "--data", str(data), "--out", str(out)]))
argv = ["--brief", "--data", str(data), "--limit", "2", "--json", str(folder / "r.json")]
script("eval")(["--ckpt", str(out), *argv])
script("sample")(["--ckpt", str(out), "--question", text])
print(locale.getpreferredencoding(False))
"""


def test_files_are_utf8_under_a_locale_that_is_not(tmp_path):
    """Data with names and currencies are trained on, judged, stored and shown."""
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment |= {"PYTHONIOENCODING": "ascii:replace"}  # a terminal that is no better
    command = [sys.executable, "-X", "warn_default_encoding", "-c", LOCALE, ROOT, ROOT / "tests", tmp_path]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, done.stderr
    assert "utf" not in done.stdout.splitlines()[-1].lower()
    warned = [line for line in done.stderr.splitlines() if "EncodingWarning" in line]
    ours = [line for line in warned if line.startswith(str(ROOT)) and "site-packages" not in line]
    assert not ours  # .venv may lie in ROOT
    assert json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))[0]["n"] == 2
