"""What holds for every method that the papers compare with: padding changes nothing, its stages begin with a
fresh optimizer, and its run goes through train.py, eval.py, sample.py and the interventions."""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import PNG, Killed, kill_when, metrics, same_run, script, tiny_model, train

from minilatent import checkpoint, run, tasks
from minilatent.batch import encode
from minilatent.config import UserError
from minilatent.methods import METHODS
from minilatent.trainer import Trainer

OWN = {  # three stages of icot and coconut
    "pause": {"num_latents": 4},
    "icot": {"remove": 10, "curriculum": 0.5},
    "coconut": {"num_latents": 4, "curriculum": 0.5},
    "sim_cot": {"num_latents": 4, "curriculum": 0.5},
    "codi": {"num_latents": 4},
}
PER_STAGE = {"pause": [8], "icot": [1, 1, 1, 4], "coconut": [2, 2, 4], "sim_cot": [2, 2, 4], "codi": [8]}
names = pytest.mark.parametrize("name", OWN)


def train_one(out, name, *more):
    options = [part for key, value in OWN[name].items() for part in (f"--{key}", value)]
    train(out, name, "--steps", 8, *options, *more)


@pytest.fixture(scope="module")
def rows(tok):
    return encode(tasks.load("mini", "train", limit=6), tok, 512)[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tok):
    """A run of each: its folder, its weights when it began, what was saved, and CODI's batches."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "mini_tokenizer", lambda: tok)
        fit, save_state, collate = Trainer.fit, Trainer.save_state, METHODS["codi"].collate

        def spy_fit(self, *args):
            found[self.config.method].begin = {n: t.clone() for n, t in self.method.state_dict().items()}
            fit(self, *args)

        def spy_save_state(self):
            moments = {int(s["step"]) for s in self.optimizers[0].state.values()}  # AdamW's
            found[self.config.method].saved.append((self.at["stage"], self.at["step"], moments))
            save_state(self)

        def spy_collate(self, rows, rng):
            found["codi"].batches.append(collate(self, rows))
            return found["codi"].batches[-1]

        patch.setattr(Trainer, "fit", spy_fit)
        patch.setattr(Trainer, "save_state", spy_save_state)
        patch.setattr(METHODS["codi"], "collate", spy_collate)
        for name in OWN:
            folder = tmp_path_factory.mktemp("runs") / name
            found[name] = SimpleNamespace(folder=folder, saved=[], batches=[])
            train_one(folder, name)
    return found


def make(tok, name, **changes):
    model = tiny_model(tok.vocab_size, scale=3.0, context=160, tied=False).double()
    config = run.resolve({"method": name, **OWN[name], **changes})
    return METHODS[name](config, tok, model)


@names
def test_padding_is_never_attended_to_never_a_label_and_gets_no_gradient(tok, rows, name):
    """Its embedding can be anything. Rows in another order have the same loss."""
    method = make(tok, name, **({"smoothing": 0.0} if name == "icot" else {}))
    batch = method.collate(rows)
    assert (batch["ids"] == tok.pad).any()
    loss, _ = method.loss(batch, torch.Generator())
    loss.backward()
    assert not method.model.embed.weight.grad[tok.pad].any()
    with torch.no_grad():
        method.model.embed.weight[tok.pad] = 1e3 * torch.randn(16, generator=torch.Generator().manual_seed(0))
        again, _ = method.loss(method.collate(rows[::-1]), torch.Generator())
    torch.testing.assert_close(again, loss, rtol=0, atol=1e-10)


@names
def test_every_stage_has_its_steps_and_begins_with_an_optimizer_without_moments(runs, name):
    expected = [(index, step, {step}) for index, n in enumerate(PER_STAGE[name]) for step in range(1, n + 1)]
    assert runs[name].saved == expected  # save_every 1: each step, in order


@names
def test_all_that_a_method_owns_is_trained(runs, name):
    """An optimizer without the projection would leave it as it was initialised."""
    begin, (end, _) = runs[name].begin, checkpoint.load_tensors(runs[name].folder / "model.safetensors")
    assert begin.keys() == end.keys() and not [n for n in end if torch.equal(begin[n], end[n])]


def test_the_tokens_that_are_logged_are_those_of_both_passes(runs):
    """Budgets are compared by them: a teacher's pass that is not counted would be a gift."""
    expected = sum(b["ids"].numel() + b["teacher_ids"].numel() for b in runs["codi"].batches)
    assert metrics(runs["codi"].folder)[-1]["tokens"] == expected


@pytest.mark.parametrize("name", ["icot", "coconut", "sim_cot", "codi"])
def test_a_run_that_is_killed_in_the_middle_resumes_in_its_stage_bit_for_bit(
    runs, tmp_path, name, one_tokenizer
):
    last = len(PER_STAGE[name]) - 1
    with pytest.MonkeyPatch.context() as patch:
        kill_when(patch, "save_state", lambda index, step: (index, step) == (last, 2))
        with pytest.raises(Killed):
            train_one(tmp_path / "run", name)
    train_one(tmp_path / "run", name, "--resume")
    same_run(tmp_path / "run", runs[name].folder)
    assert len({e["index"] for e in metrics(tmp_path / "run")}) == last + 1


@names
def test_eval_interventions_and_sample_work_with_its_run(runs, tmp_path, capsys, name):
    ckpt, out, figure = str(runs[name].folder), tmp_path / "r.json", tmp_path / "chain.png"
    thinks = name != "icot"
    evaluation = ["--ckpt", ckpt, "--limit", "8", "--json", str(out)]
    script("eval")(evaluation + ["--intervene", "noise", "swap", "keep"] * thinks)
    (result,) = json.loads(out.read_text(encoding="utf-8"))
    assert result["method"] == name and result["mean_len"] == 4 * thinks and result["n"] == 8
    script("sample")(["--ckpt", ckpt] + ["--figure", str(figure)] * thinks)
    assert ("4 latents, ended by itself" in capsys.readouterr().out) == thinks
    if thinks:
        assert result["interventions"]["keep"]["unchanged"] == 1.0
        assert result["closed"] == 1.0 and result["ecr"]["10"] >= 0
        assert figure.read_bytes()[:4] == PNG
    else:
        with pytest.raises(UserError, match="does not think"):
            script("eval")(["--ckpt", ckpt, "--limit", "8", "--intervene"])


def test_a_run_without_its_projection_is_refused(runs, tmp_path):
    """strict=False would put random weights there, without a word."""
    for file in ("config.json", "minilatent_tokenizer.json"):
        (tmp_path / file).write_bytes((runs["codi"].folder / file).read_bytes())
    tensors, meta = checkpoint.load_tensors(runs["codi"].folder / "model.safetensors")
    del tensors["projection.3.weight"]
    checkpoint.save_tensors(tmp_path / "model.safetensors", tensors, meta)
    with pytest.raises(UserError, match=r"does not fit this model: .*projection\.3\.weight"):
        run.load_run(tmp_path, torch.device("cpu"))


@names
def test_a_question_that_leaves_no_room_for_the_latents_is_refused_in_one_line(tok, name):
    if name == "icot":
        method = make(tok, name, max_answer=159)
        method.removed = 0
    else:
        method = make(tok, name, num_latents=150)
    with pytest.raises(UserError, match="no room"):
        method.solve(["Ava has 12 apples."])
