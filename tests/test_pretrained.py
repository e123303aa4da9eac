"""Pretrained weights give the logits of transformers; what cannot be loaded exactly is refused by name."""

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_tokenizer import bare_folder

from minilatent.backbones.pretrained import load_pretrained, load_transformer, model_config
from minilatent.cache import KVCache
from minilatent.config import UserError
from minilatent.model import rope_frequencies

V = 300  # more rows than the 256 tokens of the tokenizer below
LLAMA = dict(
    vocab_size=V,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-3,
)
GPT2 = dict(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=96, layer_norm_epsilon=1e-3)
ROPE = dict(rope_parameters={"rope_theta": 500.0, "rope_type": "default"})
# Of the four pairs of a head of 8, one keeps its angle, one is slowed down, two lie in between.
LLAMA3_ROPE = dict(
    rope_parameters={
        "rope_theta": 500.0,
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 0.1,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
)
FAMILIES = {  # what is unlike its default cannot be passed over in silence
    "gpt2": ("GPT2", GPT2),
    "gpt2 with another inner width": ("GPT2", GPT2 | dict(n_inner=40)),
    "gpt2 untied": ("GPT2", GPT2 | dict(tie_word_embeddings=False)),
    "llama tied": ("Llama", LLAMA | ROPE | dict(tie_word_embeddings=True)),
    "llama untied": ("Llama", LLAMA | dict(tie_word_embeddings=False)),
    "llama with its own head size": ("Llama", LLAMA | ROPE | dict(head_dim=10)),
    "llama 3 with a stretched context": ("Llama", LLAMA | LLAMA3_ROPE),
    "llama without groups": ("Llama", LLAMA | dict(num_key_value_heads=4)),
    "qwen2": ("Qwen2", LLAMA | ROPE | dict(tie_word_embeddings=True)),
    "qwen3": ("Qwen3", LLAMA | ROPE | dict(head_dim=12, num_key_value_heads=1, tie_word_embeddings=True)),
    "qwen3 untied": ("Qwen3", LLAMA | ROPE | dict(head_dim=16)),
    "qwen3 with biases": ("Qwen3", LLAMA | dict(attention_bias=True)),
    "llama with biases": ("Llama", LLAMA | dict(attention_bias=True, tie_word_embeddings=True)),
    "qwen2 with a key that it does not know": ("Qwen2", LLAMA | dict(attention_bias=True)),
}


def make(folder: Path, family: str, **save):
    """A tiny transformers model with every parameter random, also norms and biases, so that nothing passes by
    being 1 or 0, and its folder with a tokenizer."""
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    kind, settings = FAMILIES[family]
    config = getattr(transformers, kind + "Config")(**settings, bos_token_id=None, eos_token_id=None)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.3, generator=generator)
    model.save_pretrained(folder, **save)
    bare_folder(folder)
    return model


def random_ids(*shape) -> torch.Tensor:
    return torch.randint(V, shape, generator=torch.Generator().manual_seed(1))


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    scale = theirs.abs().max().item()
    assert scale > 0.1, "logits of nothing prove nothing"
    assert (ours - theirs).abs().max().item() < min(1e-4, 1e-5 * max(scale, 1))


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# ---------------------------------------------------------------- parity


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, tmp_path):
    theirs = make(tmp_path, family)
    model, tok = load_pretrained(tmp_path)
    ids = random_ids(3, 40)
    expected = theirs(ids).logits
    assert_close(model.logits(model(ids))[..., :V], expected)
    model.config.attention = "naive"
    assert_close(model.logits(model(ids))[..., :V], expected)


EACH = pytest.mark.parametrize(
    "family", ["gpt2", "llama untied", "llama 3 with a stretched context", "qwen2", "qwen3"]
)


@EACH
def test_a_ragged_padded_batch_through_the_cache_gives_each_rows_own_logits(family, tmp_path):
    """Prompts padded on the right, then one token a row and step, each row at its own position."""
    theirs = make(tmp_path, family)
    model = load_transformer(tmp_path)
    ids, lengths, steps = random_ids(3, 20), torch.tensor([3, 12, 7]), 8
    expected = [theirs(ids[b : b + 1, : lengths[b] + steps]).logits[0] for b in range(3)]
    cache = KVCache(model.config, 3, 24)
    prompt = torch.where(torch.arange(12) < lengths[:, None], ids[:, :12], 7)
    logits = model.logits(model(prompt, cache=cache))
    cache.lengths = lengths.clone()
    for b in range(3):
        assert_close(logits[b, : lengths[b]], expected[b][: lengths[b]])
    for t in range(steps):
        logits = model.logits(model(ids.gather(1, lengths[:, None] + t), cache=cache))
        for b in range(3):
            assert_close(logits[b, 0], expected[b][lengths[b] + t])


@EACH
def test_64_greedy_tokens_are_those_of_transformers_also_after_the_markers_came(
    family, tmp_path, monkeypatch
):
    """Prompts of unlike lengths in one batch, the embedding with rows for our markers; theirs one by one."""
    kind, settings = FAMILIES[family]
    longer = {} if family == "gpt2" else {"max_position_embeddings": 96}
    monkeypatch.setitem(FAMILIES, family, (kind, settings | longer))
    theirs = make(tmp_path, family)
    model, tok = load_pretrained(tmp_path)
    assert model.config.vocab_size == V + 5
    ids, lengths = random_ids(3, 20), torch.tensor([3, 20, 7])
    cache = KVCache(model.config, 3, 84)
    hidden = model(ids, cache=cache)[torch.arange(3), lengths - 1]
    cache.lengths = lengths
    said = []
    for _ in range(64):
        said.append(model.logits(hidden)[:, :V].argmax(-1))
        hidden = model(said[-1][:, None], cache=cache)[:, 0]
    for b in range(3):
        prompt = ids[b : b + 1, : lengths[b]]
        expected = theirs.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False
        )
        assert torch.stack(said, 1)[b].tolist() == expected[0, lengths[b] :].tolist()
    assert len(set(torch.stack(said).flatten().tolist())) > 8, "a loop of two tokens would prove little"


def test_llama_3_slows_some_pairs_and_not_others(tmp_path):
    make(tmp_path, "llama 3 with a stretched context")
    config, _ = model_config(tmp_path / "config.json")
    plain = 500.0 ** (-torch.arange(4) / 4)
    share = rope_frequencies(config) / plain
    assert share[0] == 1 and share[3] == pytest.approx(1 / 8) and 1 / 8 < share[2] < share[1] < 1


def test_a_folder_of_the_older_transformers_gives_the_same_model(tmp_path):
    """transformers 5 writes rope_parameters and dtype, older ones rope_theta, rope_scaling, torch_dtype."""
    theirs = make(tmp_path, "llama tied")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    theta = config.pop("rope_parameters")["rope_theta"]
    config["torch_dtype"] = config.pop("dtype")
    for scaling in (None, {"type": "default"}, {"rope_type": "default"}):
        older = config | {"rope_theta": theta, "rope_scaling": scaling}
        (tmp_path / "config.json").write_text(json.dumps(older), encoding="utf-8")
        model = load_transformer(tmp_path)
        assert_close(model.logits(model(random_ids(2, 30))), theirs(random_ids(2, 30)).logits)


def test_gpt2_weights_without_prefix_and_with_its_old_buffers_load(tmp_path):
    """The hub's gpt2 is a bare GPT2Model with the causal masks stored as attn.bias."""
    theirs = make(tmp_path, "gpt2")
    tensors = {
        name.removeprefix("transformer."): t for name, t in load_file(tmp_path / "model.safetensors").items()
    }
    for i in range(2):
        tensors[f"h.{i}.attn.bias"] = torch.ones(1, 1, 64, 64).tril()
        tensors[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_transformer(tmp_path)
    assert_close(model.logits(model(random_ids(2, 30))), theirs(random_ids(2, 30)).logits)


def test_shards_make_the_same_model_and_what_a_missing_one_held_is_named(tmp_path):
    theirs = make(tmp_path, "qwen3 untied", max_shard_size="30KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    model = load_transformer(tmp_path)
    assert_close(model.logits(model(random_ids(2, 30))), theirs(random_ids(2, 30)).logits)
    names = load_file(shards[1])
    shards[1].unlink()
    refused(tmp_path, f"lacks the tensor '({'|'.join(n.removeprefix('model.') for n in names)})'")


# ---------------------------------------------------------------- what comes with a model


def test_markers_get_rows_behind_the_models_own_and_the_old_logits_stay(tmp_path):
    theirs = make(tmp_path, "llama untied")
    model, tok = load_pretrained(tmp_path)
    assert sorted(tok.markers.values()) == list(range(V, V + 5))
    assert model.config.vocab_size == tok.vocab_size == V + 5
    assert len(model.embed.weight) == len(model.head_weight) == V + 5
    logits = model.logits(model(torch.tensor([[tok.think, *tok.encode("1+1"), tok.latent, tok.end_think]])))
    assert logits.shape == (1, 6, V + 5) and logits.isfinite().all()
    ids = torch.tensor([tok.encode("She sold 48 clips.")])
    assert_close(model.logits(model(ids))[..., :V], theirs(ids).logits)


def test_weights_take_the_dtype_asked_for_and_are_float32_by_default(tmp_path):
    make(tmp_path, "gpt2")
    file = tmp_path / "model.safetensors"
    save_file({n: t.half() for n, t in load_file(file).items()}, file)
    assert {p.dtype for p in load_transformer(tmp_path).parameters()} == {torch.float32}
    assert {p.dtype for p in load_transformer(tmp_path, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_a_loaded_model_trains_and_does_not_live_in_its_file(tmp_path):
    make(tmp_path, "qwen2")
    before = {n: p.clone() for n, p in load_transformer(tmp_path).named_parameters()}
    model = load_transformer(tmp_path)
    with open(tmp_path / "model.safetensors", "r+b") as f:  # in place: a mapped file would show through
        f.write(bytes(os.path.getsize(f.name)))
    for name, p in model.named_parameters():
        assert p.device.type == "cpu" and p.requires_grad and p.is_contiguous()
        assert torch.equal(p, before[name])
    with torch.enable_grad():
        model.logits(model(random_ids(2, 9))).logsumexp(-1).sum().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and ("attn.k.bias" in name or p.grad.abs().sum() > 0)


# ---------------------------------------------------------------- refusals


def refused(folder: Path, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        load_pretrained(folder)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


LLAMA_JSON = LLAMA | {"model_type": "llama"}
GPT2_JSON = GPT2 | {"model_type": "gpt2"}


@pytest.mark.parametrize(
    "config, said",
    [
        (
            LLAMA_JSON | {"model_type": "mixtral"},
            "'mixtral' is not implemented; there is gpt2, llama, qwen2, qwen3",
        ),
        (LLAMA_JSON | {"model_type": "qwen3_moe"}, "'qwen3_moe'"),
        ({}, "model_type None"),
        ([], "model_type None"),
        (LLAMA_JSON | {"hidden_act": "gelu"}, "hidden_act = 'gelu' is not implemented, only 'silu'"),
        (GPT2_JSON | {"activation_function": "relu"}, "activation_function = 'relu'"),
        (GPT2_JSON | {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = True"),
        (GPT2_JSON | {"scale_attn_weights": False}, "scale_attn_weights = False"),
        (LLAMA_JSON | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type = 'linear'"),
        (LLAMA_JSON | {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope_type = 'yarn'"),
        (LLAMA_JSON | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "lacks 'factor'"),
        (LLAMA_JSON | {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
        (LLAMA_JSON | {"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window = True"),
        (
            LLAMA_JSON | {"model_type": "qwen3", "layer_types": ["full_attention", "sliding_attention"]},
            "sliding_attention",
        ),
        (
            LLAMA_JSON | {"rope_parameters": {"sliding_attention": {"rope_theta": 5.0}}},
            "sliding_attention layers are not implemented",
        ),
        (
            LLAMA_JSON | {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 4.0}}},
            "rope_type = 'yarn'",
        ),
        (LLAMA_JSON | {"layer_types": ["linear_attention", "full_attention"]}, "linear_attention layers"),
        (LLAMA_JSON | {"mlp_bias": True}, "mlp_bias = True is not implemented, only False"),
        (LLAMA_JSON | {"quantization_config": {"bits": 4}}, "quantization_config = "),
        ({k: v for k, v in LLAMA_JSON.items() if k != "hidden_size"}, "lacks 'hidden_size'"),
        (LLAMA_JSON | {"num_attention_heads": 0}, "damaged"),
        (LLAMA_JSON | {"hidden_size": None}, "damaged"),
    ],
)
def test_what_we_do_not_compute_is_refused_by_name(config, said, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    refused(tmp_path, said)


def test_what_changes_nothing_is_not_refused(tmp_path):
    harmless = {
        "use_sliding_window": False,
        "sliding_window": 4096,
        "rope_scaling": None,
        "quantization_config": None,
        "layer_types": ["full_attention"] * 2,
        "hidden_act": "silu",
        "model_type": "qwen2",
    }
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_JSON | harmless), encoding="utf-8")
    assert model_config(tmp_path / "config.json")[0].qkv_bias


@pytest.mark.parametrize(
    "damage, said",
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            "lacks the tensor 'layers.1.mlp.up_proj.weight'",
        ),
        (lambda t: t.pop("model.norm.weight"), "lacks the tensor 'norm.weight'"),
        (lambda t: t.pop("lm_head.weight"), "lacks the tensor 'lm_head.weight'"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(32)}),
            "has a tensor 'layers.0.self_attn.q_proj.bias'",
        ),
        (
            lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}),
            "has a tensor 'layers.2.mlp.up_proj",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(31)}),
            r"shape \(31,\), this model needs floats of shape \(32,\)",
        ),
        (lambda t: t.update({"model.norm.weight": torch.ones(32, dtype=torch.int8)}), "int8"),
        (lambda t: t.update({"model.layers.0.mlp.up_proj.weight": torch.ones(32, 48)}), r"shape \(32, 48\)"),
    ],
)
def test_a_missing_left_over_or_misshapen_tensor_is_named(damage, said, tmp_path):
    make(tmp_path, "llama untied")
    tensors = load_file(tmp_path / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    refused(tmp_path, said)


def test_a_gpt2_matrix_the_other_way_round_is_refused(tmp_path):
    make(tmp_path, "gpt2")
    tensors = load_file(tmp_path / "model.safetensors")
    name = "transformer.h.0.attn.c_attn.weight"
    save_file(tensors | {name: tensors[name].T.contiguous()}, tmp_path / "model.safetensors")
    refused(tmp_path, r"shape \(96, 32\), this model needs floats of shape \(32, 96\)")


def test_a_tied_head_in_the_file_is_the_embedding_once_more(tmp_path):
    theirs = make(tmp_path, "llama tied")
    tensors = load_file(tmp_path / "model.safetensors")
    head = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "model.safetensors")
    model = load_transformer(tmp_path)
    assert_close(model.logits(model(random_ids(2, 30))), theirs(random_ids(2, 30)).logits)


@pytest.mark.parametrize("family", ["gpt2", "llama tied"])
def test_a_tied_model_may_be_stored_as_its_head_alone(family, tmp_path):
    theirs = make(tmp_path, family)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(("wte.weight", "embed_tokens.weight")))
    embedding = tensors.pop(name)
    save_file(tensors, file)
    refused(tmp_path, f"lacks the tensor '{name.partition('.')[2]}'")
    save_file(tensors | {"lm_head.weight": embedding}, file)
    model = load_transformer(tmp_path)
    assert model.config.tied and not hasattr(model, "head")
    assert_close(model.logits(model(random_ids(2, 30))), theirs(random_ids(2, 30)).logits)
    # Where both are there, the embedding counts, as in transformers, in whatever order they come.
    save_file(tensors | {"lm_head.weight": embedding + 1, name: embedding}, file)
    assert torch.equal(load_transformer(tmp_path).embed.weight, embedding)


def test_rotary_buffers_of_any_name_are_no_weights(tmp_path):
    theirs = make(tmp_path, "llama untied")
    file = tmp_path / "model.safetensors"
    buffers = ["model.rotary_emb.inv_freq", "rotary_emb.original_inv_freq"]
    buffers += [f"model.layers.1.self_attn.rotary_emb.{name}" for name in ("inv_freq", "cos_cached")]
    save_file(load_file(file) | {name: torch.ones(4) for name in buffers}, file)
    model = load_transformer(tmp_path)
    assert_close(model.logits(model(random_ids(2, 30))), theirs(random_ids(2, 30)).logits)


def test_rope_parameters_by_type_of_layer_are_those_of_full_attention(tmp_path):
    theirs = make(tmp_path, "llama 3 with a stretched context")
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    config["rope_parameters"] = {"full_attention": config["rope_parameters"]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = load_transformer(tmp_path)
    assert_close(model.logits(model(random_ids(2, 30))), theirs(random_ids(2, 30)).logits)


def test_truncated_foreign_missing_and_pickled_weights_are_one_clear_error(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_JSON), encoding="utf-8")
    weights = tmp_path / "model.safetensors"
    refused(tmp_path, "has no model.safetensors")
    save_file({"model.norm.weight": torch.ones(32)}, weights)
    whole = weights.read_bytes()
    for content in (whole[:-1], whole[:20], b"", b"no tensors, but a text that is long enough"):
        weights.write_bytes(content)
        refused(tmp_path, "truncated or no safetensors")
    weights.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"whatever: nobody opens it")
    refused(tmp_path, "pickled weights .* never read: convert them")


def test_a_folder_without_config_or_with_a_broken_one_is_one_clear_error(tmp_path):
    refused(tmp_path, "config.json does not exist")
    (tmp_path / "config.json").write_text('{"model_type": "llama", ', encoding="utf-8")
    refused(tmp_path, "truncated or not JSON")


# ---------------------------------------------------------------- the hub


def test_a_hub_name_fetches_safetensors_and_never_pickles(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    theirs, asked = make(tmp_path, "gpt2"), []

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    model, _ = load_pretrained("someone/tiny-gpt2.v1")
    assert_close(model.logits(model(random_ids(1, 9)))[..., :V], theirs(random_ids(1, 9)).logits)
    ((name, patterns),) = asked
    assert name == "someone/tiny-gpt2.v1"
    assert not any("bin" in p or p in ("*", "*.*") or p.endswith(".py") for p in patterns)


def test_a_hub_that_cannot_be_reached_says_how_to_do_without(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def fail(*_, **__):
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=r"hub \(no route to host\).* download .* pass their folder") as error:
        load_pretrained("gpt2")
    assert "\n" not in str(error.value)


def test_a_folder_or_a_path_never_touches_the_network(tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    make(tmp_path, "gpt2")
    load_pretrained(str(tmp_path))
    for path in (tmp_path / "nothing", tmp_path / "config.json", "./nothing", "../nothing", "a/b/c", ""):
        with pytest.raises(UserError, match="no folder|does not exist"):
            load_pretrained(path)


# ---------------------------------------------------------------- a real model


def test_smollm2_gives_the_logits_of_transformers_on_100_questions_of_gsm8k():
    """In batches padded on the right, against theirs, one question at a time."""
    folder, shared = os.environ.get("MINILATENT_SMOLLM2"), os.environ.get("MINILATENT_SHARED")
    if not folder or not shared:
        pytest.skip("MINILATENT_SMOLLM2 and MINILATENT_SHARED name no model and no data")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model, tok = load_pretrained(folder)
    lines = Path(shared, "gsm8k_test.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    rows = sorted((tok.encode(json.loads(line)["question"]) for line in lines), key=len)
    worst, size = 0.0, 0.0
    for at in range(0, 100, 20):
        batch = rows[at : at + 20]
        hidden = model(torch.nn.utils.rnn.pad_sequence([torch.tensor(r) for r in batch], True))
        for h, row in zip(hidden, batch):  # the last logits, which depend on all the rest
            ours, expected = model.logits(h[len(row) - 1])[:49152], theirs(torch.tensor([row])).logits[0, -1]
            worst = max(worst, (ours - expected).abs().max().item())
            size = max(size, expected.abs().max().item())
            assert ours.argmax() == expected.argmax()
    print(f"\nlargest difference of a logit: {worst:.1e} of {size:.0f}")
    assert worst < 1e-5 * size


def test_smollm2_gives_the_logits_of_transformers_on_real_text():
    folder = os.environ.get("MINILATENT_SMOLLM2")
    if not folder:
        pytest.skip("MINILATENT_SMOLLM2 names no folder of SmolLM2-135M")
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model, tok = load_pretrained(folder)
    worst = 0.0
    for text in (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
        "How many clips did Natalia sell altogether in April and May?\n<<48/2=24>> <<48+24=72>>",
        "def area(r):\n    return 3.14159 * r ** 2\n",
        "The café's 1,234 guests — «naïve» 🐕 — left at 7:30 p.m.",
    ):
        ids = torch.tensor([tok.encode(text)])
        ours, expected = model.logits(model(ids))[..., : theirs.config.vocab_size], theirs(ids).logits
        worst = max(worst, (ours - expected).abs().max().item())
        assert (ours.argmax(-1) == expected.argmax(-1)).all()
    print(f"\nlargest difference of a logit: {worst:.1e}")
    assert worst < 1e-4
