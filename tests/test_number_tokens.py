"""Numbers of up to three digits as one token, as Llama 3 has them, in tokenizers that cut them otherwise."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from conftest import FAMILIES, tiny_model, train
from safetensors.torch import load_file
from test_tokenizer import KINDS, NASTY, QWEN_PATTERN, assert_same, bare_folder, check_markers, random_texts
from test_tokenizer import train as train_tokenizer

from minilatent import run
from minilatent.backbones.hf_tokenizer import has_number_tokens
from minilatent.backbones.pretrained import load_pretrained
from minilatent.config import UserError
from minilatent.tokenizer import FILE, Tokenizer
from minilatent.tools.export import byte_letters, export, tokenizer_json

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}  # of SmolLM2, before GPT-2's pre-tokenizer


def folder_of(kind: str, folder: Path, vocab_size: int = 0) -> Path:
    """A folder with a tokenizer of that kind; vocab_size: rows of the model's embedding."""
    data = json.loads(train_tokenizer("gpt2" if kind == "smollm2" else kind).to_str())
    if kind == "smollm2":
        data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [DIGITS, data["pre_tokenizer"]]}
    vocab = data["model"]["vocab"]  # of few texts: Llama 2's kind has not met every digit
    data["model"]["vocab"] = vocab | {d: len(vocab) + i for i, d in enumerate("0123456789") if d not in vocab}
    (folder / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"vocab_size": vocab_size}), encoding="utf-8")
    return folder


def groups(text: str) -> list[str]:
    return re.findall(r"[0-9]{1,3}", text)


def number_pieces(tok, text: str) -> list[str]:
    pieces = [tok.backend.decode([i]) for i in tok.encode(text)]
    return [piece for piece in pieces if re.search("[0-9]", piece)]


def spelled(tok, ids: list[int], plain) -> list[int]:
    """The ids with each number written as the tokenizer without number tokens does."""
    pieces = [(i, tok.backend.decode([i])) for i in ids]
    return [j for i, piece in pieces for j in (plain.encode(piece) if groups(piece) == [piece] else [i])]


# ---------------------------------------------------------------- the tokenizer


@pytest.mark.parametrize("kind", [*KINDS, "smollm2"])
def test_a_run_of_digits_is_cut_from_the_left_into_tokens_of_three(kind, tmp_path):
    plain = Tokenizer.from_hf(folder_of(kind, tmp_path, 2000))
    tok = Tokenizer.from_hf(tmp_path, number_tokens=True)
    assert not has_number_tokens(plain.backend) and has_number_tokens(tok.backend)
    rng = random.Random(0)
    runs = [
        *map(str, range(0, 30_000, 61)),
        *(f"{n:0{width}}" for n in range(0, 120, 7) for width in range(1, 8)),
    ]
    runs += ["".join(rng.choices("0123456789", k=rng.randrange(1, 40))) for _ in range(200)]
    frames = ("{}", "She sold {} clips", "<<{}/2=24>>", "x{}y", "-{}.", "${},000", "a  {}\n", "½{}²", "٣{}")
    for i, digits in enumerate(runs):
        text = frames[i % len(frames)].format(digits)
        assert number_pieces(tok, text) == groups(text), text
        assert tok.decode(tok.encode(text)) == plain.decode(plain.encode(text)), text
    assert len({i for n in range(1000) for i in tok.encode(f"x{n}y")}) >= 1000  # each has its own


@pytest.mark.parametrize("kind", [*KINDS, "smollm2"])
def test_all_but_numbers_is_as_it_was(kind, tmp_path):
    """Where digits were tokens of their own, the new tokens spelled out give the old ids, whatever the text;
    where a space could be part of a number, the text without digits does."""
    plain = Tokenizer.from_hf(folder_of(kind, tmp_path, 2000))
    tok = Tokenizer.from_hf(tmp_path, number_tokens=True)
    for text in NASTY + random_texts(200):
        if kind not in ("qwen", "llama3", "smollm2"):
            text = re.sub("[0-9]", "", text)
        assert spelled(tok, tok.encode(text), plain) == plain.encode(text), repr(text)


@pytest.mark.parametrize("kind", [*KINDS, "smollm2"])
def test_new_tokens_come_behind_the_models_rows_and_before_new_markers_and_are_kept(kind, tmp_path):
    plain = Tokenizer.from_hf(folder_of(kind, tmp_path, 2000))
    tok = Tokenizer.from_hf(tmp_path, number_tokens=True)
    had = [f"{n:0{width}}" in plain.backend.library.get_vocab() for width in (2, 3) for n in range(10**width)]
    assert tok.numbers == list(range(2000, 2000 + 1100 - sum(had)))  # what was one token stays as it is
    assert tok.think == 3100 - sum(had) == tok.base_size and tok.vocab_size == tok.base_size + 5 - (
        plain.eos < 2000
    )
    names = [tok.name(i) for i in tok.numbers]
    assert {"48", "007", "00", "999"} - set(names) <= plain.backend.library.get_vocab().keys()
    check_markers(tok)
    tok.save(tmp_path)
    again = Tokenizer.load(tmp_path)
    assert_same(tok, again)
    assert again.numbers == tok.numbers and number_pieces(again, "1234") == ["123", "4"]


@pytest.mark.parametrize("kind", [*KINDS, "smollm2"])
def test_a_tokenizer_that_has_them_stays_as_it_is(kind, tmp_path):
    """Also after it was exported."""
    tok = Tokenizer.from_hf(folder_of(kind, tmp_path), number_tokens=True)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(tok)), encoding="utf-8")
    once, twice = Tokenizer.from_hf(tmp_path), Tokenizer.from_hf(tmp_path, number_tokens=True)
    assert once.numbers == twice.numbers == [] and once.backend.data == twice.backend.data
    assert once.markers == twice.markers == tok.markers
    for text in NASTY + random_texts(100):
        assert once.encode(text) == twice.encode(text) == tok.encode(text)


@pytest.mark.parametrize("step", [DIGITS, {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}}])
def test_other_numerals_stay_alone_where_they_were(step, tmp_path):
    """Though this vocabulary has ½½, as two letters of two bytes."""
    step = step if step is DIGITS else step | {"behavior": "Isolated", "invert": False}
    byte_level = {**BYTE_LEVEL, "use_regex": step is DIGITS}
    halves = {"\u00c2\u00bd": 256, "\u00c2\u00bd\u00c2\u00bd": 257}
    vocab = {c: i for i, c in enumerate(byte_letters())} | halves
    model = {"type": "BPE", "vocab": vocab, "merges": [["\u00c2", "\u00bd"], ["\u00c2\u00bd"] * 2]}
    pre = {"type": "Sequence", "pretokenizers": [step, byte_level]}
    bare_folder(tmp_path, model=model, pre_tokenizer=pre)
    tok = Tokenizer.from_hf(tmp_path, number_tokens=True)
    assert tok.encode("x½½ ½") == Tokenizer.from_hf(tmp_path).encode("x½½ ½") == [120, 256, 256, 32, 256]
    assert number_pieces(tok, "12½½3456") == ["12", "345", "6"]


def test_merges_written_as_one_text_each_are_read(tmp_path):
    data = json.loads((folder_of("gpt2", tmp_path) / "tokenizer.json").read_text(encoding="utf-8"))
    tok = Tokenizer.from_hf(tmp_path, number_tokens=True)
    data["model"]["merges"] = [" ".join(merge) for merge in data["model"]["merges"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    assert_same(tok, Tokenizer.from_hf(tmp_path, number_tokens=True))


SPLIT = {"type": "Split", "pattern": {"String": "1"}, "behavior": "Isolated", "invert": False}
NO_NINE = {c: i for i, c in enumerate(byte_letters()) if c != "9"}


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [SPLIT, BYTE_LEVEL]}},
        {"model": {"type": "BPE", "vocab": NO_NINE, "merges": []}},
    ],
)
def test_a_tokenizer_that_cuts_numbers_by_rules_of_its_own_is_refused(changes, tmp_path):
    bare_folder(tmp_path, **changes)
    with pytest.raises(UserError, match="number_tokens cannot change how its tokenizer cuts numbers"):
        Tokenizer.from_hf(tmp_path, number_tokens=True)
    assert not Tokenizer.from_hf(tmp_path).numbers


def test_gpt2s_weights_alone_have_no_tokenizer_to_extend(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    with pytest.raises(UserError, match="tokenizer.json does not exist"):
        Tokenizer.from_hf(tmp_path, number_tokens=True)


@pytest.mark.parametrize("numbers", [[10**6], [-1], [3.0], ["10"], [True], None, 5, {"a": 1}])
def test_a_damaged_list_of_numbers_is_one_clear_error(numbers, tmp_path):
    Tokenizer.from_hf(folder_of("smollm2", tmp_path), number_tokens=True).save(tmp_path)
    data = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    (tmp_path / FILE).write_text(json.dumps(data | {"numbers": numbers}), encoding="utf-8")
    with pytest.raises(UserError, match="damaged or not ours"):
        Tokenizer.load(tmp_path)


# ---------------------------------------------------------------- the model


def model_folder(folder: Path, family: str = "mini", kind: str = "smollm2") -> Path:
    """A whole Hugging Face folder of a tiny model."""
    (folder / "tok").mkdir(parents=True)
    tok = Tokenizer.from_hf(folder_of(kind, folder / "tok"))
    export(
        tiny_model(tok.vocab_size, **{**FAMILIES[family], "n_head": 2, "context": 256}), tok, folder / "hf"
    )
    return folder / "hf"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_numbers_row_begins_at_the_mean_of_its_digits_the_first_weighing_most(family, tmp_path):
    folder = model_folder(tmp_path, family)
    old, _ = load_pretrained(folder)
    model, tok = load_pretrained(folder, number_tokens=True)
    assert model.config.vocab_size == tok.vocab_size == len(model.head_weight)
    tables = [(old.embed.weight, model.embed.weight)]
    tables += [] if model.config.tied else [(old.head.weight, model.head.weight)]
    assert len(tables) == 1 + (family == "llama")
    for before, after in tables:
        assert torch.equal(after[: len(before)], before)  # the old rows, and with them the old logits
        digit = {d: before[tok.encode(d)[-1]] for d in "0123456789"}
        spread = before.std(0)
        for text in ("73", "37", "007", "905"):
            share = [2 / 3, 1 / 3] if len(text) == 2 else [4 / 7, 2 / 7, 1 / 7]
            start = sum(s * digit[d] for s, d in zip(share, text))
            (row,) = tok.encode(text)
            assert 0 < ((after[row] - start) / spread).abs().mean() < 0.15
        rows = after[tok.numbers]
        apart = torch.cdist(rows, rows).fill_diagonal_(1)
        assert apart.min() > 0.01 * spread.norm(), "no two are the same, 11 and 111 neither"


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A Hugging Face folder, and runs from it: all weights, then another method from that; adapters."""
    root = tmp_path_factory.mktemp("numbers")
    hf = model_folder(root)
    options = ("--init", hf, "--number_tokens", "--lr", 0.01)
    train(root / "full", "cot_sft", *options)
    train(root / "next", "no_cot", "--init", root / "full", "--max_steps", 1)
    train(root / "adapters", "cot_sft", *options, "--lora_rank", 1)
    return root


def loaded(folder: Path):
    return run.load_run(folder, torch.device("cpu"))


@pytest.mark.parametrize("name", ["full", "next", "adapters"])
def test_a_run_folder_knows_its_number_tokens(runs, name):
    tok = loaded(runs / name).tok
    assert len(tok.numbers) > 1000 and number_pieces(tok, "12000+345=12345") == groups("12000+345=12345")


def test_adapters_train_the_new_rows_and_their_file_holds_no_others(runs):
    tensors, method = load_file(runs / "adapters" / "model.safetensors"), loaded(runs / "adapters")
    base, tok = load_pretrained(runs / "hf", number_tokens=True)
    new = [*tok.markers.values(), *tok.numbers]
    assert all("lora_" in name for name in tensors)
    assert tensors["model.embed.lora_rows"].shape == (len(new), 16) and method.tok.new_ids == new
    change = (method.model.embed.weight - base.embed.weight).abs().amax(1)
    assert (change[new] > 0).all() and change.count_nonzero() == len(new)


def test_resume_cannot_change_it_and_goes_on_with_it(runs, capsys):
    options = ("cot_sft", "--init", runs / "hf", "--resume", "--lr", 0.01)
    with pytest.raises(UserError, match="started with --number_tokens True; --resume cannot change it"):
        train(runs / "full", *options, "--no-number_tokens")
    train(runs / "full", *options, "--number_tokens")
    assert "is finished" in capsys.readouterr().out


def test_what_gets_no_new_tokens_says_so(runs, tmp_path, one_tokenizer, capsys):
    no_cot = ("no_cot", "--max_steps", 1, "--number_tokens", "--init")
    train(tmp_path / "a", *no_cot, runs / "hf")
    assert "numbers to 999 are single tokens: 1" in capsys.readouterr().out
    train(tmp_path / "b", *no_cot, runs / "full")  # a run that has them
    assert "numbers to 999 are single tokens: none are new" in capsys.readouterr().out
    train(tmp_path / "plain", "no_cot", "--max_steps", 1, "--init", runs / "hf")
    for init in ("none", tmp_path / "plain"):
        with pytest.raises(UserError, match=f"number_tokens: {init} has no tokenizer.json to extend"):
            train(tmp_path / "c", *no_cot, init)
    assert not (tmp_path / "c").exists()


def test_an_exported_run_gives_transformers_the_same_ids_and_the_same_logits(runs, tmp_path):
    text = "Ava has 1234 apples, 007 and 48. <<48/2=24>> <<24*1000=24000>>"
    for name in ("full", "adapters"):
        method, hf = loaded(runs / name), tmp_path / name
        export(method.model, method.tok, hf)
        ids = method.tok.encode(text)
        again, tok = load_pretrained(hf)
        assert tok.encode(text) == ids and tok.markers == method.tok.markers
        assert load_pretrained(hf, number_tokens=True)[1].encode(text) == ids
        x = torch.tensor([ids])
        with torch.no_grad():
            logits = method.model.logits(method.model(x))
            assert torch.equal(again.logits(again(x)), logits)
        transformers = pytest.importorskip("transformers")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
        words = transformers.AutoTokenizer.from_pretrained(hf)
        assert words(text, add_special_tokens=False)["input_ids"] == ids and words.decode(ids) == text
        torch.testing.assert_close(theirs(x).logits.detach(), logits, rtol=1e-4, atol=1e-4)
