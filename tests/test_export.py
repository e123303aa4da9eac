"""There and back: what was trained here gives the same logits in transformers."""

import pytest
import torch
from conftest import FAMILIES as OURS
from conftest import tiny_model, train
from test_pretrained import EACH, FAMILIES, V, assert_close, make, random_ids

from minilatent import run
from minilatent.backbones.pretrained import load_pretrained
from minilatent.config import UserError
from minilatent.tokenizer import Tiktoken, Tokenizer
from minilatent.tools import export as module
from minilatent.tools.export import export


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def theirs_from(folder):
    transformers = pytest.importorskip("transformers")
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_round_trip_gives_the_same_weights_and_the_same_logits(family, tmp_path):
    """Loaded, its vocabulary grown for our markers, written back: the old logits are the original's."""
    original = make(tmp_path / "a", family)
    model, tok = load_pretrained(tmp_path / "a")
    export(model, tok, tmp_path / "b")
    theirs, _ = theirs_from(tmp_path / "b")
    ids = random_ids(2, 40)
    assert_close(theirs(ids).logits[..., :V], original(ids).logits)
    assert_close(model.logits(model(ids)), theirs(ids).logits)
    again, tok2 = load_pretrained(tmp_path / "b")
    assert again.config == model.config and tok2.vocab_size == tok.vocab_size
    for p, q in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("family", ["mini", "gpt2", "llama"])
def test_a_model_that_was_never_theirs_can_go_there(family, tmp_path, tok):
    model = tiny_model(tok.vocab_size, **{"n_head": 2, **OURS[family]})
    export(model, tok, tmp_path / "out")
    theirs, words = theirs_from(tmp_path / "out")
    text = "Ava has 12 apples. <think><<12*3=36>>"
    ids = words(text, return_tensors="pt")["input_ids"]
    assert ids[0].tolist() == [*tok.encode("Ava has 12 apples. "), tok.think, *tok.encode("<<12*3=36>>")]
    assert_close(model.logits(model(ids)), theirs(ids).logits)
    assert (words.eos_token_id, words.pad_token_id) == (tok.eos, tok.pad)
    assert (theirs.config.eos_token_id, theirs.config.pad_token_id) == (tok.eos, tok.pad)


@EACH
def test_their_greedy_generation_is_ours(family, tmp_path):
    make(tmp_path / "a", family)
    model, tok = load_pretrained(tmp_path / "a")
    export(model, tok, tmp_path / "b")
    theirs, _ = theirs_from(tmp_path / "b")
    theirs.generation_config.eos_token_id = None
    ids = random_ids(1, 8)
    expected = theirs.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)
    for _ in range(64):
        ids = torch.cat([ids, model.logits(model(ids)[:, -1:]).argmax(-1)], dim=1)
    assert torch.equal(ids, expected)


def test_the_command_exports_a_run_and_says_what_stays_behind(tmp_path, one_tokenizer, monkeypatch, capsys):
    with torch.enable_grad():
        train(tmp_path / "run", "cot_sft", "--max_steps", 2)
    module.main([str(tmp_path / "run"), str(tmp_path / "hf")])
    method = run.load_run(tmp_path / "run", torch.device("cpu"))
    theirs, words = theirs_from(tmp_path / "hf")
    question = "Ava has 3 eggs. How many eggs does Ava have?"
    ids = words.apply_chat_template([{"role": "user", "content": question}], return_dict=False)
    assert ids == method.prompt(question)
    ids = torch.tensor([ids])
    assert_close(method.model.logits(method.model(ids)), theirs(ids).logits)
    files = {"config", "generation_config", "tokenizer", "tokenizer_config"}
    assert {p.stem for p in (tmp_path / "hf").iterdir()} == {"model", *files}
    method.register_module("latent_head", torch.nn.Linear(2, 2))
    monkeypatch.setattr(module, "load_run", lambda *_: method)
    module.main([str(tmp_path / "run"), str(tmp_path / "hf2")])
    assert "left out: latent_head" in capsys.readouterr().out


def test_what_cannot_be_exported_is_refused_in_one_line_and_nothing_is_written(tmp_path, tok):
    odd = tiny_model(tok.vocab_size, n_kv_head=1, qkv_bias=True, qk_norm=True)  # Qwen3 has no such biases
    with pytest.raises(UserError, match="no family of transformers"):
        export(odd, tok, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work", encoding="utf-8")
    with pytest.raises(UserError, match="is not empty"):
        export(tiny_model(tok.vocab_size), tok, tmp_path / "mine")
    taken = Tokenizer(Tiktoken(tok.backend.pattern, [*tok.backend.ranks, b"<pad>"]))
    with pytest.raises(UserError, match="has an ordinary token '<pad>'"):
        export(tiny_model(taken.vocab_size), taken, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no run folder"):
        module.main([str(tmp_path / "nothing"), str(tmp_path / "hf")])
