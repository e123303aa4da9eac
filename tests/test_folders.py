"""Run folders that can be trusted: one writer, whole or not there, nothing followed, nothing believed."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT, Killed, killed_at, metrics, same_run, script, train

from minilatent import checkpoint, run
from minilatent.backbones.pretrained import load_pretrained
from minilatent.config import UserError
from minilatent.files import is_temporary, one_writer, read_json, write_json
from minilatent.run import parse_args
from minilatent.tokenizer import FILE
from minilatent.tools.export import export
from minilatent.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_tokenizer")

HOLD = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
from minilatent.files import is_temporary, one_writer
with one_writer(Path(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(folder: Path):
    """Another process writes to the folder."""
    command = [sys.executable, "-c", HOLD, str(ROOT), str(folder)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8")
    try:
        assert other.stdout.readline() == "held\n"
        yield other
    finally:
        other.kill()
        other.communicate()


def tree(folder: Path) -> dict:
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


# --- one writer ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_a_second_process_is_refused_and_told_which_one_the_first_is(tmp_path, resume):
    """It moved the first one's folder away, and both wrote into the new one."""
    out = tmp_path / "run"
    killed_at(out, 0, 2, "cot_sft")
    with held_elsewhere(out) as other:
        before = tree(tmp_path)
        with pytest.raises(UserError, match=f"in use by process {other.pid} on "):
            train(out, "cot_sft", *resume)
        (tmp_path / "link").symlink_to(out)
        with pytest.raises(UserError, match=f"in use by process {other.pid} on "):
            train(tmp_path / "link", "cot_sft", *resume)
        (tmp_path / "link").unlink()
        assert tree(tmp_path) == before
        other.kill()  # a lock whose holder has died does not block
        other.wait()
        train(out, "cot_sft", *resume)
    assert (out / "model.safetensors").exists() and not list(tmp_path.glob(".*lock"))


def test_a_process_whose_parent_was_killed_still_holds_its_folder(tmp_path):
    """As the workers of a killed torchrun do, which go on writing."""
    launch = "import os, subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); input()"
    command = [sys.executable, "-c", HOLD, str(ROOT), str(tmp_path / "run")]
    pipe = subprocess.PIPE
    parent = subprocess.Popen(
        [sys.executable, "-c", launch, *command],
        stdin=pipe,
        stdout=pipe,
        encoding="utf-8",
        start_new_session=True,
    )
    worker = int(parent.stdout.readline())
    assert parent.stdout.readline() == "held\n"
    parent.kill()
    parent.wait()
    with pytest.raises(UserError, match=f"process {worker} "), one_writer(tmp_path / "run"):
        pass
    parent.stdin.close()  # the worker's, too
    parent.stdout.close()


def test_a_command_that_is_refused_leaves_nothing_behind(tmp_path):
    with pytest.raises(UserError, match="no room"):
        train(tmp_path / "new" / "run", "cot_sft", "--max_chain", 600)
    with pytest.raises(UserError, match="starts from a CoLaR run"):
        train(tmp_path / "new" / "run", "colar_rl")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("moment", [(0, 2), (0, 4)])
@pytest.mark.parametrize("how", ["deleted", "renamed", "replaced"])
def test_a_folder_that_is_gone_or_another_one_stops_the_run(tmp_path, monkeypatch, how, moment):
    """It went on in a new folder, which held a state and a model but no config.json."""
    out, real = tmp_path / "run", Trainer.log

    def log(self, stage, **values):
        real(self, stage, **values)
        if (self.at["stage"], self.at["step"]) == moment and "loss" in values:
            if how == "deleted":
                shutil.rmtree(out)
                return
            out.rename(tmp_path / "elsewhere")
            if how == "replaced":
                shutil.copytree(tmp_path / "elsewhere", out)

    monkeypatch.setattr(Trainer, "log", log)
    with pytest.raises(UserError, match="moved or deleted|does not exist any more"):
        train(out, "cot_sft")
    assert out.exists() == (how == "replaced") and not (out / "model.safetensors").exists()


# --- whole, or not there ------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", range(3))
def test_a_start_that_is_stopped_at_any_file_is_in_nobodys_way(tmp_path, uninterrupted, monkeypatch, written):
    """Without config.json it was "not empty and no run folder"; without the tokenizer it trained to the end,
    and the model could not be used."""
    out, real, done = tmp_path / "run", os.replace, []

    def replace(source, target):
        if len(done) == written:
            raise Killed
        done.append(target)
        real(source, target)

    monkeypatch.setattr("minilatent.files.os.replace", replace)
    with pytest.raises(Killed):
        train(out)
    monkeypatch.setattr("minilatent.files.os.replace", real)
    begun = (out / "config.json").exists()
    assert begun == (written == 2)
    assert len(temporary(out)) == 1
    if not begun:
        with pytest.raises(UserError, match="no run folder"):
            train(out, "latent_sft", "--resume")
    train(out, "latent_sft", *(["--resume"] if begun else []))
    assert os.listdir(tmp_path) == ["run"] and not temporary(out)
    same_run(out, uninterrupted)


def temporary(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if is_temporary(p.name)]


def test_a_checkpoint_that_was_half_written_is_removed_at_the_next_start(tmp_path):
    """Also the one that safetensors writes under a name of its own."""
    out = tmp_path / "run"
    killed_at(out, 0, 2, "cot_sft")
    for name in (".0123456789abcdef.tmp", ".tmpAb3xZ9"):
        (out / "state" / name).write_text("half of it", encoding="utf-8")
    (out / "state" / "my.tmp").write_text("mine", encoding="utf-8")
    train(out, "cot_sft", "--resume")
    assert {p.name for p in out.rglob("*tmp*")} == {"my.tmp"}


# --- nothing followed ---------------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")


@posix
@pytest.mark.parametrize(
    "name", ["metrics.jsonl.tmp", "metrics.jsonl", "state", "state/best-cot.safetensors"]
)
def test_a_link_in_a_run_folder_of_somebody_else_is_refused_and_not_written_through(tmp_path, name):
    """A line of the folder's own choosing came into a shell's start-up file."""
    out, mine = tmp_path / "run", tmp_path / "mine"
    killed_at(out, 0, 2, "cot_sft")
    path = out / name
    if name == "state":
        path.rename(mine)
    else:
        path.unlink(missing_ok=True)
        mine.write_text("export PATH", encoding="utf-8")
    path.symlink_to(mine)
    before = tree(mine) if mine.is_dir() else mine.read_bytes()
    for call in (
        lambda: train(out, "cot_sft", "--resume"),
        lambda: train(out, "cot_sft"),
        lambda: run.load_run(out, torch.device("cpu")),
    ):
        with pytest.raises(UserError, match=f"{name} is a link"):
            call()
        assert (tree(mine) if mine.is_dir() else mine.read_bytes()) == before


SPECIAL = ["config.json", "minilatent_tokenizer.json", "model.safetensors", "metrics.jsonl"]
SPECIAL += ["state/resume.safetensors"]


@posix
@pytest.mark.parametrize("name", SPECIAL)
@pytest.mark.parametrize("kind", ["pipe", "zeros"])
def test_a_file_that_never_ends_is_not_opened(tmp_path, uninterrupted, name, kind):
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    (out / "model.safetensors").unlink()
    (out / name).unlink(missing_ok=True)
    os.mkfifo(out / name) if kind == "pipe" else (out / name).symlink_to("/dev/zero")
    for call in (
        lambda: train(out, "latent_sft", "--resume"),
        lambda: run.load_run(out, torch.device("cpu")),
    ):
        with pytest.raises(UserError, match="regular file"):
            call()


@posix
@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"]
)
def test_a_pipe_in_a_hugging_face_folder_is_not_opened_but_its_links_are(tmp_path, uninterrupted, name):
    """Its cache is made of links to files."""
    folder, blobs = tmp_path / "hf", tmp_path / "blobs"
    method = run.load_run(uninterrupted, torch.device("cpu"))
    export(method.model, method.tok, blobs)
    folder.mkdir()
    for path in blobs.iterdir():
        (folder / path.name).symlink_to(path)
    load_pretrained(folder)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=f"{name}: it is not a regular file"):
        load_pretrained(folder)


@posix
def test_what_is_written_has_the_modes_of_the_umask(tmp_path):
    """Files of safetensors came out 0600: for another user the model did not exist."""
    before = os.umask(0o022)
    try:
        train(tmp_path / "run", "cot_sft", "--max_steps", 1)
    finally:
        os.umask(before)
    modes = {p.name: oct(p.stat().st_mode & 0o777) for p in (tmp_path / "run").rglob("*")}
    assert set(modes.values()) == {"0o755", "0o644"}, modes
    assert {name for name, mode in modes.items() if mode == "0o755"} == {"state"}


def test_a_damaged_line_of_the_log_is_cut_and_told(tmp_path, capsys):
    out = tmp_path / "run"
    killed_at(out, 0, 2, "cot_sft")
    log = out / "metrics.jsonl"
    whole = log.read_bytes()
    log.write_bytes(b'\xff\xfe\n{"index": 0}\n[]\n' + b"[" * 100_000 + b"\n" + whole + b'{"stage": "co')
    train(out, "cot_sft", "--resume")
    assert "5 damaged lines removed" in capsys.readouterr().out
    assert [e["step"] for e in metrics(out) if "loss" in e] == [1, 2, 3, 4]


# --- the start is part of the run ---------------------------------------------------------------------------


def replace_weights(folder: Path) -> None:
    tensors, meta = checkpoint.load_tensors(folder / "model.safetensors")
    tensors["model.norm.weight"] += 0.01
    checkpoint.save_tensors(folder / "model.safetensors", tensors, meta)


@pytest.fixture(scope="module")
def start(tmp_path_factory, tok):
    """A run that others start from, and one that did."""
    folder = tmp_path_factory.mktemp("start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "mini_tokenizer", lambda: tok)
        patch.chdir(folder)
        train(Path("base"), "colar", "--latent_loss", "nll", "--max_steps", 1)
        train(Path("whole"), "colar", "--init", "base", "--latent_loss", "nll")
    return folder


FROM = ["colar", "--latent_loss", "nll", "--init", "base"]


@pytest.mark.parametrize("what", ["moved", "replaced", "elsewhere"])
def test_a_checkpoint_holds_all_that_is_needed(start, tmp_path, monkeypatch, what):
    """The latent head, too, which came from --init."""
    shutil.copytree(start / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    killed_at(tmp_path / "run", 0, 2, *FROM)
    if what == "moved":
        shutil.rmtree(tmp_path / "base")
    if what == "replaced":
        replace_weights(tmp_path / "base")
    if what == "elsewhere":
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
    run.train(parse_args(["--method", "colar", "--out", str(tmp_path / "run"), "--resume"]))
    same_run(tmp_path / "run", start / "whole")


@pytest.mark.parametrize("adapters", [[], ["--lora_rank", 2]])
@pytest.mark.parametrize("what", ["moved", "replaced", "elsewhere"])
def test_before_the_first_checkpoint_and_with_adapters_the_start_is_needed(
    start, tmp_path, monkeypatch, what, adapters
):
    shutil.copytree(start / "base", tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    killed_at(out, 0, 2 if adapters else 1, *FROM, *adapters, name="save_state" if adapters else "log")
    go_on = ["--method", "colar", "--out", str(out), "--resume"]
    if what == "elsewhere":
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        run.train(parse_args(go_on))
        return
    shutil.rmtree(tmp_path / "base") if what == "moved" else replace_weights(tmp_path / "base")
    before = tree(out)
    with pytest.raises(UserError, match="base is no folder" if what == "moved" else "is not what it was"):
        run.train(parse_args(go_on))
    assert tree(out) == before


@pytest.mark.parametrize("adapters", [[], ["--lora_rank", 2]])
def test_a_run_cannot_start_from_itself(start, tmp_path, adapters):
    out = shutil.copytree(start / "base", tmp_path / "run")
    before = tree(tmp_path)
    with pytest.raises(UserError, match="is what the run starts from"):
        train(out, "colar", "--init", f"{out}/../run", *adapters)
    assert tree(tmp_path) == before


def test_adapters_whose_base_is_themselves_are_refused(start, tmp_path):
    out = tmp_path / "run"
    train(out, "colar", "--init", start / "base", "--lora_rank", 2, "--max_steps", 1, "--latent_loss", "nll")
    data = json.loads((out / "config.json").read_text(encoding="utf-8"))
    data["base"]["init"] = str(out)
    (out / "config.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match="itself"):
        run.load_run(out, torch.device("cpu"))


# --- not a number -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_one_line_and_no_accuracy(tmp_path, uninterrupted, value):
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    tensors, meta = checkpoint.load_tensors(out / "model.safetensors")
    tensors["model.blocks.0.mlp.up.weight"][3, 3] = value
    checkpoint.save_tensors(out / "model.safetensors", tensors, meta)
    for name, more in (("eval", []), ("sample", []), ("sample", ["--figure", str(tmp_path / "a.png")])):
        with pytest.raises(UserError, match="blocks.0.mlp.up.weight .* not a number"):
            script(name)(["--ckpt", str(out), *more])


def test_json_holds_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": [float("nan"), 1.5, (float("-inf"),)], "b": {"c": float("nan")}})
    assert read_json(tmp_path / "a.json") == {"a": [None, 1.5, [None]], "b": {"c": None}}
    (tmp_path / "a.json").write_text('{"a": NaN}', encoding="utf-8")
    with pytest.raises(UserError, match="not JSON .*NaN"):
        read_json(tmp_path / "a.json")


def test_only_a_whole_run_is_said_to_be_finished(tmp_path, uninterrupted, capsys):
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    train(out, "latent_sft", "--resume")
    assert "is finished" in capsys.readouterr().out
    os.truncate(out / "model.safetensors", 5000)
    with pytest.raises(UserError, match="truncated"):
        train(out, "latent_sft", "--resume")
    assert "is finished" not in capsys.readouterr().out


# --- nothing believed (and see test_fuzz.py) ----------------------------------------------------------------


@pytest.mark.parametrize(
    "part, name, value",
    [
        ("model", "width", 10**9),
        ("model", "n_layer", 10**6),
        ("model", "width", 50_000),  # could be, but is not that of the weights
        ("model", "norm_eps", "x"),
        ("model", "n_kv_head", 0),
        ("model", "position", "alibi"),
        ("model", "rope_scaling", {}),
        ("config", "save_every", 0),
        ("config", "dtype", "float99"),
        ("config", "lr", True),
        ("config", "stage1_steps", 3),
    ],
)
def test_what_a_config_asks_for_is_checked_before_anything_is_built(
    tmp_path, uninterrupted, monkeypatch, part, name, value
):
    """A model of a million layers was built for a minute."""
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    data = json.loads((out / "config.json").read_text(encoding="utf-8"))
    data[part][name] = value
    (out / "config.json").write_text(json.dumps(data), encoding="utf-8")
    monkeypatch.setattr(torch.nn.Module, "to_empty", lambda *_, **__: pytest.fail("memory was taken"))
    with pytest.raises(UserError, match=f"{name}|size mismatch"):
        run.load_run(out, torch.device("cpu"))
    if part == "config":
        (out / "model.safetensors").unlink()
        with pytest.raises(UserError, match=name):
            train(out, "latent_sft", "--resume")


@pytest.mark.parametrize("harm", ["shape", "type", "name", "part"])
def test_an_optimizers_state_of_another_shape_is_not_used(tmp_path, harm):
    """A short one with a right checksum was read out of bounds."""
    out = tmp_path / "run"
    killed_at(out, 0, 2, "cot_sft")
    path = out / "state" / "resume.safetensors"
    tensors, meta = checkpoint.load_tensors(path)
    name = next(name for name in tensors if name.startswith("optimizer.exp_avg."))
    moment = tensors.pop(name)
    if harm != "part":
        changed = {"shape": moment.flatten()[:1], "type": moment.double(), "name": moment}[harm]
        tensors[name + ("x" if harm == "name" else "")] = changed
    checkpoint.save_tensors(path, tensors, meta)
    with pytest.raises(UserError, match="optimizer"):
        train(out, "cot_sft", "--resume")


@pytest.mark.parametrize("pattern", ["x*", "(a+)+$", ""])
def test_a_tokenizers_pattern_is_one_that_ends(tmp_path, uninterrupted, pattern):
    out = shutil.copytree(uninterrupted, tmp_path / "run")
    data = json.loads((out / FILE).read_text(encoding="utf-8"))
    data["pattern"] = pattern
    (out / FILE).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match="its pattern"):
        run.load_run(out, torch.device("cpu"))
