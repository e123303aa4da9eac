"""Run folders that can be trusted: one writer, whole or not there, nothing followed, nothing believed."""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT, Killed, kill_when, same_run, train

from minilatent.config import UserError
from minilatent.files import is_temporary, one_writer
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
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        yield other
    finally:
        other.kill()
        other.communicate()


def tree(folder: Path) -> dict:
    return {p.relative_to(folder): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


def killed_at(out: Path, index: int, step: int, *args, name="save_state") -> None:
    """A run that dies right after Trainer.`name` at a step of a stage."""
    with pytest.MonkeyPatch.context() as patch:
        kill_when(patch, name, lambda *at: at == (index, step))
        with pytest.raises(Killed):
            train(out, *args)


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
        [sys.executable, "-c", launch, *command], stdin=pipe, stdout=pipe, text=True, start_new_session=True
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
