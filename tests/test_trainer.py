"""The loop: nothing is dropped, the log tells the truth, and what goes wrong loses nothing."""

import errno
import math
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import metrics, tiny_model, train

from minilatent import checkpoint, run, trainer
from minilatent.batch import encode
from minilatent.config import UserError, resolve
from minilatent.methods import METHODS
from minilatent.methods.cot_sft import CoTSFT
from minilatent.model import Transformer
from minilatent.tasks import words
from minilatent.trainer import Trainer, batches, learning_rate, make_optimizers, padding

pytestmark = pytest.mark.usefixtures("one_tokenizer")


# --- batches and the learning rate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n, size", [(10, 4), (64, 8), (1000, 7), (3, 8), (5000, 32)])
def test_an_epoch_holds_every_index_once_and_is_another_every_time(n, size):
    """The last short batch included: `drop_last` loses up to a batch of examples an epoch."""
    lengths = [(i * 7919) % 50 for i in range(n)]
    cut = batches(lengths, size, "0 0 0")
    assert sorted(i for b in cut for i in b) == list(range(n))
    assert all(len(b) <= size for b in cut) and len(cut) == math.ceil(n / size)
    assert cut == batches(lengths, size, "0 0 0")
    if n > 10:
        assert cut != batches(lengths, size, "0 0 1")
        assert [lengths[b[0]] for b in cut] != sorted(
            lengths[b[0]] for b in cut
        )  # long ones are not kept for the end


def test_less_than_a_tenth_of_a_mini_epoch_is_padding(tok):
    rows, _ = encode(words.load("mini", "train", 4000), tok, 512)
    lengths = [len(r.explicit(tok)[0]) for r in rows]
    cut = batches(lengths, 32, "0")
    padded = sum(max(lengths[i] for i in b) * len(b) for b in cut)
    assert padding(lengths, cut) == pytest.approx(1 - sum(lengths) / padded)
    assert (
        0
        <= padding(lengths, cut)
        < 0.10
        < padding(lengths, [list(range(i, min(i + 32, 4000))) for i in range(0, 4000, 32)])
    )


def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine():
    lr = [learning_rate(s, 100, 2.0, 0.1, 0.25) for s in range(100)]
    assert lr[:10] == pytest.approx([0.2 * (s + 1) for s in range(10)])
    assert lr[10] == pytest.approx(2.0) and lr[55] == pytest.approx(
        0.5 + 1.5 / 2
    )  # half way: half of the fall
    assert lr[10:] == sorted(lr[10:], reverse=True) and 0.5 < lr[99] < 0.502
    assert [learning_rate(s, 3, 1.0, 0.0, 0.0) for s in range(3)] == pytest.approx([1.0, 1.0, 0.5])
    assert learning_rate(0, 1, 1.0, 0.05, 0.0) == 1.0  # a one-step run learns


# --- the loop --------------------------------------------------------------------------------------------------------


class Spied(CoTSFT):
    """CoT-SFT that notes which rows each step saw."""

    def collate(self, rows, rng):
        self.seen.append(rows)
        return super().collate(rows, rng)


def spied(tok, tmp_path, n=10, **changes):
    cfg = resolve(
        {
            "method": "cot_sft",
            "batch_size": 4,
            "steps": 6,
            "val_size": 2,
            "max_chain": 4,
            "max_answer": 2,
            "log_every": 1,
            **changes,
        }
    )
    method = Spied(cfg, tok, tiny_model(tok.vocab_size, n_layer=1, context=512, width=16))
    method.seen = []
    (tmp_path / "state").mkdir(exist_ok=True)
    rows = encode(words.load("mini", "train", n), tok, 512)[0]
    Trainer(cfg, method, tmp_path).fit(rows, words.load("mini", "val", 2))
    return method, rows


def test_every_row_is_trained_on_in_every_epoch(tok, tmp_path):
    method, rows = spied(tok, tmp_path)  # 10 rows, 4 a batch: 3 steps an epoch, two epochs
    for epoch in (method.seen[:3], method.seen[3:]):
        assert sorted(id(r) for b in epoch for r in b) == sorted(map(id, rows))
    assert sorted(len(b) for b in method.seen) == [2, 2, 4, 4, 4, 4]


def test_accumulation_sees_the_same_rows_and_takes_nearly_the_same_steps(tok, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole, _ = spied(tok, tmp_path / "a", steps=3)
    parts, _ = spied(tok, tmp_path / "b", steps=3, accumulate=2)
    assert [len(b) for b in parts.seen] == [
        n for b in whole.seen for n in (len(b) - len(b) // 2, len(b) // 2)
    ]
    a, b = (metrics(tmp_path / x) for x in "ab")
    # Means of halves weigh tokens a little differently than the mean over the whole batch.
    assert a[0]["loss"] == pytest.approx(b[0]["loss"], rel=0.01) and a[0]["grad_norm"] == pytest.approx(
        b[0]["grad_norm"], rel=0.1
    )
    assert a[0]["loss"] != b[0]["loss"]


def test_training_learns_and_the_log_tells_how(tok, tmp_path):
    spied(tok, tmp_path, steps=40, lr=1e-2, eval_every=20)
    logged = metrics(tmp_path)
    losses = [e["loss"] for e in logged if "loss" in e]
    assert losses[0] > 5.0 and losses[-1] < 0.75 * losses[0]
    assert [e["step"] for e in logged if "val_accuracy" in e] == [20, 40]
    assert {"stage", "index", "step", "loss", "lr", "grad_norm", "tokens", "seconds"} <= logged[0].keys()


def test_a_test_split_is_never_asked_for_before_the_model_is_final(tmp_path, monkeypatch):
    """GSM8K-Aug's test set is GSM8K's: selecting on it was the commonest way to a good number."""
    real, asked = run.data.load, []
    monkeypatch.setattr(
        run.data, "load", lambda data, split, **k: (asked.append(split), real(data, split, **k))[1]
    )
    saved = []
    real_fit = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self, *a: (real_fit(self, *a), saved.append(list(asked)))[0])
    train(tmp_path / "run", "cot_sft")
    assert saved == [["train", "val"]] and asked == ["train", "val", "test"]


def test_a_named_validation_set_gives_its_validation_split(tmp_path, monkeypatch):
    real, asked = run.data.load, []
    monkeypatch.setattr(
        run.data, "load", lambda data, split, **k: (asked.append((data, split)), real(data, split, **k))[1]
    )
    config = resolve({"method": "cot_sft", "val_data": "mini_prosqa", "train_size": 8, "val_size": 4})
    run.load_data(config, run.mini_tokenizer(), 512)
    assert asked == [("mini", "train"), ("mini_prosqa", "val")]


def test_stage_1_is_judged_by_what_it_is_called(uninterrupted):
    """The gold chain holds the answer: that a decoder finds it there is no accuracy."""
    told = {
        (e["stage"], key)
        for e in metrics(uninterrupted)
        for key in e
        if key in ("val_accuracy", "val_compression")
    }
    assert told == {
        *((f"stage1-{phase}", "val_compression") for phase in ("encoder", "decoder", "both")),
        ("stage2", "val_accuracy"),
    }


def test_the_bar_tells_loss_speed_and_validation(tmp_path, monkeypatch):
    told = []

    class Bar:
        def __init__(self, **_):
            pass

        def update(self):
            pass

        def close(self):
            pass

        def set_postfix(self, values, refresh):
            told.append(dict(values))

    monkeypatch.setattr(trainer, "tqdm", Bar)
    train(tmp_path / "run", "cot_sft")
    assert list(told[0]) == ["loss", "tok/s"] and list(told[-1]) == ["loss", "tok/s", "val"]
    assert float(told[0]["loss"]) > 1 and int(told[0]["tok/s"]) > 10


def test_the_summary_tells_parameters_tokens_stages_and_minutes(tmp_path, capsys):
    train(tmp_path / "run", "latent_sft", "--max_chain", 4)
    first, cut_off, *stages = capsys.readouterr().out.splitlines()[:6]
    method = run.load_run(tmp_path / "run", torch.device("cpu"))
    assert (
        f"{method.model.num_parameters() / 1e6:.2f} M parameters" in first
        and "64 training examples" in first
        and "M tokens" in first
    )
    assert "longer than --max_chain" in cut_off  # 4 latents of 2 tokens: one step
    assert [line.split()[0] for line in stages] == [
        "stage1-encoder",
        "stage1-decoder",
        "stage1-both",
        "stage2",
    ]
    assert all(f"{n} steps, about" in line and " min " in line for line, n in zip(stages, (3, 3, 3, 4)))


def test_a_compiled_run_is_the_same_run(tmp_path, monkeypatch):
    """Traced, not made faster: the backend that writes code needs a compiler, and time."""
    real, calls = Transformer.compile, []
    monkeypatch.setattr(
        Transformer,
        "compile",
        lambda self, **options: (calls.append(options), real(self, backend="eager", **options)),
    )
    train(tmp_path / "plain", "cot_sft", "--steps", 2)
    train(tmp_path / "compiled", "cot_sft", "--steps", 2, "--compile")
    assert calls == [{"dynamic": True}]
    plain, compiled = (
        [e["loss"] for e in metrics(tmp_path / name) if "loss" in e] for name in ("plain", "compiled")
    )
    assert len(plain) == 2 and plain == pytest.approx(compiled, rel=1e-5)


def test_max_steps_stops_every_stage(tmp_path):
    train(tmp_path / "run", "latent_sft", "--max_steps", 1)
    assert sorted({(e["index"], e["step"]) for e in metrics(tmp_path / "run")}) == [
        (0, 1),
        (1, 1),
        (2, 1),
        (3, 1),
    ]


def test_muon_moves_the_matrices_between_embeddings_and_head_and_adamw_the_rest(tok):
    for tied in (True, False):
        cfg = resolve({"method": "colar", "optimizer": "muon"})
        method = METHODS["colar"](cfg, tok, tiny_model(tok.vocab_size, tied=tied, bias=True))
        named = dict(method.named_parameters())
        adamw, muon = make_optimizers(named, method, 1e-3, "muon", cfg)
        of = lambda o: {
            n for n, p in named.items() if any(p is q for group in o.param_groups for q in group["params"])
        }
        assert not of(adamw) & of(muon) and of(adamw) | of(muon) == named.keys()
        assert of(muon) == {
            n
            for n, p in named.items()
            if p.dim() == 2 and n not in ("model.embed.weight", "model.head.weight")
        }
        assert {n for n in of(muon) if "latent_head" in n} and len(
            make_optimizers(named, method, 1e-3, "adamw", cfg)
        ) == 1


# --- what goes wrong -------------------------------------------------------------------------------------------------


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
            zero = self.model.embed.weight.sum() * 0
            value = (
                value * float("nan") if kind == "loss" else value + (zero * zero).sqrt()
            )  # 0, with a slope of 0/0
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
def test_a_disk_that_is_full_when_the_log_is_written_is_one_line(tmp_path, monkeypatch):
    """Steps are logged more often than saved: the log meets the full disk first."""
    real = run.prepare_folder

    def prepared(config, folder):
        real(config, folder)
        (folder / "metrics.jsonl").symlink_to("/dev/full")
        return folder

    monkeypatch.setattr(run, "prepare_folder", prepared)
    with pytest.raises(UserError, match="metrics.jsonl: No space left") as caught:
        train(tmp_path / "run", "cot_sft")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "damage, said",
    [
        (
            lambda run: (run / "model.safetensors").write_bytes(
                (run / "model.safetensors").read_bytes()[:-100]
            ),
            "truncated",
        ),
        (lambda run: (run / "config.json").write_text("{"), "damaged"),
        (lambda run: (run / "config.json").write_text("{}"), "not of a minilatent run"),
        (lambda run: (run / "config.json").unlink(), "no config.json"),
        (
            lambda run: (run / "config.json").write_text(
                (run / "config.json").read_text().replace('"hidden": 32', '"hidden": 40')
            ),
            "shape",
        ),
        (lambda run: (run / "minilatent_tokenizer.json").unlink(), "minilatent_tokenizer.json"),
    ],
)
def test_a_damaged_run_folder_is_refused_in_one_line(tmp_path, uninterrupted, damage, said):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.json", "model.safetensors", "minilatent_tokenizer.json"):
        (run / name).write_bytes((uninterrupted / name).read_bytes())
    assert run.load_run(run, torch.device("cpu")).config.method in METHODS
    damage(run)
    with pytest.raises(UserError, match=said) as caught:
        run.load_run(run, torch.device("cpu"))
    assert "\n" not in str(caught.value)


def test_freed_memory_is_given_back_where_the_c_library_can(monkeypatch):
    """malloc_trim is glibc's: macOS has a library without it, Windows opens none (TypeError)."""
    asked = []
    monkeypatch.setattr(trainer.ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=asked.append))
    trainer.trim_memory()
    assert asked == [0]
    for library in (lambda name: object(), lambda name: len(name)):
        monkeypatch.setattr(trainer.ctypes, "CDLL", library)
        trainer.trim_memory()  # does not raise
