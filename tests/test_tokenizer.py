"""Text comes back from its ids; markers stay markers; Hugging Face folders keep their tokenizer."""

import json
import os
import random
import unicodedata
from pathlib import Path

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre

from minilatent import tasks
from minilatent.config import UserError
from minilatent.tokenizer import FILE, MARKERS, Tokenizer
from minilatent.tools.export import byte_letters, tokenizer_json

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
NASTY = [
    *(
        "",
        " ",
        "  ",
        "\n",
        " \n\n \t x",
        "\r\n\r\n",
        "a\u00a0b\u2003c\u3000d",
        "tab\tand\x0bvt\x85nel\u2028ls",
    ),
    *(
        "Ava has 12 apples.",
        "16-3=13",
        "<<16-3=13>> <<13*2=26>>",
        "x  5",
        "x   5 6  7",
        "  5",
        "5  ",
        "5 \n 6",
    ),
    *("a5b 5c 'd5's", "123456789012345678901234567890", "0.5 1,234.00 007 -3", "½ Ⅷ ٣ ² 五 12½"),
    *("I'll they'LL 'tis we've'd o'clock 's", "don\u2019t \u017f '\u017f 'S", "🙂👩‍👩‍👧🏽🇦🇹 ⟪⟫"),
    *("naïve nai\u0308ve café Å Å ﬁ ｆｕｌｌ", "e\u0301\u0301\u0323", "हिन्दी ไทย 한국어 日本語 العربية"),
    *("\x00\x01\x04\x13\x1d\x1f\x7f", "\u200b\ufeff\ufffd\U000e0001\U0010ffff\U00050000"),
    *("<think>2</think><latent><pad><eos>", "<|endoftext|><|im_start|>user", "Ġhello Ċ x", "!!!???...——"),
    *("a" * 300, " " * 50 + "x"),
]


def random_texts(count: int) -> list[str]:
    """Strings over characters of every class that a pre-tokenizer tells apart."""
    rng = random.Random(0)
    letters = [
        *" \n\r\t\u00a0aÉé\u0301日1½'S!=🙂\u200d_\U00050000",
        " ",
        "the",
        "23",
        "'s",
        "'ll",
        "<<",
        ">>",
    ]
    letters += ["<think>", "<|endoftext|>"]
    return ["".join(rng.choices(letters, k=rng.randrange(1, 30))) for _ in range(count)]


@pytest.fixture(scope="session")
def mini(tok) -> Tokenizer:
    return tok


# ---------------------------------------------------------------- mini


def test_any_text_comes_back_from_minis_tokenizer(mini):
    for text in NASTY + random_texts(500):
        assert mini.decode(mini.encode(text)) == text


def test_a_number_to_99_is_the_same_single_token_in_a_question_and_in_a_chain(mini):
    for n in range(100):
        (token,) = mini.encode(str(n))
        for text in (f"Ava has {n} apples.", f"{n} apples, and {n}.", f"<<{n}*{n}={n}>>", f"#{n}\n"):
            assert mini.encode(text).count(token) == text.count(str(n)), text


def test_one_step_of_a_chain_is_six_tokens(mini):
    """`>> <<` is one, and the first `<<` is left to <think>."""
    names = [mini.name(i) for i in mini.encode_chain("<<16-3=13>> <<13%4=1>>")]
    assert names == ["16", "-", "3", "=", "13", ">>·<<", "13", "%", "4", "=", "1", ">>"]
    assert mini.encode("<<16")[1:] == mini.encode_chain("<<16") == mini.encode("16")


def test_the_grammars_own_words_are_single_tokens(mini):
    ids = [i for e in tasks.load("mini", "test", limit=100) for i in mini.encode(e.question)]
    single_letters = sum(i < 256 and chr(i).isalpha() for i in ids)
    assert single_letters < 0.01 * len(ids)


# ---------------------------------------------------------------- markers


def check_markers(tok: Tokenizer) -> None:
    """They are distinct, and no text makes one: neither its own name nor the text of its token."""
    ids = [tok.think, tok.end_think, tok.latent, tok.pad, tok.eos]
    assert len(set(ids)) == 5 and max(ids) < tok.vocab_size
    assert [tok.name(i) for i in ids] == list(MARKERS)
    assert tok.decode(ids) == ""
    for text in [*NASTY, *MARKERS, " ".join(MARKERS), *tok.special]:
        assert not set(tok.encode(text)) & {*ids, *tok.special.values()}, text


def test_markers_are_single_distinct_ids_and_no_text_makes_one(mini):
    check_markers(mini)
    assert mini.vocab_size == len(mini.backend.ranks) + 5
    chain, answer = mini.encode("<<1+1=2>>"), mini.encode("2")
    assert mini.decode([mini.think, *chain, mini.end_think, *answer, mini.eos, mini.pad]) == "<<1+1=2>>2"


# ---------------------------------------------------------------- save, load


def assert_same(a: Tokenizer, b: Tokenizer) -> None:
    for name in ("markers", "vocab_size", "base_size", "never", "names", "special", "bos", "chat"):
        assert getattr(a, name) == getattr(b, name), name
    for text in NASTY + random_texts(50):
        ids = a.encode(text)
        assert b.encode(text) == ids and b.decode(ids) == a.decode(ids)


def test_a_saved_tokenizer_is_the_same_when_it_is_loaded_and_a_lost_one_is_one_clear_error(mini, tmp_path):
    mini.save(tmp_path)
    assert_same(mini, Tokenizer.load(tmp_path))
    (tmp_path / FILE).write_text((tmp_path / FILE).read_text(encoding="utf-8")[:-100], encoding="utf-8")
    with pytest.raises(UserError, match="truncated"):
        Tokenizer.load(tmp_path)
    (tmp_path / FILE).unlink()
    with pytest.raises(UserError, match="not a run folder"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.pop("ranks"),
        lambda d: d.update(pattern="["),
        lambda d: d.update(ranks=3),
        lambda d: d.update(markers=[1]),
        lambda d: d.update(tokenizer={"model": None}),
    ],
)
def test_a_damaged_tokenizer_file_is_one_clear_error(mini, tmp_path, damage):
    mini.save(tmp_path)
    data = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    damage(data)
    (tmp_path / FILE).write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(UserError, match="damaged or not ours") as error:
        Tokenizer.load(tmp_path)
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------- Hugging Face folders


def train(kind: str) -> tokenizers.Tokenizer:
    """A small BPE tokenizer of the `tokenizers` library: GPT-2's kind, Qwen's, Llama 3's or Llama 2's."""
    alphabet, special = pre.ByteLevel.alphabet(), ["<|endoftext|>"]
    model, decoder, normalizer = models.BPE(), decoders.ByteLevel(), None
    splitter = pre.ByteLevel(add_prefix_space=False)
    if kind in ("qwen", "llama3"):
        split = pre.Split(Regex(QWEN_PATTERN), "isolated")
        splitter = pre.Sequence([split, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
        model = models.BPE(ignore_merges=kind == "llama3")
        normalizer = normalizers.NFC() if kind == "qwen" else None
    if kind == "llama2":
        alphabet, special = [], ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
        model, splitter = models.BPE(byte_fallback=True, unk_token="<unk>"), None
        normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        steps = [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
        decoder = decoders.Sequence(steps)
    library = tokenizers.Tokenizer(model)
    library.normalizer, library.decoder = normalizer, decoder
    if splitter:
        library.pre_tokenizer = splitter
    texts = ["She sold 48 clips to 48 of her friends in April."] * 9
    options = {"vocab_size": 600, "limit_alphabet": 300, "show_progress": False}
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=special, **options)
    library.train_from_iterator(NASTY[:14] + texts, trainer)
    data = json.loads(library.to_str())
    data["added_tokens"] = data["added_tokens"][:1]  # Llama 2's bytes are ordinary tokens
    return tokenizers.Tokenizer.from_str(json.dumps(data))


KINDS = ["gpt2", "qwen", "llama3", "llama2"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_hugging_face_tokenizer_encodes_decodes_and_is_kept_in_the_run_folder(kind, tmp_path):
    library = train(kind)
    library.save(str(tmp_path / "tokenizer.json"))
    tok = Tokenizer.from_hf(tmp_path)
    library.encode_special_tokens = True
    for text in NASTY + random_texts(500):
        ids = tok.encode(text)
        assert ids == library.encode(text, add_special_tokens=False).ids, repr(text)
        assert tok.decode(ids) == (unicodedata.normalize("NFC", text) if kind == "qwen" else text)
    assert tok.encode("a\ud83db") == tok.encode("a\ufffdb")  # half a surrogate pair, as JSON may hold it
    names = [tok.name(i) for i in tok.encode("She sold 48 clips")]
    assert "".join(names).lstrip("·") == "She·sold·48·clips"
    check_markers(tok)
    tok.save(tmp_path)
    assert_same(tok, Tokenizer.load(tmp_path))


def added(i: int, text: str, **flags) -> dict:
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": text, **off, "special": True, **flags}


def bare_folder(folder, special=(), config=None, settings=None, **changes) -> Path:
    """A Hugging Face folder with a tokenizer of the 256 bytes and, from 256 on, these special tokens."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    data = {
        "model": {"type": "BPE", "vocab": {c: i for i, c in enumerate(byte_letters())}, "merges": []},
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "added_tokens": [added(256 + i, text) for i, text in enumerate(special)],
    }
    (folder / "tokenizer.json").write_text(json.dumps(data | changes), encoding="utf-8")
    for name, content in (("config.json", config), ("tokenizer_config.json", settings)):
        if content is not None:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


def test_added_tokens_that_are_not_special_are_found_in_text_and_others_are_not(tmp_path):
    """As transformers does it; Qwen3's <think> is such a token, but one of our markers."""
    tokens = [added(256, "<tool>", special=False), added(257, "<think>", special=False), added(258, "<s>")]
    tok = Tokenizer.from_hf(bare_folder(tmp_path, added_tokens=tokens))
    assert (
        tok.encode("1<tool>2") == [ord("1"), 256, ord("2")] and tok.decode([256]) == tok.name(256) == "<tool>"
    )
    assert tok.encode("<think><s>") == list(b"<think><s>")
    assert tok.think == 257 and tok.special == {"<think>": 257, "<s>": 258}
    check_markers(tok)


def test_normalizers_and_added_prefixes_are_the_librarys(tmp_path):
    normalizer = {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]}
    assert Tokenizer.from_hf(bare_folder(tmp_path, normalizer=normalizer)).encode("ﬁＸ") == list(b"fix")
    prefix = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    assert Tokenizer.from_hf(bare_folder(tmp_path, pre_tokenizer=prefix)).encode("x") == list(b" x")


def test_settings_of_the_files_last_use_are_not_ours(tmp_path):
    truncation = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    padding = {"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    padding |= {"pad_type_id": 0, "pad_token": "!"}
    tok = Tokenizer.from_hf(bare_folder(tmp_path, truncation=truncation, padding=padding))
    assert tok.encode("12345") == list(b"12345")


def test_a_byte_that_the_vocabulary_lacks_is_dropped_or_unknown_but_never_a_marker(tmp_path):
    """SmolLM2 has no token for 21 of the 256 bytes."""
    vocab = {c: i for i, c in enumerate(byte_letters()) if i != 4}
    model = {"type": "BPE", "vocab": vocab | {"<unk>": 256}, "merges": []}
    tok = Tokenizer.from_hf(bare_folder(tmp_path, model=model))
    assert tok.encode("a\x04b") == list(b"ab")
    unknown = bare_folder(tmp_path, ["<unk>"], model={**model, "unk_token": "<unk>"})
    assert Tokenizer.from_hf(unknown).encode("a\x04b") == [97, 256, 98]
    (tmp_path / "config.json").write_text('{"eos_token_id": 256}', encoding="utf-8")
    tok = Tokenizer.from_hf(tmp_path)
    assert tok.eos == 256 and tok.encode("a\x04b") == list(b"ab")


def test_the_models_own_think_tokens_and_end_serve_as_markers(tmp_path):
    special = ["<|endoftext|>", "<|im_end|>", "<think>", "</think>"]
    tok = Tokenizer.from_hf(bare_folder(tmp_path, special, {"vocab_size": 300, "eos_token_id": [257, 256]}))
    assert (tok.think, tok.end_think, tok.eos) == (258, 259, 257)
    assert (tok.latent, tok.pad, tok.vocab_size) == (300, 301, 302)  # behind all rows of the embedding
    assert tok.encode("<think>") == list(b"<think>")  # written out, it is text
    check_markers(tok)
    tok.save(tmp_path)
    assert_same(tok, Tokenizer.load(tmp_path))


def test_new_markers_come_behind_the_embedding_and_behind_the_largest_id(tmp_path):
    special = [f"<{i}>" for i in range(50)]
    tok = Tokenizer.from_hf(bare_folder(tmp_path, special, {"vocab_size": 300}))
    assert sorted(tok.markers.values()) == [306, 307, 308, 309, 310] and tok.vocab_size == 311


@pytest.mark.parametrize(
    "files, eos",
    [
        ({"config": {"eos_token_id": 256}, "generation_config": {"eos_token_id": [257, 256]}}, 256),
        ({"config": {"eos_token_id": None}, "generation_config": {"eos_token_id": [257, 256]}}, 257),
        ({"tokenizer_config": {"eos_token": "<b>"}}, 257),
        ({"tokenizer_config": {"eos_token": {"content": "<b>"}}}, 257),
        ({"config": {"eos_token_id": 50256}, "tokenizer_config": {"eos_token": "<b>"}}, 257),  # no token
        ({"config": {"eos_token_id": 65}}, 262),  # an ordinary letter: a default that nobody set
        ({}, 262),
    ],
)
def test_the_end_of_sequence_is_the_models_own(tmp_path, files, eos):
    bare_folder(tmp_path, ["<a>", "<b>"])
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    tok = Tokenizer.from_hf(tmp_path)
    assert tok.eos == eos
    check_markers(tok)


@pytest.mark.parametrize("where", ["config", "generation_config", "tokenizer_config"])
def test_an_end_of_sequence_that_was_not_added_as_a_special_token_is_one(tmp_path, where):
    tokens = [added(256, "<tool>", special=False), added(257, "</s>", special=False)]
    bare_folder(tmp_path, added_tokens=tokens)
    content = {"eos_token": "</s>"} if where == "tokenizer_config" else {"eos_token_id": [257]}
    (tmp_path / f"{where}.json").write_text(json.dumps(content), encoding="utf-8")
    tok = Tokenizer.from_hf(tmp_path)
    assert tok.eos == 257 and tok.special == {"</s>": 257}
    assert tok.encode("<tool></s>") == [256, *b"</s>"]
    check_markers(tok)


LLAMA3 = ["<|end_of_text|>", "<|eom_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@pytest.mark.parametrize("special", [True, False])
def test_the_end_of_llama_3_instruct_is_that_of_its_turns(tmp_path, special):
    """Its files name several, <|end_of_text|> first, as the hub's do."""
    tokens = [added(256 + i, text, special=special) for i, text in enumerate(LLAMA3)]
    config = {"eos_token_id": [256, 257, 260], "bos_token_id": 256}
    chat = {"chat_template": "{{ '<|start_header_id|>' }}", "eos_token": "<|eot_id|>"}
    tok = Tokenizer.from_hf(bare_folder(tmp_path, (), config, chat, added_tokens=tokens))
    assert tok.chat == "llama3" and tok.eos == 260
    check_markers(tok)
    data = tokenizer_json(tok)
    names = [token["content"] for token in data["added_tokens"]]
    assert len(names) == len(set(names)) and "<eos>" not in names
    base = bare_folder(tmp_path, (), {"eos_token_id": 256}, {}, added_tokens=tokens)  # not trained to chat
    assert Tokenizer.from_hf(base).eos == 256


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("end", [None, 257])
def test_an_undeclared_eos_is_exported_once(tmp_path, special, end):
    tokens = [added(256, "<eos>", special=special), added(257, "</s>")]
    tok = Tokenizer.from_hf(bare_folder(tmp_path, (), {"eos_token_id": end}, added_tokens=tokens))
    assert tok.eos == (end or 256)
    contents = [token["content"] for token in tokenizer_json(tok)["added_tokens"]]
    assert sorted(contents) == sorted({"<eos>", "</s>", "<think>", "</think>", "<latent>", "<pad>"})
    vocab = {**{c: i for i, c in enumerate(byte_letters())}, "<eos>": 256}
    ordinary = bare_folder(tmp_path, model={"type": "BPE", "vocab": vocab, "merges": []})
    with pytest.raises(UserError, match="ordinary token '<eos>'"):
        tokenizer_json(Tokenizer.from_hf(ordinary))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"model": {"type": "Unigram", "vocab": []}}, "has a Unigram tokenizer; only BPE is implemented"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"),
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}}, "damaged"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}, "damaged"),
        ({"model": {"type": "BPE", "vocab": {}, "merges": []}}, "damaged"),
        ({"model": None}, "damaged"),
        ({"added_tokens": [{"id": 256, "content": "<a>"}]}, "damaged"),
    ],
)
def test_a_damaged_tokenizer_or_one_of_another_kind_is_one_clear_error(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        Tokenizer.from_hf(bare_folder(tmp_path, **changes))
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_missing_or_truncated_tokenizer_json_is_one_clear_error(tmp_path):
    with pytest.raises(UserError, match="tokenizer.json does not exist"):
        Tokenizer.from_hf(tmp_path)
    bare_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text(
        (tmp_path / "tokenizer.json").read_text(encoding="utf-8")[:1000], encoding="utf-8"
    )
    with pytest.raises(UserError, match="truncated or not JSON"):
        Tokenizer.from_hf(tmp_path)


def begins_with(token: str, i: int) -> dict:
    text = {"Sequence": {"id": "A", "type_id": 0}}
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, text]
    special = {token: {"id": token, "ids": [i], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": single, "pair": [text, text], "special_tokens": special}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize(
    "processor, settings, bos",
    [
        (begins_with("<a>", 256), {}, 256),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, begins_with("<b>", 257)]}, {}, 257),  # Llama 3's
        (BYTE_LEVEL, {"bos_token": "<a>"}, None),
        (None, {}, None),
        (None, {"bos_token": {"content": "<a>"}, "add_bos_token": True}, 256),
    ],
)
def test_the_token_that_begins_every_text_is_found(tmp_path, processor, settings, bos):
    bare_folder(tmp_path, ["<a>", "<b>"], settings=settings, post_processor=processor)
    tok = Tokenizer.from_hf(tmp_path)
    assert tok.bos == bos and tok.encode("x") == [ord("x")]  # a chain or an answer does not begin a text
    tok.save(tmp_path)
    assert_same(tok, Tokenizer.load(tmp_path))


# ---------------------------------------------------------------- and back


@pytest.mark.parametrize("kind", ["mini", *KINDS])
def test_an_exported_tokenizer_is_the_same_in_tokenizers_and_here(kind, mini, tmp_path):
    """Also with markers far behind the tokens, as with an embedding that has spare rows."""
    if kind == "mini":
        tok = Tokenizer(mini.backend, size=2000)
    else:
        train(kind).save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "config.json").write_text('{"vocab_size": 2000}', encoding="utf-8")
        tok = Tokenizer.from_hf(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(tok)), encoding="utf-8")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert {marker: library.token_to_id(marker) for marker in MARKERS} == tok.markers
    assert library.encode("a<think>").ids == [*tok.encode("a"), tok.think] and tok.think == 2000
    library.encode_special_tokens = True
    again = Tokenizer.from_hf(tmp_path)
    assert again.markers == tok.markers and again.special == tok.special | tok.markers
    for text in NASTY + random_texts(300):
        ids = tok.encode(text)
        assert library.encode(text, add_special_tokens=False).ids == ids == again.encode(text), repr(text)
        assert library.decode(ids) == tok.decode(ids)


# ---------------------------------------------------------------- a real one


def test_a_real_tokenizer_gives_the_same_ids_also_after_it_was_exported(tmp_path):
    folder = os.environ.get("MINILATENT_SMOLLM2")
    if not folder:
        pytest.skip("MINILATENT_SMOLLM2 names no folder of SmolLM2-135M")
    tok = Tokenizer.from_hf(folder)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(tok)), encoding="utf-8")
    texts = [*NASTY, *random_texts(2000), Path(__file__).read_text(encoding="utf-8")]
    for source in (folder, tmp_path):
        library = tokenizers.Tokenizer.from_file(str(Path(source) / "tokenizer.json"))
        library.encode_special_tokens = True
        for text in texts:
            assert tok.encode(text) == library.encode(text, add_special_tokens=False).ids, repr(text)
    assert tok.name(tok.encode("She sold 48 clips")[1]) == "·sold"
    assert (tok.eos, tok.think, tok.vocab_size) == (2, 49152, 49156)
    check_markers(tok)
