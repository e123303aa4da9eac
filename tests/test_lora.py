"""Adapters: nothing but they learns, merged they are the same model, and a run folder of them needs its base."""

import copy
import json

import pytest
import torch
from conftest import FAMILIES, tiny_model
from safetensors.torch import load_file

from minilatent import checkpoint, run
from minilatent.backbones.lora import LoRALinear, add_lora, frozen, merge, own_state
from minilatent.backbones.pretrained import resize
from minilatent.config import Config, UserError, parse_args
from minilatent.trainer import Trainer

MARKERS = [2, 37, 38, 39]  # one is an old token (a model's own end), three are new
LORA = Config(lora_rank=3, lora_alpha=12.0)
families = pytest.mark.parametrize("family", FAMILIES)
IDS = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))


def with_adapters(family="mini", config=LORA, **changes):
    """A tiny model in float64 whose adapters and marker rows are no longer what they began as."""
    model = tiny_model(**{**FAMILIES[family], "n_head": 2, "n_kv_head": 2, **changes}).double()
    add_lora(model, config, MARKERS)
    model.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return model


@families
def test_adapters_change_nothing_at_first_and_merged_they_are_the_same_model(family):
    plain = tiny_model(**{**FAMILIES[family], "n_head": 2}).double()
    model = copy.deepcopy(plain)
    add_lora(model, LORA, MARKERS)
    assert torch.equal(model.double().logits(model(IDS)), plain.logits(plain(IDS)))
    model = with_adapters(family)
    before = model.logits(model(IDS))
    assert (before - plain.logits(plain(IDS))).abs().max() > 0.1
    merge(model)
    torch.testing.assert_close(model.logits(model(IDS)), before, rtol=0, atol=1e-12)
    assert model.state_dict().keys() == plain.state_dict().keys() and all(
        p.requires_grad for p in model.parameters()
    )


def test_an_adapter_is_the_papers_formula():
    layer = with_adapters().blocks[1].mlp.down
    assert isinstance(layer, LoRALinear)
    x = torch.randn(5, 24, dtype=torch.float64)
    expected = x @ layer.weight.T + (12 / 3) * x @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(layer(x), expected)
    assert (
        sum(
            isinstance(m, LoRALinear)
            for m in with_adapters(config=Config(lora_rank=3, lora_targets="q,v")).modules()
        )
        == 4
    )


@families
def test_only_adapters_and_the_markers_rows_have_gradients_and_the_rows_that_of_the_whole_table(family):
    """The rows through both doors, embedding and head, against the same model with everything trained."""
    model = with_adapters(family)
    plain = merge(copy.deepcopy(model))
    for m in (model, plain):
        logits = m.logits(m(IDS))
        (logits**2).mean().add(logits.logsumexp(-1).mean()).backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learns == {name for name, p in model.named_parameters() if "lora_" in name}
    assert not set(frozen(model)) & learns and set(own_state(model)) == learns
    torch.testing.assert_close(model.embed.lora_rows.grad, plain.embed.weight.grad[MARKERS])
    if not model.config.tied:
        torch.testing.assert_close(model.head.lora_rows.grad, plain.head.weight.grad[MARKERS])
    a, w = model.blocks[0].attn.q, plain.blocks[0].attn.q
    torch.testing.assert_close(
        a.lora_b.grad, 4 * w.weight.grad @ a.lora_a.T
    )  # the chain rule through W' = W + 4 B A


def test_a_copy_has_its_own_adapters_and_shares_what_is_frozen():
    model = with_adapters()
    twin = copy.deepcopy(model)
    a, b = model.blocks[0].attn.q, twin.blocks[0].attn.q
    assert a.weight is b.weight and a.lora_a is not b.lora_a and torch.equal(a.lora_a, b.lora_a)
    before = model.logits(model(IDS))
    with torch.no_grad():
        b.lora_b.add_(1.0)
        twin.embed.lora_rows.add_(1.0)
    assert (twin.logits(twin(IDS)) - before).abs().max() > 0.1
    assert torch.equal(model.logits(model(IDS)), before)
    merge(twin)
    assert torch.equal(model.logits(model(IDS)), before)


def test_dropout_is_there_in_training_only():
    model = with_adapters(config=Config(lora_rank=3, lora_dropout=0.5))
    assert torch.equal(model(IDS), model(IDS))
    model.train()
    assert not torch.equal(model(IDS), model(IDS))


@families
def test_recomputed_activations_give_the_same_gradients(family):
    grads = []
    for recompute in (False, True):
        model = tiny_model(**{**FAMILIES[family], "n_head": 2}).double().train()
        model.grad_checkpoint = recompute
        calls = []
        model.blocks[0].attn.q.register_forward_hook(lambda *_: calls.append(0))
        states = []
        (model.logits(model(IDS, states=states)) ** 2).mean().add(states[0].sin().mean()).backward()
        grads.append([p.grad for p in model.parameters()])
        assert len(calls) == 1 + recompute
    assert all(torch.allclose(a, b, rtol=1e-12, atol=0) for a, b in zip(*grads))


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, tok):
    monkeypatch.setattr(run, "mini_tokenizer", lambda: tok)

    def train(
        method, out, *more, lora="--lora_rank 2 --lora_dropout 0.1 --lora_targets q,v,down", init="none"
    ):
        run.train(
            parse_args(
                f"--method {method} --init {init} --n_layer 1 --width 32 --n_head 2 --hidden 32 --train_size 64 "
                "--val_size 8 --steps 4 --stage1_steps 3,3,3 --batch_size 8 --save_every 1 --log_every 1 --eval_every 2 "
                f"--max_chain 4 --max_answer 4 --test_size 4 --device cpu --lr 0.01 {lora} --out {tmp_path / out}".split()
                + [*more]
            )
        )
        return tmp_path / out

    return train


def solved(folder):
    method = run.load_run(folder, torch.device("cpu"))
    ids = torch.tensor([method.prompt("Ava has 3 eggs. How many eggs does Ava have?")])
    return method, method.model.logits(method.model(ids))


@pytest.mark.parametrize("method", ["cot_sft", "latent_sft"])
def test_a_run_saves_adapters_alone_and_is_loaded_with_its_base(run, method, tmp_path, monkeypatch):
    seen = {}
    real = Trainer.fit
    monkeypatch.setattr(Trainer, "fit", lambda self, *a: (real(self, *a), seen.update(trainer=self))[0])
    base = run("cot_sft", "base", lora="", init="none")
    out = run(method, "run", init=base)
    names = [
        set(load_file(p))
        for p in (out / "model.safetensors", *(out / "state").glob("*.safetensors"))
        if "labels" not in p.name
    ]
    assert (
        all("lora_" in name for some in names for name in some if not name.startswith("optimizer"))
        and len(names) >= 3
    )
    assert (out / "model.safetensors").stat().st_size < 0.2 * (base / "model.safetensors").stat().st_size
    assert json.loads((out / "config.json").read_text())["base"]["init"] == str(base)
    trained = seen["trainer"].method.eval()
    loaded, logits = solved(out)
    ids = torch.tensor([loaded.prompt("Ava has 3 eggs. How many eggs does Ava have?")])
    torch.testing.assert_close(logits, trained.model.logits(trained.model(ids)), rtol=1e-5, atol=1e-5)
    assert (logits - solved(base)[1]).abs().max() > 1e-3
    assert not any(isinstance(m, LoRALinear) for m in loaded.modules())  # merged: as fast as any
    again = run("no_cot", "again", "--max_steps", "1", init=out)  # and a base for another
    assert solved(again)[0].model.config == loaded.model.config

    monkeypatch.chdir(tmp_path.parent)  # the note does not hang on the folder
    assert torch.equal(solved(out)[1], logits)
    state, meta = checkpoint.load_tensors(base / "model.safetensors")
    state["model.norm.weight"] += 0.01
    checkpoint.save_tensors(base / "model.safetensors", state, meta)
    with pytest.raises(UserError, match=f"adapters of {base}, which is another model now"):
        run.load_run(out, torch.device("cpu"))


def test_colar_saves_its_head_with_the_adapters_and_rl_goes_on_from_both(run):
    base = run("cot_sft", "base", lora="", init="none")
    out = run("colar", "colar", "--latent_loss", "nll", init=base)
    names = set(load_file(out / "model.safetensors"))
    assert {"scale", "latent_head.mu.weight", "model.embed.lora_rows"} <= names and not {
        "model.embed.table",
        "model.embed.weight",
    } & names
    colar, logits = solved(out)
    before = solved(base)[0].model.embed.weight
    others = [i for i in range(len(before)) if i not in colar.tok.markers.values()]
    assert torch.equal(colar.model.embed.weight[others], before[others])  # what the targets are made of
    rl = run(
        "colar_rl",
        "rl",
        "--max_steps",
        "1",
        "--group",
        "2",
        "--grad_checkpoint",
        init=out,
        lora="--lora_rank 2 --lora_targets q --lr 0",
    )
    again, same = solved(rl)
    assert torch.equal(again.latent_head.mu.weight, colar.latent_head.mu.weight) and torch.equal(
        again.scale, colar.scale
    )
    torch.testing.assert_close(same, logits)
    with pytest.raises(UserError, match="--lora_dropout 0"):
        run("colar_rl", "rl2", init=out)


def test_the_encoder_of_latent_sft_shares_the_frozen_base(run, monkeypatch):
    shared = []
    real = Trainer.run_stage

    def run_stage(self, index, stage):
        real(self, index, stage)
        if self.method.encoder is not None:
            a, b = self.method.model.blocks[0].attn.q, self.method.encoder.blocks[0].attn.q
            shared.append(a.weight is b.weight and not torch.equal(a.lora_b, b.lora_b))

    monkeypatch.setattr(Trainer, "run_stage", run_stage)
    run("latent_sft", "run")
    assert shared == [True, True, True]


def test_a_run_with_adapters_and_dropout_resumes_bit_for_bit(run, monkeypatch):
    whole = run("cot_sft", "whole")

    class Killed(BaseException):
        pass

    real = Trainer.save
    with monkeypatch.context() as patch:

        def save(self, stage, step, *rest):
            real(self, stage, step, *rest)
            if step == 2:
                raise Killed

        patch.setattr(Trainer, "save", save)
        with pytest.raises(Killed):
            run("cot_sft", "run")
    run("cot_sft", "run", "--resume")
    assert (whole / "model.safetensors").read_bytes() == (
        whole.parent / "run" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    "lora, said",
    [
        ("--lora_rank 2 --lora_targets q,x", "--lora_targets x is none of q, k"),
        ("--lora_rank -1", "--lora_rank -1 is out of range: 0 or more"),
        ("--lora_rank 2 --lora_dropout 1", "0..1"),
    ],
)
def test_adapters_that_make_no_sense_are_refused(run, lora, said):
    with pytest.raises(UserError, match=said):
        run("cot_sft", "run", lora=lora)


def test_a_frozen_embedding_near_the_mean_could_never_be_said_and_the_learned_row_is():
    """Why the markers' rows learn: what lies inside the others' hull wins no argmax, whatever the hidden state."""
    generator = torch.Generator().manual_seed(0)
    model = tiny_model(vocab=500, width=8, head_dim=4)
    with torch.no_grad():
        model.embed.weight.normal_(generator=generator)
    resize(model, 501)
    hidden = torch.randn(5000, 8, generator=generator)
    assert not (model.logits(hidden).argmax(-1) == 500).any()
    add_lora(model, LORA, [500])
    optimizer = torch.optim.Adam([model.embed.lora_rows], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.logits(hidden[:1]), torch.tensor([500])).backward()
        optimizer.step()
    assert model.logits(hidden[:1]).argmax() == 500 and model.embed(torch.tensor([500])).allclose(
        model.embed.weight[500]
    )
