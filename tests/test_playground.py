"""The playground: what its page computes is what PyTorch computes, and it says which runs it cannot show."""

import json
import re
import zlib

import pytest
import torch
from conftest import ROOT, chatty, save

from minilatent import masks, tasks
from minilatent.config import UserError
from minilatent.masks import LATENT, PREFIX, TAIL, TEXT
from minilatent.methods.latent_sft import Settings
from minilatent.run import BASE, load_run
from minilatent.tasks.words import TEST_SETS
from minilatent.tools import playground

CHECKPOINTS = ROOT / "tutorials" / "checkpoints"
FOLDERS = {"cot_sft": BASE, "latent_sft": CHECKPOINTS / "latent_sft", "colar": CHECKPOINTS / "colar"}
ODD = [
    "Ava has 12345 apples.",
    "12 + 30",
    "</think> <pad>",
    "🙂 has ½ café",
    "\ufeff x\u2003y\u0085z ",
    "a\n\tb",
]
ODD += ["0007 .,.? >> << >>", "<<12*3=36>> <<36%8=4>>", "\x1c12\x1f", "zzzz Qqq"]


@pytest.fixture(scope="module")
def engine():
    """engine.js in V8, without any browser."""
    mini_racer = pytest.importorskip("py_mini_racer", reason="pip install mini-racer runs the page's script")
    context = mini_racer.MiniRacer()
    context.eval((playground.PAGE / "engine.js").read_text(encoding="utf-8") + "; var runs = {};")
    return context


def call(engine, script: str, **values):
    """The value of a JavaScript expression, with Python's values by name."""
    names, given = ", ".join(values), ", ".join(json.dumps(v) for v in values.values())
    return json.loads(engine.eval(f"JSON.stringify((({names}) => {script})({given}))"))


def put(engine, name: str, method) -> None:
    """Give a run to the page's script, and PyTorch the same 16-bit weights."""
    tensors = playground.tensors_of(method)
    text = playground.as_text(playground.planes(tensors))
    about = playground.describe(method, tensors)
    script = "{ runs[name] = new Run(about, weightsOf(bytesOf(text), about.shapes)); return 0; }"
    call(engine, script, name=name, about=about, text=text)
    for p in method.parameters():
        p.data = p.data.bfloat16().float()


@pytest.fixture(scope="module")
def methods(engine):
    found = {name: load_run(folder, torch.device("cpu")) for name, folder in FOLDERS.items()}
    for name, method in found.items():
        put(engine, name, method)
    return found


def solve(engine, name: str, question: str, change: str = "{}") -> dict:
    script = f"""{{ const r = runs[name].solve(question, {change});
        return {{answer: r.answer, closed: r.closed, prompt: r.prompt, chain: r.steps.map((s) => s.token),
                 fed: r.steps.map((s) => [...s.feed]), probs: r.steps.map((s) => [...s.probs])}}; }}"""
    return call(engine, script, name=name, question=question)


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_agree_within_a_thousandth(engine, methods, name):
    method = methods[name]
    for data in TEST_SETS:
        prompt = method.prompt(tasks.load(data, "test", limit=1)[0].question)
        with torch.no_grad():
            ours = method.model.logits(method.model(torch.tensor([prompt])))[0, -1]
        script = """{ const m = runs[name].model, h = m.forward(m.embed(prompt), m.newCache());
            return [...m.logits(h.slice(-m.config.width))]; }"""
        theirs = torch.tensor(call(engine, script, name=name, prompt=prompt))
        assert (ours - theirs).abs().max() < 1e-3


@pytest.mark.parametrize("name", FOLDERS)
def test_chains_and_answers_are_the_same(engine, methods, name):
    """Two questions of each set (by hand, once: 300 of each). A step whose two most likely tokens are nearly
    equal may fall either way."""
    method = methods[name]
    questions = [e.question for data in TEST_SETS for e in tasks.load(data, "test", limit=2)]
    for question in questions:
        out, theirs = method.solve([question], keep_probs=True), solve(engine, name, question)
        top = out.probs[0].topk(2).values
        assert (top[:, 0] - top[:, 1]).min() > 1e-4, "choose another question: this one has a near-tie"
        assert theirs["prompt"] == method.prompt(question) and theirs["closed"] == bool(out.closed)
        assert theirs["chain"] == out.chain[0].tolist() and theirs["answer"] == out.answers[0]
        assert torch.allclose(torch.tensor(theirs["fed"]), out.latents[0], atol=1e-3)
        assert torch.allclose(torch.tensor(theirs["probs"]), out.probs[0], atol=1e-3)


def test_changes_reach_what_is_fed(engine, methods):
    """Another k, another speed, a chain that is cut, one that is given, one latent that is replaced."""
    question = tasks.load("mini", "test", limit=1)[0].question
    latent, colar = methods["latent_sft"], methods["colar"]
    for key, value, method in (("k", 3, latent), ("speed", "3", colar)):
        own = getattr(method.config, key)
        setattr(method.config, key, value)
        out = method.solve([question])
        theirs = solve(engine, method.config.method, question, f"{{{key}: {value}}}")
        assert theirs["chain"] == out.chain[0].tolist() and theirs["answer"] == out.answers[0]
        setattr(method.config, key, own)
    whole, cut = solve(engine, "latent_sft", question), solve(engine, "latent_sft", question, "{cut: 4}")
    assert cut["chain"] == whole["chain"][:4] and not cut["closed"] and cut["answer"] != whole["answer"]
    given = json.dumps(whole["fed"])
    assert solve(engine, "latent_sft", question, f"{{given: {given}}}")["answer"] == whole["answer"]
    zero = "{replace: (n, z) => n === 2 && z.map(() => 0)}"
    changed = solve(engine, "latent_sft", question, zero)
    assert changed["chain"][:3] == whole["chain"][:3] and not any(changed["fed"][2])
    assert changed["probs"][3] != whole["probs"][3]


@pytest.mark.parametrize("shape", [{"n_head": 4}, {"qk_norm": True, "hidden": 22}, {"rope_theta": 500.0}])
def test_other_shapes_of_the_model_agree(engine, tok, shape):
    method = chatty(tok, "latent_sft")
    config = {**vars(method.model.config), "tied": True, "n_head": 2, "n_kv_head": 2, **shape}
    generator = torch.Generator().manual_seed(0)
    method.model = type(method.model)(type(method.model.config)(**config)).eval()
    for p in method.model.parameters():
        p.data = torch.randn(p.shape, generator=generator) * (0.3 if p.dim() > 1 else 1)
    put(engine, "other", method)
    out = method.solve(["Ava has 12 apples."], max_chain=5)
    theirs = solve(engine, "other", "Ava has 12 apples.", "{cut: 5}")
    assert torch.allclose(torch.tensor(theirs["fed"]), out.latents[0], atol=1e-3)


def test_a_chain_of_colar_has_a_latent_even_where_the_model_would_end_at_once(engine, tok):
    method, question = small(tok, "colar"), "Ava has 12 apples."
    with torch.no_grad():
        hidden = method.model(torch.tensor([method.prompt(question)]))[0, -1]
        method.model.embed.weight[tok.end_think] = 9 * hidden
    put(engine, "eager", method)
    out = method.solve([question])
    assert out.chain[0, 0] == tok.end_think
    assert solve(engine, "eager", question)["chain"] == out.chain[0].tolist()


def test_texts_become_the_same_tokens_and_tokens_the_same_texts(engine, methods):
    method = methods["colar"]
    tok = method.tok
    for text in [*ODD, *(e.question for e in tasks.load("mini_svamp", "test", limit=20))]:
        script = "[runs.colar.tok.encode(t), runs.colar.prompt(t), runs.colar.tok.encodeChain(t)]"
        expected = [tok.encode(text), method.prompt(text), tok.encode_chain(text)]
        assert call(engine, script, t=text) == expected, repr(text)
    ids = [[i] for i in range(tok.vocab_size)] + [tok.encode(text) for text in ODD]
    ids += [[0xE2, 0x82, 65], [0xF0, 0x9F, 0xF0], [0xC0, 0x80], [0xED, 0xA0, 0x80], [0x80, 0xE2, 0x82, 0xAC]]
    assert call(engine, "ids.map((i) => runs.colar.tok.decode(i))", ids=ids) == [tok.decode(i) for i in ids]


@pytest.mark.parametrize("r", [1, 2, 3, 5])
def test_masks_and_positions_are_those_of_training(engine, tok, r):
    method = chatty(tok, "latent_sft", ratio=r)
    row = type("Row", (), {"prompt": [1, tok.think], "chain": list(range(7)), "tail": [tok.end_think, 9]})
    script = """{ const rows = layout(chain, r, encoder), may = (encoder ? induction : supervision)(rows);
        const table = rows.map((_, i) => rows.map((_, j) => may(i, j)));
        return [rows.map((x) => x[1]), rows.map((x) => x[2]), table, dualTrack(rows)]; }"""
    for encoder in (True, False):
        ours = method.encoder_layout(row) if encoder else method.decoder_layout(row)
        kind, block = torch.tensor([ours.kind]), torch.tensor([ours.block])
        mask = masks.induction_mask(kind) if encoder else masks.supervision_mask(kind, block)
        expected = [ours.kind, ours.block, mask[0].tolist(), masks.dual_track_positions(kind)[0].tolist()]
        assert call(engine, script, chain=list("abcdefg"), r=r, encoder=encoder) == expected
    assert call(engine, "[PREFIX, LATENT, TEXT, TAIL]") == [PREFIX, LATENT, TEXT, TAIL]


# --- the file -----------------------------------------------------------------------------------------------


def test_bytes_survive_the_way_through_the_text(engine):
    data = bytes(range(256)) * 3 + b"\0\r<"
    for n in (0, 1, 6, 7, 8, len(data)):
        text = playground.as_text(data[:n])
        assert not set(text) & set("\0\r<")
        assert call(engine, "[...bytesOf(text)]", text=text) == list(data[:n])


def read(page: str) -> tuple[dict, list[bytes]]:
    """A page's data and weights."""
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    weights = []
    for text in re.findall(r'<script type="text/plain">(.*?)</script>', page, re.DOTALL):
        values = torch.tensor([ord(c) & 127 for c in text], dtype=torch.uint8)
        bits = (values[:, None] >> torch.arange(6, -1, -1) & 1).flatten()
        bits = bits[: len(bits) // 8 * 8].view(-1, 8)
        weights.append(zlib.decompress(bytes((bits * 2 ** torch.arange(7, -1, -1)).sum(1).tolist())))
    return data, weights


def test_the_committed_page_is_that_of_the_sources_and_the_checkpoints():
    """python -m minilatent.tools.playground minilatent/base tutorials/checkpoints/latent_sft
    tutorials/checkpoints/colar --out tutorials/playground/index.html"""
    path = ROOT / "tutorials" / "playground" / "index.html"
    assert path.stat().st_size <= 5e6
    page = path.read_text(encoding="utf-8")
    for name in ("page.css", "engine.js", "ui.js"):
        assert (playground.PAGE / name).read_text(encoding="utf-8") in page, f"{name} has changed: build anew"
    data, weights = read(page)
    assert data["questions"] == playground.questions() and len(data["runs"]) == len(weights) == 3
    for about, packed, folder in zip(data["runs"], weights, FOLDERS.values()):
        method = load_run(folder, torch.device("cpu"))
        tensors = playground.tensors_of(method)
        assert about == json.loads(json.dumps(playground.describe(method, tensors)))
        assert packed == playground.planes(tensors), f"{folder} has changed: build anew"


def small(tok, name: str, **settings):
    """A method whose model the page can show."""
    method = chatty(tok, name, **settings)
    config = method.model.config
    config.tied = True
    method.model = type(method.model)(config).eval()
    return method


def test_a_page_is_built_from_any_runs_that_it_can_show(tok, tmp_path, capsys):
    made = {name: small(tok, name) for name in ("latent_sft", "cot_sft", "colar")}
    folders = [str(save(method, tmp_path / name)) for name, method in made.items()]
    playground.main([*folders, folders[0], "--out", str(tmp_path / "new" / "page.html")])
    assert "MB; open it in a browser" in capsys.readouterr().out
    page = (tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    data, weights = read(page)
    assert [run["method"] for run in data["runs"]] == ["latent_sft", "cot_sft", "colar", "latent_sft"]
    assert weights[1] == playground.planes(playground.tensors_of(made["cot_sft"]))
    assert "{{" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_the_page_asks_nobody_for_anything():
    """It works from a file, without a network."""
    for path in sorted(playground.PAGE.iterdir()):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"https?:|\bfetch\(|import[ (]|XMLHttp|WebSocket|sendBeacon|url\(|src=", text), (
            path
        )
        assert not re.search(r"<link(?! rel=\"icon\" href=\"data:,\")", text)


def test_every_link_leads_to_a_lesson():
    text = (playground.PAGE / "ui.js").read_text(encoding="utf-8")
    names = re.findall(r'lesson\("(\w+)", "Lesson (\d+) · ([^"]+)"', text)
    assert len(names) == 3
    for name, number, title in names:
        head = (ROOT / "tutorials" / f"{name}.py").read_text(encoding="utf-8").splitlines()[1]
        assert head.startswith(f"# # {number} · {title}")


@pytest.mark.parametrize("lesson", ["08_collapse.py", "13_interventions.py"])
def test_a_lessons_links_are_states_that_the_page_knows(lesson):
    text = (ROOT / "tutorials" / lesson).read_text(encoding="utf-8")
    links = re.findall(r"\.\./playground/index\.html#([^)]*)\)", text)
    script = (playground.PAGE / "ui.js").read_text(encoding="utf-8")
    keys = re.findall(r"(\w+): ", re.search(r"const DEFAULTS = \{(.*?)\};", script, re.DOTALL)[1])
    assert {"q", "model", "all", "cut"} <= set(keys) and len(links) == 2
    for link in links:
        assert {pair.partition("=")[0] for pair in link.split("&")} <= set(keys)


def refused(folder, tmp_path) -> str:
    out = tmp_path / "page.html"
    with pytest.raises(UserError) as error:
        playground.main([str(folder), "--out", str(out)])
    assert not out.exists() and "\n" not in str(error.value)
    return str(error.value)


def test_runs_that_the_page_cannot_show_are_refused_by_name(tok, runs, tmp_path):
    assert "runs of cot_sft, latent_sft, colar, not of no_cot" in refused(runs["no_cot"], tmp_path)
    assert "tied" in refused(runs["latent_sft"], tmp_path)
    assert "no run folder" in refused(tmp_path, tmp_path)
    samples = save(small(tok, "colar", latent_temperature=0.5), tmp_path / "samples")
    assert "it samples (--latent_temperature" in refused(samples, tmp_path)
    assert "speed is auto" in refused(save(small(tok, "colar", speed="auto"), tmp_path / "auto"), tmp_path)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda m: setattr(m.config, "lora_rank", 8), "adapters"),
        (lambda m: setattr(m.tok, "backend", object()), "not mini's"),
        (lambda m: setattr(m.model.config, "mlp", "gelu"), "mlp"),
        (lambda m: setattr(m.model, "num_parameters", lambda: 10**8), "more than 3 M parameters"),
        (lambda m: setattr(m, "config", Settings(method="latent_sft", latent="hidden")), "hidden states"),
    ],
)
def test_so_are_adapters_other_tokenizers_and_other_models(tok, change, said):
    method = small(tok, "latent_sft")
    playground.check(method, "RUN")
    method.tok = type(tok)(tok.backend, tok.markers, tok.base_size)  # the fixture is everybody's
    change(method)
    with pytest.raises(UserError, match=f"^RUN: .*{said}"):
        playground.check(method, "RUN")
