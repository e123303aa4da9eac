"""Adapters: only they are trained, merged they are the same model, and a run folder needs its base."""

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, Killed, kill_when, same_run, tiny_model, train
from safetensors.torch import load_file

from minilatent import checkpoint, run
from minilatent.backbones.lora import LoRALinear, add_lora, merge
from minilatent.backbones.pretrained import resize
from minilatent.config import Config, UserError
from minilatent.fast import Fast
from minilatent.optim import make_optimizers
from minilatent.trainer import Trainer

MARKERS = [2, 37, 38, 39]  # one is an old token (a model's own end), three are new
LORA = Config(lora_rank=3, lora_alpha=12.0)
families = pytest.mark.parametrize("family", FAMILIES)
IDS = torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(0))
EXACT = dict(rtol=0, atol=1e-12)


def model_of(family="mini"):
    return tiny_model(**{**FAMILIES[family], "n_head": 2}).double()


def logits(model):
    return model.logits(model(IDS))


def with_adapters(family="mini", config=LORA):
    """A tiny model in float64 whose adapters and marker rows are no longer what they began as."""
    model = model_of(family)
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
    plain, model = model_of(family), model_of(family)
    add_lora(model, LORA, MARKERS)
    assert torch.equal(logits(model.double()), logits(plain))
    model = with_adapters(family)
    before = logits(model)
    assert (before - logits(plain)).abs().max() > 0.1
    merge(model)
    torch.testing.assert_close(logits(model), before, **EXACT)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert all(p.requires_grad for p in model.parameters())


def test_an_adapter_is_the_papers_formula_and_every_matrix_of_a_layer_has_one():
    model = with_adapters()
    layer, x = model.blocks[1].mlp.down, torch.randn(5, 24, dtype=torch.float64)
    expected = x @ layer.base.weight.T + (12 / 3) * x @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(layer(x), expected)
    adapters = [name for name, module in model.named_modules() if isinstance(module, LoRALinear)]
    assert len(adapters) == 2 * 7 and all(name.startswith("blocks.") for name in adapters)


@families
def test_only_adapters_and_the_markers_rows_have_gradients_and_the_rows_that_of_the_whole_table(family):
    """The rows through both doors, embedding and head, against the same model with everything trained."""
    model = with_adapters(family)
    plain = merge(copy.deepcopy(model))
    for m in (model, plain):
        (logits(m) ** 2).mean().add(logits(m).logsumexp(-1).mean()).backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in model.named_parameters() if "lora_" in name}
    assert not checkpoint.frozen(model) & trained and set(checkpoint.own_state(model)) == trained
    torch.testing.assert_close(model.embed.lora_rows.grad, plain.embed.weight.grad[MARKERS])
    if not model.config.tied:
        torch.testing.assert_close(model.head.lora_rows.grad, plain.head.weight.grad[MARKERS])
    a, w = model.blocks[0].attn.q, plain.blocks[0].attn.q
    torch.testing.assert_close(a.lora_b.grad, 4 * w.weight.grad @ a.lora_a.T)  # W' = W + 4 B A


@pytest.mark.parametrize("tied", [True, False])
def test_muon_leaves_the_rows_of_the_table_to_adamw(tied):
    model = tiny_model(tied=tied)
    add_lora(model, LORA, MARKERS)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    adamw, muon = make_optimizers(named, model, 1e-3, "muon", Config())
    names = {id(p): name for name, p in named.items()}
    by_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    assert by_muon == {name for name in named if name.endswith(("lora_a", "lora_b"))}
    assert sum(len(group["params"]) for group in adamw.param_groups) == (1 if tied else 2)


def test_a_copy_has_its_own_adapters_and_shares_what_is_frozen():
    model = with_adapters()
    twin = copy.deepcopy(model)
    a, b = model.blocks[0].attn.q, twin.blocks[0].attn.q
    assert a.base.weight is b.base.weight
    assert a.lora_a is not b.lora_a and torch.equal(a.lora_a, b.lora_a)
    before = logits(model)
    with torch.no_grad():
        b.lora_b.add_(1.0)
        twin.embed.lora_rows.add_(1.0)
    assert (logits(twin) - before).abs().max() > 0.1
    assert torch.equal(logits(model), before)
    merge(twin)
    assert torch.equal(logits(model), before)


def test_dropout_acts_in_training_only():
    model = with_adapters(config=Config(lora_rank=3, lora_dropout=0.5))
    assert torch.equal(model(IDS), model(IDS))
    model.train()
    assert not torch.equal(model(IDS), model(IDS))


@families
def test_recomputed_activations_give_the_same_gradients(family):
    def gradients(recompute: bool):
        model, calls, states = model_of(family).train(), [], []
        model.fast = Fast(recompute=True) if recompute else None
        model.blocks[0].attn.q.register_forward_hook(lambda *_: calls.append(0))
        hidden = model(IDS, states=states)
        (model.logits(hidden) ** 2).mean().add(states[0].sin().mean()).backward()
        assert len(calls) == 1 + recompute
        return [p.grad for p in model.parameters()]

    for a, b in zip(gradients(False), gradients(True)):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_a_frozen_row_near_the_mean_is_never_predicted_and_the_learned_row_is():
    """Why the markers' rows are trained: a point inside the others' hull wins no argmax, whatever the hidden
    state."""
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
        F.cross_entropy(model.logits(hidden[:1]), torch.tensor([500])).backward()
        optimizer.step()
    assert model.logits(hidden[:1]).argmax() == 500
    assert model.embed(torch.tensor([500])).allclose(model.embed.weight[500])


# ------------------------------------------------------------------ whole runs

RANK = ("--lora_rank", 1)
DROPOUT = (*RANK, "--lora_dropout", 0.1, "--lr", 0.01)


@pytest.fixture(scope="module")
def runs(tok, tmp_path_factory):
    """A base, and runs of adapters on it: folders by name. With the trained methods, and for Latent-SFT
    whether each stage's encoder shared the base."""
    folder = tmp_path_factory.mktemp("lora")
    found = SimpleNamespace(folder=folder, trained={}, shared=[])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "mini_tokenizer", lambda: tok)
        fit, run_stage = Trainer.fit, Trainer.run_stage

        def spy_fit(self, *args):
            fit(self, *args)
            found.trained[self.config.method] = self.method.eval()

        def spy_run_stage(self, *args):
            run_stage(self, *args)
            if getattr(self.method, "encoder", None) is not None:
                a, b = (m.blocks[0].attn.q for m in (self.method.model, self.method.encoder))
                found.shared.append(a.base is b.base and not torch.equal(a.lora_b, b.lora_b))

        patch.setattr(Trainer, "fit", spy_fit)
        patch.setattr(Trainer, "run_stage", spy_run_stage)
        train(folder / "base", "cot_sft", "--lr", 0.01)
        train(folder / "cot_sft", "cot_sft", "--init", folder / "base", *DROPOUT)
        train(folder / "latent_sft", "latent_sft", "--init", folder / "base", *DROPOUT)
        train(folder / "colar", "colar", "--init", folder / "base", "--latent_loss", "nll", *DROPOUT)
    return found


def answer_logits(method):
    ids = torch.tensor([method.prompt("Ava has 3 eggs. How many eggs does Ava have?")])
    return method.model.logits(method.model(ids))


def loaded(folder):
    return run.load_run(folder, torch.device("cpu"))


@pytest.mark.parametrize("name", ["cot_sft", "latent_sft"])
def test_a_run_saves_adapters_alone_and_is_loaded_with_its_base(runs, name, tmp_path, monkeypatch):
    base, out = runs.folder / "base", runs.folder / name
    files = [out / "model.safetensors", *(out / "state").glob("*.safetensors")]
    files = [file for file in files if "labels" not in file.name]
    tensors = [tensor for file in files for tensor in load_file(file) if not tensor.startswith("optimizer")]
    assert len(files) >= 3 and all("lora_" in tensor for tensor in tensors)
    size = lambda folder: (folder / "model.safetensors").stat().st_size
    assert size(out) < 0.2 * size(base)
    assert json.loads((out / "config.json").read_text(encoding="utf-8"))["base"]["init"] == str(base)
    method, found = loaded(out), answer_logits(loaded(out))
    torch.testing.assert_close(found, answer_logits(runs.trained[name]), rtol=1e-5, atol=1e-5)
    assert (found - answer_logits(loaded(base))).abs().max() > 1e-3
    assert not any(isinstance(m, LoRALinear) for m in method.modules())  # merged: as fast as any
    monkeypatch.chdir(tmp_path)  # the way to the base does not depend on the folder
    assert torch.equal(answer_logits(loaded(out)), found)


def test_a_run_of_adapters_is_a_base_for_another(runs, tmp_path, one_tokenizer):
    train(tmp_path / "run", "no_cot", "--max_steps", 1, "--init", runs.folder / "cot_sft", *RANK, "--lr", 0)
    again, before = loaded(tmp_path / "run"), loaded(runs.folder / "cot_sft")
    for a, b in zip(again.model.parameters(), before.model.parameters()):
        torch.testing.assert_close(a, b)


def test_a_decoder_with_adapters_is_loaded_and_merged_with_the_model(runs, tmp_path, one_tokenizer):
    """SIM-CoT's decoder is a copy of the model, adapters included."""
    train(tmp_path / "run", "sim_cot", "--init", runs.folder / "base", *DROPOUT)
    names = set(load_file(tmp_path / "run/model.safetensors"))
    assert any(name.startswith("decoder.") for name in names) and all("lora_" in name for name in names)
    method = loaded(tmp_path / "run")
    ids = torch.tensor([method.prompt("Ava has 3 eggs.")])
    assert not torch.equal(method.decoder(ids), method.model(ids))  # trained on a loss of its own
    assert not any(isinstance(m, LoRALinear) for m in method.modules())


def test_adapters_of_a_base_that_has_changed_are_refused(runs, tmp_path):
    base, out = (shutil.copytree(runs.folder / name, tmp_path / name) for name in ("base", "cot_sft"))
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    config["base"]["init"] = str(base)
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    loaded(out)
    tensors, meta = checkpoint.load_tensors(base / "model.safetensors")
    tensors["model.norm.weight"] += 0.01
    checkpoint.save_tensors(base / "model.safetensors", tensors, meta)
    with pytest.raises(UserError, match=f"adapters of {base}, which is another model now"):
        loaded(out)


def test_colar_saves_its_head_with_the_adapters_and_rl_goes_on_from_both(runs, tmp_path, one_tokenizer):
    out = runs.folder / "colar"
    names = set(load_file(out / "model.safetensors"))
    assert {"scale", "latent_head.mu.weight", "model.embed.lora_rows"} <= names
    assert not {name for name in names if name.startswith("model.embed.") and "lora" not in name}
    colar, before = loaded(out), loaded(runs.folder / "base").model.embed.weight
    others = [i for i in range(len(before)) if i not in colar.tok.markers.values()]
    assert torch.equal(colar.model.embed.weight[others], before[others])  # what the targets are made of
    options = ("--init", out, "--max_steps", 1, "--group", 2, "--grad_checkpoint")
    train(tmp_path / "rl", "colar_rl", *options, *RANK, "--lr", 0)
    again = loaded(tmp_path / "rl")
    assert torch.equal(again.latent_head.mu.weight, colar.latent_head.mu.weight)
    assert torch.equal(again.scale, colar.scale)
    torch.testing.assert_close(answer_logits(again), answer_logits(colar))
    with pytest.raises(UserError, match="--lora_dropout 0"):
        train(tmp_path / "rl2", "colar_rl", *options, *DROPOUT)


def test_the_encoder_of_latent_sft_shares_the_frozen_base(runs):
    assert runs.shared == [True, True, True]


def test_a_run_with_adapters_and_dropout_resumes_bit_for_bit(runs, tmp_path, one_tokenizer):
    options = ("cot_sft", "--init", runs.folder / "base", *DROPOUT)
    with pytest.MonkeyPatch.context() as patch:
        kill_when(patch, "save_state", lambda index, step: step == 2)
        with pytest.raises(Killed):
            train(tmp_path / "run", *options)
    train(tmp_path / "run", *options, "--resume")
    same_run(tmp_path / "run", runs.folder / "cot_sft")


@pytest.mark.parametrize(
    "options, said", [(("--lora_rank", -1), "--lora_rank -1 is out of range: 0 or more")]
)
def test_adapters_that_make_no_sense_are_refused(tmp_path, one_tokenizer, options, said):
    with pytest.raises(UserError, match=said):
        train(tmp_path / "run", "cot_sft", *options)
