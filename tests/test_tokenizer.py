"""Text goes in and the same text comes out; markers stay markers; a Hugging Face folder's tokenizer is converted exactly."""
import itertools
import json
import os
import random
import unicodedata
from pathlib import Path

import pytest
import tiktoken

from minilatent.config import UserError
from minilatent.hf_tokenizer import DIGITS_PATTERN, GPT2_PATTERN, byte_letters, write
from minilatent.tokenizer import FILE, MARKERS, Tokenizer, mini_tokenizer

QWEN_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]+|\s+(?!\S)|\s+")
LLAMA3_PATTERN = QWEN_PATTERN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
SOME_PATTERN = r"\p{L}+| [0-9]+"                         # leaves gaps between its matches, which are pieces too

NASTY = [
    "", " ", "  ", "\n", " \n\n \t x", "\r\n\r\n", "a\u00a0b\u2003c\u3000d", "tab\tand\x0bvt\x85nel\u2028ls",
    "Ava has 12 apples.", "16-3=13", "<<16-3=13>> <<13*2=26>>", "x  5", "x   5 6  7", "  5", "5  ", "5 \n 6", "a5b 5c 'd5's",
    "123456789012345678901234567890", "0.5 1,234.00 007 -3", "½ Ⅷ ٣ ² 五 12½",
    "I'll they'LL 'tis we've'd o'clock 's", "don\u2019t \u017f '\u017f 'S",
    "naïve nai\u0308ve café Å Å ﬁ ｆｕｌｌ", "e\u0301\u0301\u0323", "हिन्दी ไทย 한국어 日本語 العربية",
    "🙂👩‍👩‍👧🏽🇦🇹 ⟪⟫", "\x00\x01\x04\x13\x1d\x1f\x7f", "\u200b\ufeff\ufffd\U000e0001\U0010ffff\U00050000",
    "<think>2</think><latent><pad><eos>", "<|endoftext|><|im_start|>user", "Ġhello Ċ ▁x", "!!!???...——", "a" * 300, " " * 50 + "x",
]


def random_texts(count: int) -> list[str]:
    """Strings over characters of every class that a pre-tokenizer tells apart."""
    rng = random.Random(0)
    letters = [" ", " ", "\n", "\r", "\t", "\u00a0", "a", "the", "É", "é", "\u0301", "日", "1", "23", "½", "'", "'s", "'ll", "S",
               "!", "=", "<<", ">>", "🙂", "\u200d", "<think>", "<|endoftext|>", "_", "\U00050000"]
    return ["".join(rng.choices(letters, k=rng.randrange(1, 30))) for _ in range(count)]


@pytest.fixture(scope="module")
def mini() -> Tokenizer:
    return mini_tokenizer()


# ---------------------------------------------------------------- mini

def test_any_text_comes_back_from_minis_tokenizer(mini):
    for text in NASTY + random_texts(500):
        assert mini.decode(mini.encode(text)) == text


def test_half_a_surrogate_pair_does_not_stop_the_tokenizer(mini):
    """A JSON file may hold "\\ud83d": Python reads it, UTF-8 cannot say it."""
    assert mini.decode(mini.encode("a\ud83db")) == "a\ufffdb"


def test_a_number_to_99_is_the_same_single_token_in_a_question_and_in_a_chain(mini):
    for n in range(100):
        (token,) = mini.encode(str(n))
        for text in (f"Ava has {n} apples.", f"{n} apples, and {n}.", f"<<{n}*{n}={n}>>", f"#{n}\n"):
            assert mini.encode(text).count(token) == text.count(str(n)), text


def test_one_step_of_a_chain_and_its_separator_are_eight_tokens(mini):
    assert len(mini.encode("<<16-3=13>> ")) == 8
    assert len(mini.encode("<<16-3=13>> <<13*2=26>> <<26/2=13>> <<13+9=22>> ")) == 32
    assert [mini.name(i) for i in mini.encode("<<16-3=13>> ")] == ["<<", "16", "-", "3", "=", "13", ">>", "·"]


def test_the_grammars_own_words_are_single_tokens(mini):
    from minilatent.tasks import words as grammar
    questions = [e.question for e in grammar.load("mini", "test", 100)]
    bytes_used = sum(i < 256 and mini.ranks[i].isalpha() for q in questions for i in mini.encode(q))
    assert bytes_used < 0.01 * sum(len(mini.encode(q)) for q in questions)


# ---------------------------------------------------------------- markers

def check_markers(tok: Tokenizer) -> None:
    ids = [tok.think, tok.end_think, tok.latent, tok.pad, tok.eos]
    assert len(set(ids)) == 5 and max(ids) < tok.vocab_size
    assert [tok.name(i) for i in ids] == list(MARKERS)
    assert tok.decode(ids) == ""
    assert not set(ids) & set(tok.to_id.tolist()), "text could make a marker"


def test_markers_are_single_distinct_ids_and_no_text_makes_one(mini):
    check_markers(mini)
    assert mini.vocab_size == len(mini.ranks) + 5
    for text in [*NASTY, *MARKERS, " ".join(MARKERS)]:
        assert not set(mini.encode(text)) & set(mini.markers.values())


def test_special_tokens_are_left_out_of_decoded_text(mini):
    assert mini.decode([mini.think, *mini.encode("<<1+1=2>>"), mini.end_think, *mini.encode("2"), mini.eos, mini.pad]) == "<<1+1=2>>2"


# ---------------------------------------------------------------- save, load

def same(a: Tokenizer, b: Tokenizer) -> None:
    for name in ("pattern", "ranks", "normalizer", "markers", "vocab_size", "base_size", "never", "names", "to_rank", "special",
                 "bos", "chat"):
        assert getattr(a, name) == getattr(b, name), name
    for text in NASTY + random_texts(50):
        assert a.encode(text) == b.encode(text)


def test_a_saved_tokenizer_is_the_same_when_it_is_loaded(mini, tmp_path):
    mini.save(tmp_path)
    same(mini, Tokenizer.load(tmp_path))


@pytest.mark.parametrize("damage", [
    lambda d: d.pop("ranks"), lambda d: d["ranks"].pop(7), lambda d: d["ranks"].append(d["ranks"][300]),
    lambda d: d.update(pattern="["), lambda d: d["ids"].pop(), lambda d: d.update(ranks=3), lambda d: d.update(markers=[1])])
def test_a_damaged_tokenizer_file_is_one_clear_error(mini, tmp_path, damage):
    """A missing byte used to pass here and to panic inside tiktoken at the first rare character."""
    mini.save(tmp_path)
    data = json.loads((tmp_path / FILE).read_text())
    damage(data)
    (tmp_path / FILE).write_text(json.dumps(data))
    with pytest.raises(UserError, match="damaged or not ours") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_truncated_or_missing_tokenizer_file_is_one_clear_error(mini, tmp_path):
    with pytest.raises(UserError, match="not a run folder"):
        Tokenizer.load(tmp_path)
    mini.save(tmp_path)
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text()[:-100])
    with pytest.raises(UserError, match="damaged"):
        Tokenizer.load(tmp_path)


# ---------------------------------------------------------------- Hugging Face folders

def train(kind: str, vocab_size: int = 600, **bpe):
    """A small byte-level BPE tokenizer of the `tokenizers` library, with one of the pre-tokenizers in use."""
    hf = pytest.importorskip("tokenizers")
    from tokenizers import Regex, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre
    split = lambda pattern: pre.Sequence([pre.Split(Regex(pattern), "isolated"),
                                          pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok = hf.Tokenizer(models.BPE(**bpe))
    tok.pre_tokenizer = {
        "gpt2": lambda: pre.ByteLevel(add_prefix_space=False),
        "digits": lambda: pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)]),
        "digit runs": lambda: pre.Sequence([pre.Digits(individual_digits=False), pre.ByteLevel(add_prefix_space=False)]),
        "qwen": lambda: split(QWEN_PATTERN), "llama3": lambda: split(LLAMA3_PATTERN), "gaps": lambda: split(SOME_PATTERN),
    }[kind]()
    if kind == "qwen":
        tok.normalizer = normalizers.NFC()
    text = NASTY + random_texts(100) + [__doc__, test_one_step_of_a_chain_and_its_separator_are_eight_tokens.__name__]
    tok.train_from_iterator(text, trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre.ByteLevel.alphabet(), special_tokens=["<|endoftext|>"],
        show_progress=False))
    tok.encode_special_tokens = True                        # written out in the text they are text, as with us
    return tok


SHARED = Path(os.environ.get("MINILATENT_SHARED") or Path(__file__).parents[2] / "shared" / "data")
KINDS = ["gpt2", "digits", "digit runs", "qwen", "llama3", "gaps"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_hugging_face_tokenizer_is_converted_exactly(kind, tmp_path):
    hf = train(kind)
    hf.save(str(tmp_path / "tokenizer.json"))
    tok = Tokenizer.from_hf(tmp_path)
    real = [line for path in sorted(SHARED.glob("*_*")) for line in path.read_text(encoding="utf-8").splitlines()[::10]]
    for text in NASTY + random_texts(1000) + real:                   # real ones only where the data is at hand
        ids = tok.encode(text)
        assert ids == hf.encode(text, add_special_tokens=False).ids, repr(text)
        assert tok.decode(ids) == (unicodedata.normalize("NFC", text) if kind == "qwen" else text)
    check_markers(tok)
    tok.save(tmp_path)
    same(tok, Tokenizer.load(tmp_path))


@pytest.mark.parametrize("kind, pattern", [("gpt2", GPT2_PATTERN), ("digits", DIGITS_PATTERN), ("gaps", None)])
def test_one_regex_cuts_every_short_string_as_the_pre_tokenizers_do(kind, pattern, tmp_path):
    """All 19,608 strings of up to 5 characters of 7 classes: SmolLM2's two pre-tokenizers are one regex."""
    regex = pytest.importorskip("regex")
    hf = train(kind)
    if pattern is None:
        hf.save(str(tmp_path / "tokenizer.json"))
        pattern = Tokenizer.from_hf(tmp_path).pattern
    cut = regex.compile(pattern).findall
    for length in range(6):
        for letters in itertools.product(" \na1's!", repeat=length):
            text = "".join(letters)
            assert cut(text) == [text[a:b] for _, (a, b) in hf.pre_tokenizer.pre_tokenize_str(text)], repr(text)


def test_vocab_json_and_merges_txt_do_without_tokenizer_json(tmp_path):
    hf = train("gpt2")
    hf.model.save(str(tmp_path))
    tok = Tokenizer.from_hf(tmp_path)
    for text in NASTY + random_texts(200):
        assert tok.encode(text) == hf.encode(text).ids
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')
    with pytest.raises(UserError, match="Qwen2Tokenizer splits text; add its tokenizer.json"):
        Tokenizer.from_hf(tmp_path)


def test_merges_listed_in_every_way_a_token_can_be_made_keep_their_order(tmp_path):
    """Llama 3's tokenizer.json was made from tiktoken ranks: several merges a token, and `ignore_merges`."""
    hf = train("llama3")
    hf.save(str(tmp_path / "tokenizer.json"))
    expected = {text: Tokenizer.from_hf(tmp_path).encode(text) for text in NASTY + random_texts(200)}
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    model, vocab = data["model"], data["model"]["vocab"]
    tokens = ["".join(m) for m in model["merges"]]
    model["merges"] = [[t[:i], t[i:]] for t in tokens for i in range(1, len(t)) if t[:i] in vocab and t[i:] in vocab]
    assert len(model["merges"]) > len(tokens)
    model["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tok, hf = Tokenizer.from_hf(tmp_path), type(hf).from_file(str(tmp_path / "tokenizer.json"))
    hf.encode_special_tokens = True
    for text, ids in expected.items():
        assert tok.encode(text) == ids == hf.encode(text, add_special_tokens=False).ids


def test_a_token_that_no_merge_makes_is_still_found_with_ignore_merges(tmp_path):
    hf = train("llama3")
    hf.save(str(tmp_path / "tokenizer.json"))
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["model"]["vocab"]["Ġxyzzyq"] = 1000
    data["model"]["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    hf = type(hf).from_file(str(tmp_path / "tokenizer.json"))
    tok = Tokenizer.from_hf(tmp_path)
    assert tok.encode("a xyzzyq") == hf.encode("a xyzzyq").ids and 1000 in tok.encode("a xyzzyq")


def test_a_byte_that_the_vocabulary_lacks_is_dropped_as_in_the_original(tmp_path):
    """SmolLM2 has no token for 21 of the 256 bytes."""
    hf = train("gpt2", vocab_size=1)
    data = json.loads(hf.to_str())
    for byte in (0xF1, 0x04):
        data["model"]["vocab"].pop(byte_letters()[byte])
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    hf = type(hf).from_file(str(tmp_path / "tokenizer.json"))
    tok = Tokenizer.from_hf(tmp_path)
    assert tok.encode("a\x04b\U00050000") == hf.encode("a\x04b\U00050000").ids
    assert tok.decode(tok.encode("a\x04b")) == "ab" and tok.decode([-1]) == ""
    tok.save(tmp_path)
    same(tok, Tokenizer.load(tmp_path))


def bare_folder(folder, added=(), config=None, **changes):
    """A tokenizer.json of the 256 bytes alone: written by hand, so that this needs no library."""
    data = {"model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(byte_letters())}, "merges": []},
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}, "normalizer": None,
            "added_tokens": [{"content": text, "id": i} for text, i in added]}
    data.update(changes)
    (folder / "tokenizer.json").write_text(json.dumps(data))
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_models_own_think_tokens_and_end_serve_as_markers(tmp_path):
    added = [("<|endoftext|>", 256), ("<|im_end|>", 257), ("<think>", 258), ("</think>", 259)]
    tok = Tokenizer.from_hf(bare_folder(tmp_path, added, {"vocab_size": 300, "eos_token_id": [257, 256]}))
    assert (tok.think, tok.end_think, tok.eos) == (258, 259, 257)
    assert (tok.latent, tok.pad, tok.vocab_size) == (300, 301, 302)   # behind the padded rows of the embedding
    assert tok.encode("<think>") == list(b"<think>")                 # written out, it is text
    check_markers(tok)
    tok.save(tmp_path)
    same(tok, Tokenizer.load(tmp_path))


def test_new_markers_come_behind_the_embedding_and_behind_the_largest_id(tmp_path):
    tok = Tokenizer.from_hf(bare_folder(tmp_path, [("<a>", 400)], {"vocab_size": 300}))
    assert sorted(tok.markers.values()) == [401, 402, 403, 404, 405] and tok.vocab_size == 406


@pytest.mark.parametrize("files, eos", [
    ({"config.json": {"eos_token_id": 256}, "generation_config.json": {"eos_token_id": [257, 256]}}, 256),
    ({"config.json": {"eos_token_id": None}, "generation_config.json": {"eos_token_id": [257, 256]}}, 257),
    ({"tokenizer_config.json": {"eos_token": "<b>"}}, 257),
    ({"tokenizer_config.json": {"eos_token": {"content": "<b>"}}}, 257),
    ({"config.json": {"eos_token_id": 50256}, "tokenizer_config.json": {"eos_token": "<b>"}}, 257),   # not a token
    ({"config.json": {"eos_token_id": 65}}, None),          # an ordinary letter: a default that nobody set
    ({}, None)])
def test_the_end_of_sequence_is_the_models_own(tmp_path, files, eos):
    bare_folder(tmp_path, [("<a>", 256), ("<b>", 257)])
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    tok = Tokenizer.from_hf(tmp_path)
    assert tok.eos == (eos or 262)
    check_markers(tok)


@pytest.mark.parametrize("changes, said", [
    ({"model": {"type": "Unigram", "vocab": []}}, "Unigram"),
    ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"),
    ({"model": {"type": "BPE", "byte_fallback": True, "vocab": {}, "merges": []}}, "not byte-level"),
    ({"pre_tokenizer": {"type": "Metaspace"}}, "Metaspace"),
    ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
    ({"pre_tokenizer": None}, "splits text by None"),
    ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}}, "add_prefix_space"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}}, "splits text by Sequence"),
    ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}}, "regex|pars|Pars"),
    ({"normalizer": {"type": "Lowercase"}}, "Lowercase"),
    ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "damaged"),
    ({"model": {"type": "BPE", "vocab": {"▁the": 0, "▁": 1}, "merges": ["▁ the"]}}, "damaged or no byte-level"),
    ({"model": None}, "damaged"),
])
def test_a_tokenizer_of_another_kind_is_refused_by_name(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        Tokenizer.from_hf(bare_folder(tmp_path, **changes))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_missing_or_truncated_tokenizer_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="neither tokenizer.json nor vocab.json"):
        Tokenizer.from_hf(tmp_path)
    bare_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text((tmp_path / "tokenizer.json").read_text()[:1000])
    with pytest.raises(UserError, match="truncated or no JSON"):
        Tokenizer.from_hf(tmp_path)


@pytest.mark.parametrize("processor, config, bos", [
    ({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<a>"}}, {"Sequence": {"id": "A"}}]}, {}, 256),
    ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {       # Llama 3's
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<b>"}}, {"Sequence": {"id": "A"}}]}]}, {}, 257),
    ({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}, {}, None),
    ({"type": "ByteLevel"}, {"bos_token": "<a>"}, None), (None, {}, None),
    (None, {"bos_token": {"content": "<a>"}, "add_bos_token": True}, 256)])
def test_the_token_that_begins_every_text_is_found(tmp_path, processor, config, bos):
    bare_folder(tmp_path, [("<a>", 256), ("<b>", 257)], post_processor=processor)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tok = Tokenizer.from_hf(tmp_path)
    assert tok.bos == bos and tok.encode("x") == [ord("x")]              # a chain or an answer does not begin a text
    tok.save(tmp_path)
    same(tok, Tokenizer.load(tmp_path))


def test_gpt2_weights_alone_take_tiktokens_encoding(tmp_path, monkeypatch):
    """A stand-in of the same shape: 256 bytes in an order of their own, two merges, <|endoftext|> last."""
    ranks = {bytes([b ^ 1]): b for b in range(256)} | {b"th": 256, b"the": 257}
    fake = tiktoken.Encoding("gpt2", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 258})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: {"gpt2": fake}[name])
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 259}')
    tok = Tokenizer.from_hf(tmp_path)
    assert tok.encode("the x<|endoftext|>") == fake.encode_ordinary("the x<|endoftext|>") and tok.encode("the") == [257]
    assert tok.eos == 258 and tok.vocab_size == 263
    check_markers(tok)

    def fail(name):
        raise OSError("no route to host\nand a long story")
    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    with pytest.raises(UserError, match=r"\(no route to host\); put tokenizer.json") as error:
        Tokenizer.from_hf(tmp_path)
    assert "\n" not in str(error.value)


def test_tiktokens_gpt2_is_the_one_that_its_files_make(tmp_path):
    if not os.environ.get("TIKTOKEN_CACHE_DIR"):
        pytest.skip("TIKTOKEN_CACHE_DIR names no folder with GPT-2's encoding")
    try:
        tiktoken.get_encoding("gpt2")
    except OSError as error:
        pytest.skip(f"GPT-2's encoding is neither in TIKTOKEN_CACHE_DIR nor to be had: {error}")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    tok = Tokenizer.from_hf(tmp_path)
    assert tok.encode("Hello world") == [15496, 995] and tok.eos == 50256


# ---------------------------------------------------------------- and back

@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_that_is_written_back_is_the_same_in_tokenizers_and_here(kind, tmp_path):
    train(kind).save(str(tmp_path / "tokenizer.json"))
    round_trip(Tokenizer.from_hf(tmp_path), tmp_path)


def test_minis_tokenizer_whose_words_no_merges_make_can_be_written_too(mini, tmp_path):
    round_trip(mini, tmp_path)


def round_trip(tok: Tokenizer, folder) -> None:
    """Markers far behind the tokens, as with an embedding that has spare rows, and a first token of its own."""
    tok = Tokenizer(tok.pattern, tok.ranks, tok.to_id.tolist(), {"<eos>": 999}, 2000, tok.normalizer, {"<s>": 998}, 998)
    (folder / "tokenizer.json").write_text(json.dumps(write(tok)))
    hf = pytest.importorskip("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert hf.encode("a<think>").ids == [998, *tok.encode("a"), tok.think] and tok.think == 2000
    assert {m: hf.token_to_id(m) for m in MARKERS} == tok.markers
    hf.encode_special_tokens = True
    again = Tokenizer.from_hf(folder)
    assert again.bos == 998 and again.special == {"<s>": 998} | tok.markers
    for text in NASTY + random_texts(300):
        ids = tok.encode(text)
        assert hf.encode(text, add_special_tokens=False).ids == ids == again.encode(text), repr(text)
        assert hf.decode(ids) == tok.decode(ids)


# ---------------------------------------------------------------- a real one

def test_a_real_tokenizer_is_converted_exactly():
    folder = os.environ.get("MINILATENT_SMOLLM2")
    if not folder:
        pytest.skip("MINILATENT_SMOLLM2 names no folder of SmolLM2-135M")
    hf = pytest.importorskip("tokenizers").Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    hf.encode_special_tokens = True
    tok = Tokenizer.from_hf(folder)
    for text in NASTY + random_texts(2000) + [open(__file__, encoding="utf-8").read()]:
        assert tok.encode(text) == hf.encode(text, add_special_tokens=False).ids, repr(text)
    assert tok.name(tok.encode("She sold 48 clips")[1]) == "·sold"
    assert (tok.eos, tok.think, tok.vocab_size) == (2, 49152, 49156)
    check_markers(tok)


def test_a_real_tokenizer_gives_the_same_ids_on_all_texts_of_the_data_and_after_it_is_written_back(tmp_path):
    folder, shared = os.environ.get("MINILATENT_SMOLLM2"), os.environ.get("MINILATENT_SHARED")
    if not folder or not shared:
        pytest.skip("MINILATENT_SMOLLM2 and MINILATENT_SHARED name no tokenizer and no data")
    hf = pytest.importorskip("tokenizers").Tokenizer
    tok = Tokenizer.from_hf(folder)
    (tmp_path / "tokenizer.json").write_text(json.dumps(write(tok)))
    lines = [line for path in sorted(Path(shared).glob("*_*")) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) > 12_000
    ids = [tok.encode(line) for line in lines]
    for source in (folder, tmp_path):
        theirs = hf.from_file(os.path.join(source, "tokenizer.json"))
        theirs.encode_special_tokens = True
        assert all(e.ids == i for e, i in zip(theirs.encode_batch(lines, add_special_tokens=False), ids, strict=True))
