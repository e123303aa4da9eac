"""What holds for every method that the papers compare with: padding does not exist for it, its stages begin with a fresh
optimizer, and its run goes through train.py, eval.py, sample.py and the interventions."""

import json

import pytest
import torch
from conftest import PNG, Killed, kill_when, metrics, same_run, script, tiny_model, train

from minilatent import checkpoint, run
from minilatent.batch import encode
from minilatent.config import UserError, resolve
from minilatent.methods import METHODS
from minilatent.tasks import words
from minilatent.trainer import Trainer

NAMES = ("pause", "icot", "coconut", "codi")
STEPS = [
    "--steps",
    8,
    "--chain_style",
    "equations",
    "--num_latents",
    4,
    "--remove",
    10,
]  # 3 stages of icot and coconut
PER_STAGE = {"pause": [8], "icot": [1, 1, 1, 4], "coconut": [2, 2, 4], "codi": [8]}


pytestmark = pytest.mark.usefixtures("one_tokenizer")


@pytest.fixture(scope="module")
def rows(tok):
    return encode(words.load("mini", "train", 6), tok, 512)[0]


def make(tok, name, **changes):
    model = tiny_model(tok.vocab_size, scale=3.0, context=160, tied=False).double()
    return METHODS[name](resolve({"method": name, "smoothing": 0.0, **changes}), tok, model)


@pytest.mark.parametrize("name", NAMES)
def test_padding_is_never_seen_never_judged_and_gets_no_gradient(tok, rows, name):
    """Its embedding can be anything. Rows of any order and of any longer neighbour have the same loss."""
    method = make(tok, name)
    batch = method.collate(rows)
    assert (batch["ids"] == tok.pad).any()
    loss, _ = method.loss(batch, torch.Generator(), 0.0)
    loss.backward()
    assert not method.model.embed.weight.grad[tok.pad].any()
    with torch.no_grad():
        method.model.embed.weight[tok.pad] = 1e3 * torch.randn(16, generator=torch.Generator().manual_seed(0))
        again, _ = method.loss(method.collate(rows[::-1]), torch.Generator(), 0.0)
    torch.testing.assert_close(again, loss, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_training_lowers_the_loss(tok, rows, name):
    method = METHODS[name](resolve({"method": name}), tok, tiny_model(tok.vocab_size, context=160))
    optimizer, losses = torch.optim.Adam(method.parameters(), lr=3e-3), []
    for step in range(12):
        loss, _ = method.loss(method.collate(rows), torch.Generator().manual_seed(step), 0.0)
        optimizer.zero_grad(), loss.backward(), optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_has_its_steps_and_begins_with_an_optimizer_that_remembers_nothing(
    tmp_path, monkeypatch, name
):
    saved, real = [], Trainer.save

    def save(self, stage, step, best, optimizers, named):
        moments = {int(s["step"]) for s in optimizers[0].state.values()}  # AdamW's; Muon does not count
        saved.append((stage, step, moments))
        real(self, stage, step, best, optimizers, named)

    monkeypatch.setattr(Trainer, "save", save)
    train(tmp_path / "run", name, *STEPS)
    expected = [(index, step, {step}) for index, n in enumerate(PER_STAGE[name]) for step in range(1, n + 1)]
    assert saved == expected  # save_every 1: each step, in order


@pytest.mark.parametrize("name", NAMES)
def test_all_that_a_method_owns_is_trained(tmp_path, monkeypatch, name):
    """An optimizer without the projection would leave it as it was drawn."""
    begin, real = {}, Trainer.fit
    monkeypatch.setattr(
        Trainer,
        "fit",
        lambda self, *a: (
            begin.update({n: t.clone() for n, t in self.method.state_dict().items()}),
            real(self, *a),
        )[1],
    )
    train(tmp_path / "run", name, *STEPS)
    end, _ = checkpoint.load_tensors(tmp_path / "run" / "model.safetensors")
    assert begin.keys() == end.keys() and not [n for n in end if torch.equal(begin[n], end[n])]


def test_the_tokens_that_are_logged_are_those_of_both_passes(tok, tmp_path, monkeypatch):
    """Budgets are compared by them: a teacher's pass that is not counted would be a gift."""
    seen, real = [], METHODS["codi"].collate
    monkeypatch.setattr(
        METHODS["codi"], "collate", lambda self, rows, rng: (seen.append(real(self, rows)), seen[-1])[1]
    )
    train(tmp_path / "run", "codi", *STEPS)
    assert metrics(tmp_path / "run")[-1]["tokens"] == sum(
        b["ids"].numel() + b["teacher_ids"].numel() for b in seen
    )


@pytest.mark.parametrize("name", ["icot", "coconut", "codi"])
def test_a_run_that_is_killed_in_the_middle_resumes_in_its_stage_bit_for_bit(tmp_path, name):
    train(tmp_path / "whole", name, *STEPS)
    with pytest.MonkeyPatch.context() as patch:
        kill_when(patch, "save", lambda index, done, *_: (index, done) == (len(PER_STAGE[name]) - 1, 2))
        with pytest.raises(Killed):
            train(tmp_path / "run", name, *STEPS)
    train(tmp_path / "run", name, *STEPS, "--resume")
    same_run(tmp_path / "run", tmp_path / "whole")
    assert len({e["index"] for e in metrics(tmp_path / "run")}) == len(PER_STAGE[name])


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tok):
    """A run of each, of a few steps, by train.py's own way."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "mini_tokenizer", lambda: tok)
        for name in NAMES:
            train(root / name, name, *STEPS)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_eval_interventions_and_sample_work_with_its_run(runs, tmp_path, capsys, name):
    ckpt, out, figure = str(runs / name), tmp_path / "r.json", tmp_path / "chain.png"
    thinks = name != "icot"
    script("eval")(
        ["--ckpt", ckpt, "--limit", "8", "--json", str(out)]
        + ["--intervene", "noise", "swap", "keep"] * thinks
    )
    (result,) = json.loads(out.read_text())
    assert result["method"] == name and result["mean_len"] == 4 * thinks and result["n"] == 8
    if thinks:
        assert (
            result["interventions"]["keep"]["unchanged"] == 1.0
            and result["closed"] == 1.0
            and result["ecr"]["10"] >= 0
        )
    script("sample")(["--ckpt", ckpt] + ["--figure", str(figure)] * thinks)
    assert ("4 latents, ended by itself" in capsys.readouterr().out) == thinks
    assert not thinks or figure.read_bytes()[:4] == PNG
    if not thinks:
        with pytest.raises(UserError, match="does not think"):
            script("eval")(["--ckpt", ckpt, "--limit", "8", "--intervene"])


def test_a_run_without_its_projection_is_refused(runs, tmp_path):
    """strict=False would put random weights there, without a word."""
    folder = tmp_path / "run"
    folder.mkdir()
    for file in ("config.json", "minilatent_tokenizer.json"):
        (folder / file).write_bytes((runs / "codi" / file).read_bytes())
    tensors, meta = checkpoint.load_tensors(runs / "codi" / "model.safetensors")
    assert "projection.3.weight" in tensors
    del tensors["projection.3.weight"]
    checkpoint.save_tensors(folder / "model.safetensors", tensors, meta)
    with pytest.raises(UserError, match="lacks the tensor 'projection.3.weight'"):
        run.load_run(folder, torch.device("cpu"))


@pytest.mark.parametrize("name", NAMES)
def test_a_question_that_leaves_no_room_for_the_latents_is_refused_in_one_line(tok, name):
    method = make(tok, name, num_latents=150)
    if name == "icot":
        method.removed, method.config.max_answer = 0, 159
    with pytest.raises(UserError, match="no room"):
        method.solve(["Ava has 12 apples."])
