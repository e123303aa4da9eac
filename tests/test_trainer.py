"""The loop: nothing is dropped, the log tells the truth, and what goes wrong loses nothing."""

import ctypes
import errno
import math
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import metrics, new_method, tiny_model, train

from minilatent import checkpoint, machine, run, tasks, trainer
from minilatent.batch import encode
from minilatent.config import UserError
from minilatent.methods import METHODS
from minilatent.methods.cot_sft import CoTSFT
from minilatent.optim import Muon, learning_rate, make_optimizers, orthogonalise, train_only
from minilatent.trainer import Trainer, batches

pytestmark = pytest.mark.usefixtures("one_tokenizer")


# --- batches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n, size", [(10, 4), (64, 8), (1000, 7), (3, 8), (5000, 32)])
def test_an_epoch_holds_every_index_once_and_is_another_every_time(n, size):
    """The last short batch included: `drop_last` loses up to a batch of examples an epoch."""
    lengths = [(i * 7919) % 50 for i in range(n)]
    epoch = batches(lengths, size, "0 0 0")
    assert sorted(i for b in epoch for i in b) == list(range(n))
    assert all(len(b) <= size for b in epoch) and len(epoch) == math.ceil(n / size)
    assert epoch == batches(lengths, size, "0 0 0")
    if n > 10:
        assert epoch != batches(lengths, size, "0 0 1")
        first = [lengths[b[0]] for b in epoch]
        assert first != sorted(first)  # long ones are not kept for the end


def test_less_than_a_tenth_of_a_mini_epoch_is_padding(tok):
    rows, _ = encode(tasks.load("mini", "train", limit=2000), tok, 512)
    lengths = [len(r.prompt + r.chain + r.tail) for r in rows]
    unsorted = [list(range(i, min(i + 32, 2000))) for i in range(0, 2000, 32)]
    shares = []  # of padding
    for order in (batches(lengths, 32, "0"), unsorted):
        shares.append(1 - sum(lengths) / sum(max(lengths[i] for i in b) * len(b) for b in order))
    assert 0 <= shares[0] < 0.10 < shares[1]


# --- optimizers and their learning rate ---------------------------------------------------------------------


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    lr = [learning_rate(s, 100, 2.0, 0.1) for s in range(100)]
    assert lr[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert lr[10] == pytest.approx(2.0) and lr[55] == pytest.approx(1.0)  # half way: half of the fall
    assert lr[10:] == sorted(lr[10:], reverse=True) and 0 < lr[99] < 0.002
    assert [learning_rate(s, 3, 1.0, 0.0) for s in range(3)] == pytest.approx([1.0, 1.0, 0.5])
    assert learning_rate(0, 1, 1.0, 0.05) == 1.0  # a one-step run learns
    assert [learning_rate(s, 4, 1.0, 0.5, decay=False) for s in range(4)] == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("tied", [True, False])
def test_muon_moves_the_matrices_between_embeddings_and_head_and_adamw_the_rest(tok, tied):
    method = new_method("colar", tok, tiny_model(tok.vocab_size, tied=tied, bias=True))
    named = dict(method.named_parameters())

    def names(optimizer) -> set[str]:
        ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return {name for name, p in named.items() if id(p) in ids}

    adamw, muon = make_optimizers(named, method, 1e-3, "muon", method.config)
    ends = {"model.embed.weight", "model.head.weight"}
    assert names(muon) == {name for name, p in named.items() if p.dim() == 2 and name not in ends}
    assert any("latent_head" in name for name in names(muon))
    assert names(adamw) == named.keys() - names(muon)
    (alone,) = make_optimizers(named, method, 1e-3, "adamw", method.config)
    assert names(alone) == named.keys()
    for optimizer in (adamw, muon, alone):
        for group in optimizer.param_groups:
            decays = {p.dim() >= 2 for p in group["params"]}
            assert decays <= {group["weight_decay"] == method.config.weight_decay}


def test_muon_leaves_every_language_head_alone(tok):
    """SIM-CoT has a second one, of its decoder."""
    method = new_method("sim_cot", tok, tiny_model(tok.vocab_size, tied=False))
    named = dict(method.named_parameters())
    muon = make_optimizers(named, method, 1e-3, "muon", method.config)[1]
    trained = {id(p) for group in muon.param_groups for p in group["params"]}
    heads = {name for name in named if name.endswith((".head.weight", "embed.weight"))}
    assert len(heads) == 4 and not any(id(named[name]) in trained for name in heads)


def test_muon_is_pytorchs_whose_newton_schulz_is_in_bfloat16():
    """Two shapes, one matrix alone and two side by side, one without a gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(12, 8), (8, 20), (8, 20), (5, 5)]
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    options = {"lr": 0.02, "weight_decay": 0.1}
    optimizers = [Muon(ours, **options), torch.optim.Muon(theirs, **options, adjust_lr_fn="match_rms_adamw")]
    start = [p.detach().clone() for p in ours]
    for _ in range(3):
        for a, b in zip(ours[:3], theirs):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, before in zip(ours, theirs, start):
        assert (a - b).norm() <= 0.02 * (a - before).norm()
    assert torch.equal(ours[3], start[3])


def test_newton_schulz_brings_the_singular_values_near_1_and_keeps_their_directions():
    G = torch.randn(3, 10, 6, generator=torch.Generator().manual_seed(0))
    for matrices in (G, G.mT):
        X = orthogonalise(matrices)
        values = torch.linalg.svdvals(X)
        assert X.shape == matrices.shape and (0.6 < values).all() and (values < 1.3).all()
        U, _, Vt = torch.linalg.svd(matrices, full_matrices=False)
        assert ((U * (X @ Vt.mT)).sum(1) > 0.6).all()  # u_i · X v_i
        torch.testing.assert_close(X[:1], orthogonalise(matrices[:1]))  # each by itself


def test_only_the_modules_that_a_stage_names_are_trained(tok):
    method = new_method("colar", tok, tiny_model(tok.vocab_size))
    for names in (["model"], ["latent_head"], ["model.blocks", "latent_head"]):
        chosen = train_only(method, names)
        for name, p in method.named_parameters():
            inside = name.startswith(tuple(f"{module}." for module in names))
            assert p.requires_grad == inside == (chosen.get(name) is p)
        assert chosen


# --- the loop -----------------------------------------------------------------------------------------------


class Spied(CoTSFT):
    """CoT-SFT that notes which rows each step saw."""

    def collate(self, rows, rng=None):
        self.seen.append(rows)
        return super().collate(rows, rng)


def spied(tok, folder, **changes):
    """A run on 10 rows, 4 a batch: 3 steps an epoch."""
    short = {"batch_size": 4, "steps": 6, "lr": 1e-3, "max_chain": 4, "max_answer": 2, "log_every": 1}
    config = run.resolve({"method": "cot_sft", "optimizer": "adamw", **short, **changes})
    method = Spied(config, tok, tiny_model(tok.vocab_size, n_layer=1, context=512))
    method.seen = []
    (folder / "state").mkdir(parents=True)
    rows = encode(tasks.load("mini", "train", limit=10), tok, 512)[0]
    Trainer(method, folder).fit(method.stages(rows), tasks.load("mini", "val", limit=2))
    return method, rows


def test_every_row_is_trained_on_in_every_epoch(tok, tmp_path):
    method, rows = spied(tok, tmp_path)
    for epoch in (method.seen[:3], method.seen[3:]):
        assert sorted(id(r) for b in epoch for r in b) == sorted(map(id, rows))
    assert sorted(len(b) for b in method.seen) == [2, 2, 4, 4, 4, 4]


def test_accumulation_sees_the_same_rows_and_takes_nearly_the_same_steps(tok, tmp_path):
    whole, _ = spied(tok, tmp_path / "a", steps=3)
    parts, _ = spied(tok, tmp_path / "b", steps=3, accumulate=2)
    halves = [n for b in whole.seen for n in (len(b) - len(b) // 2, len(b) // 2)]
    assert [len(b) for b in parts.seen] == halves
    a, b = metrics(tmp_path / "a")[0], metrics(tmp_path / "b")[0]
    # The mean of two halves' means weighs tokens a little differently than the mean over the whole batch.
    assert a["loss"] == pytest.approx(b["loss"], rel=0.01) and a["loss"] != b["loss"]
    assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=0.1)


def test_gradients_are_clipped_and_with_0_they_are_not(tok, tmp_path):
    clips = (1e9, 0.0, 1e-9)
    for clip in clips:
        spied(tok, tmp_path / str(clip), steps=3, clip=clip)
    free, none, tight = ([e["loss"] for e in metrics(tmp_path / str(c)) if "loss" in e] for c in clips)
    assert free == none and len(free) == 3 and tight[2] > free[2]


def test_training_learns_and_is_logged(tok, tmp_path):
    spied(tok, tmp_path, steps=40, lr=1e-2, eval_every=20)
    logged = metrics(tmp_path)
    losses = [e["loss"] for e in logged if "loss" in e]
    assert losses[0] > 5.0 and losses[-1] < 0.75 * losses[0]
    assert [e["step"] for e in logged if "val_accuracy" in e] == [20, 40]
    assert {"stage", "index", "step", "loss", "lr", "grad_norm", "tokens", "seconds"} <= logged[0].keys()


def test_the_learning_rate_falls_in_the_last_stage_of_a_curriculum_only(tok, tmp_path):
    """Where it fell in every stage, Coconut had learned nothing when the next stage began."""
    short = {"steps": 16, "batch_size": 2, "warmup": 0.0, "log_every": 1, "max_chain": 4, "max_answer": 2}
    model = tiny_model(tok.vocab_size, n_layer=1, context=512)
    method = new_method("coconut", tok, model, lr=1e-3, num_latents=2, dtype="float32", **short)
    (tmp_path / "state").mkdir()
    rows = encode(tasks.load("mini", "train", limit=4), tok, 512)[0]
    Trainer(method, tmp_path).fit(method.stages(rows), tasks.load("mini", "val", limit=2))
    by_stage: dict[str, list[float]] = {}
    for entry in metrics(tmp_path):
        if "lr" in entry:
            by_stage.setdefault(entry["stage"], []).append(entry["lr"])
    assert by_stage["coconut-1"] == [1e-3] * 8
    assert len(by_stage["coconut-2"]) == 8 and by_stage["coconut-2"][-1] < 1e-4


def test_a_test_split_is_never_asked_for_before_the_model_is_final(tmp_path, monkeypatch):
    """GSM8K-Aug's test set is GSM8K's: selecting on it was the commonest way to a good number."""
    real_load, real_fit, asked = tasks.load, Trainer.fit, []

    def load(data, split, **options):
        asked.append(split)
        return real_load(data, split, **options)

    def fit(self, *args):
        real_fit(self, *args)
        asked.append("the model is final")

    monkeypatch.setattr(tasks, "load", load)
    monkeypatch.setattr(Trainer, "fit", fit)
    train(tmp_path / "run", "cot_sft")
    assert asked == ["train", "val", "the model is final", "test"]


def test_stage_1_is_judged_by_what_it_is_called(uninterrupted):
    """The gold chain holds the answer: that a decoder finds it there is no accuracy."""
    logged = set()
    for entry in metrics(uninterrupted):
        logged |= {(entry["stage"], key) for key in entry if key in ("val_accuracy", "val_compression")}
    expected = {(f"stage1-{phase}", "val_compression") for phase in ("encoder", "decoder", "both")}
    assert logged == expected | {("stage2", "val_accuracy")}


def test_the_bar_shows_loss_and_speed(tmp_path, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, **_):
            pass

        update = close = __init__

        def set_postfix(self, values, refresh):
            shown.append(dict(values))

    monkeypatch.setattr(trainer, "tqdm", Bar)
    train(tmp_path / "run", "cot_sft")
    assert len(shown) == 4
    for values in shown:
        assert float(values["loss"]) > 1 and int(values["tok/s"]) > 10


def test_the_summary_names_parameters_tokens_and_stages(tmp_path, capsys):
    train(tmp_path / "run", "latent_sft", "--max_chain", 4, "--max_steps", 1)
    lines = capsys.readouterr().out.splitlines()
    first, second, cut_off, *stages = lines[:7]
    method = run.load_run(tmp_path / "run", torch.device("cpu"))
    size = f"{method.model.num_parameters() / 1e6:.2f} M parameters"
    assert size in first and re.match(r"64 training examples \(\d+,\d{3} tokens\)", second)
    assert "0.0 M" not in "\n".join(lines) and max(map(len, lines)) <= 100
    assert "longer than --max_chain" in cut_off  # 4 latents of 2 tokens: one step
    names = ["stage1-encoder", "stage1-decoder", "stage1-both", "stage2"]
    assert [line.split()[0] for line in stages] == names
    assert all(line.split()[1:3] == ["1", "steps"] for line in stages)
    # --max_steps stops every stage.
    assert {(e["index"], e["step"]) for e in metrics(tmp_path / "run")} == {(i, 1) for i in range(4)}


def test_what_a_piped_run_says_as_it_goes(tmp_path, capsys):
    """The step of how many, and the loss; and it says that it judges before it does."""
    train(tmp_path / "a run", "cot_sft", "--max_steps", 4)
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if line.startswith("cot step ")]
    assert len(steps) == 2 and all(re.search(r"step \d/4: loss \d+\.\d+, validation ", s) for s in steps)
    judged, accuracy, one, other = lines[-4:]
    assert judged == "mini test: 8 questions are judged" and accuracy.startswith("mini test: accuracy ")
    folder = f"'{tmp_path / 'a run'}'"  # pasted into a shell, it is one word
    assert (
        one == f"next: python eval.py --ckpt {folder}" and other == f"      python sample.py --ckpt {folder}"
    )


# --- what goes wrong ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_no_number_stops_the_run_and_the_last_checkpoint_is_good(
    tmp_path, monkeypatch, kind
):
    """A NaN gradient behind a finite loss would be stepped on, saved, and noticed one step too late."""
    real, calls = CoTSFT.loss, []

    def loss(self, *args):
        value, extra = real(self, *args)
        calls.append(0)
        if len(calls) == 3:
            zero = self.model.embed.weight.sum() * 0  # the root of its square is 0, with a slope of 0/0
            value = value * float("nan") if kind == "loss" else value + (zero * zero).sqrt()
        return value, extra

    monkeypatch.setattr(CoTSFT, "loss", loss)
    with pytest.raises(UserError) as caught:
        train(tmp_path / "run", "cot_sft")
    assert "nan" in str(caught.value) and "lr" in str(caught.value) and "\n" not in str(caught.value)
    tensors, meta = checkpoint.load_tensors(tmp_path / "run" / "state" / "resume.safetensors")
    assert meta["step"] == 2 and all(t.isfinite().all() for t in tensors.values())
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    path, old = tmp_path / "a.safetensors", {"w": torch.arange(4.0)}
    checkpoint.save_tensors(path, old, {"step": 1})
    before = path.read_bytes()

    def full(tensors, file, header):
        Path(file).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left"):
        checkpoint.save_tensors(path, {"w": torch.zeros(4)})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.safetensors"]
    with pytest.raises(UserError, match="No space left"):
        train(tmp_path / "run", "cot_sft")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_disk_that_is_full_when_the_log_is_written_stops_the_run(tmp_path, monkeypatch):
    """Steps are logged more often than saved: the log meets the full disk first."""
    real = run.prepare_folder

    def prepared(config, folder):
        real(config, folder)
        (folder / "metrics.jsonl").symlink_to("/dev/full")

    monkeypatch.setattr(run, "prepare_folder", prepared)
    with pytest.raises(OSError, match="No space left"):  # run_script prints it
        train(tmp_path / "run", "cot_sft")


def change(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


DAMAGES = {
    "truncated": lambda run: os.truncate(run / "model.safetensors", 5000),
    "config.json is truncated": lambda run: (run / "config.json").write_text("{", encoding="utf-8"),
    "not of a minilatent run": lambda run: (run / "config.json").write_text("{}", encoding="utf-8"),
    "no config.json": lambda run: (run / "config.json").unlink(),
    "size mismatch": lambda run: change(run / "config.json", '"hidden": 32', '"hidden": 40'),
    "run of 'magic', which": lambda run: change(run / "config.json", '"latent_sft"', '"magic"'),
    "minilatent_tokenizer.json": lambda run: (run / "minilatent_tokenizer.json").unlink(),
}


@pytest.mark.parametrize("said", DAMAGES)
def test_a_damaged_run_folder_is_refused_in_one_line(tmp_path, uninterrupted, said):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "minilatent_tokenizer.json"):
        (folder / name).write_bytes((uninterrupted / name).read_bytes())
    assert run.load_run(folder, torch.device("cpu")).config.method in METHODS
    DAMAGES[said](folder)
    with pytest.raises(UserError, match=said) as caught:
        run.load_run(folder, torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_freed_memory_is_given_back_where_the_c_library_can(monkeypatch):
    """malloc_trim is glibc's: macOS has a library without it, Windows opens none (TypeError)."""
    asked = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=asked.append))
    machine.trim_memory()
    assert asked == [0]
    for library in (lambda name: object(), lambda name: len(name)):
        monkeypatch.setattr(ctypes, "CDLL", library)
        machine.trim_memory()  # does not raise
