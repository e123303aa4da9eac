"""Fast and slow give the same numbers: compiled blocks on padded lengths, FlexAttention, decoding with fixed
shapes. And a step waits for the device only where it has to."""

import contextlib
import copy
import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import metrics, script, tiny_model, train
from test_colar import Fixed
from test_decode import LIMITS, TOK, batched, prompts, sharp_model
from test_methods import make
from torch.utils._python_dispatch import TorchDispatchMode

from minilatent import machine, masks, tasks
from minilatent.batch import encode
from minilatent.config import UserError
from minilatent.fast import Fast, OneToken, padded
from minilatent.machine import Moved
from minilatent.masks import PAD
from minilatent.methods.cot_sft import CoTSFT
from minilatent.run import load_run
from minilatent.trainer import Trainer

CLOSE = {"rtol": 0, "atol": 2e-5}


class Backend:
    """Compiles nothing and counts the graphs that it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, example_inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def compiled_anew():
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def rows(tok):
    return encode(tasks.load("mini", "train", limit=9), tok, 512)[0]


# ------------------------------------------------------------------ training


def test_lengths_become_few_and_waste_little():
    lengths = range(1, 2049)
    assert all(0 <= padded(n) - n < max(32, n / 4) for n in lengths)
    assert {padded(n) for n in range(1, 257)} == set(range(32, 257, 32))
    assert len({padded(n) for n in lengths}) == 20 and padded(257) == 320


LOSSES = ("cot_sft", "colar", "stage1", "stage2")


def loss_of(name: str, tok, rows):
    """A method; and its loss as a function of a batch, which is the second."""
    method = make(tok, "latent_sft", pull=1.0) if name.startswith("stage") else make(tok, name)
    if name == "stage1":
        return method, method.collate1(rows), lambda batch: method.loss1(batch)[0]
    if name == "stage2":
        method.train_rows, method.labels = rows, method.soft_labels(rows)
        batch = method.train().collate2(list(range(len(rows))))
        return method, batch, lambda batch: method.loss2(batch, torch.Generator().manual_seed(0))[0]
    noise = lambda: torch.Generator().manual_seed(0)
    return method, method.collate(rows, Fixed(2)), lambda batch: method.loss(batch, noise())[0]


def gradients(method, loss) -> dict:
    method.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", LOSSES)
def test_compiled_on_padded_lengths_loss_and_gradients_are_those_of_the_readable_path(tok, rows, name):
    method, batch, loss = loss_of(name, tok, rows)
    assert padded(batch["ids"].shape[1]) > batch["ids"].shape[1]  # there is something to pad
    slow = loss(batch)
    expected, backend = gradients(method, slow), Backend()
    for model in (method.model, method.encoder) if name == "stage1" else (method.model,):
        model.fast = Fast(compiled=True, backend=backend)
    found = loss(batch)
    assert backend.graphs > 0
    torch.testing.assert_close(found, slow, **CLOSE)
    for key, gradient in gradients(method, found).items():
        scale = expected[key].abs().max() + 1e-6
        torch.testing.assert_close(gradient / scale, expected[key] / scale, **CLOSE)


@pytest.mark.parametrize("family", [{}, {"position": "learned", "norm": "layernorm", "mlp": "gelu"}])
def test_a_graph_serves_all_layers_all_batches_of_a_bucket_and_a_copy_of_the_model(family):
    model, backend = tiny_model(n_layer=3, **family).train(), Backend()
    model.fast = Fast(compiled=True, backend=backend)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.blocks[0].mlp.up.weight.zero_()
    for length in (3, 20, 31, 32):
        ids = torch.randint(0, 40, (4, length))
        assert not torch.equal(model(ids), twin(ids))  # a copy calls its own blocks
    assert backend.graphs == 1
    for length in (33, 64, 40):
        model(torch.randint(0, 40, (4, length)))
    assert backend.graphs == 2


def test_states_are_as_long_as_the_batch_and_recomputed_compiled_blocks_agree():
    model, ids = tiny_model().train(), torch.randint(0, 40, (3, 21))
    slow, fast = [], []
    expected = model(ids, states=slow)
    model.fast = Fast(compiled=True, recompute=True, backend="eager")
    torch.testing.assert_close(model(ids, states=fast), expected, **CLOSE)
    assert len(fast) == len(slow) == 2
    for a, b in zip(fast, slow):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.filterwarnings("ignore")  # uncompiled, it is slow: that is known
@pytest.mark.parametrize("groups", [1, 2])
def test_flex_attention_is_attention_under_ltim_and_ltsum_with_one_graph_for_all_masks(tok, rows, groups):
    """Forward only: FlexAttention has no backward pass on a CPU."""
    method = make(tok)
    model, backend = tiny_model(tok.vocab_size, scale=3.0, context=512, n_kv_head=groups), Backend()
    passes = []
    for some in (rows, rows[::-1], rows[:1] * 9):
        batch = method.collate1(some)
        kind = batch["decoder_kind"]
        supervision = masks.supervision_mask(kind, batch["decoder_block"])
        passes.append((batch["decoder_ids"], supervision, kind != PAD))
        passes.append((batch["ids"], masks.induction_mask(batch["kind"]), batch["kind"] != PAD))
    with torch.no_grad():
        expected = [model(ids, mask=mask) for ids, mask, _ in passes]
        model.config.attention = "flex"
        for fast in (Fast(), Fast(compiled=True, backend=backend)):
            model.fast = fast
            for (ids, mask, real), slow in zip(passes, expected):
                torch.testing.assert_close(model(ids, mask=mask)[real], slow[real], rtol=1e-4, atol=1e-4)
    assert backend.graphs == len({padded(ids.shape[1]) for ids, *_ in passes})


# ------------------------------------------------------------------ whole runs


@pytest.mark.usefixtures("one_tokenizer")
def test_a_run_with_compile_is_the_run_without_and_may_go_on_without(tmp_path, monkeypatch, uninterrupted):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # padded and cut all the same
    train(tmp_path / "run", "latent_sft", "--compile")
    for fast, slow in zip(metrics(tmp_path / "run"), metrics(uninterrupted), strict=True):
        assert fast.keys() == slow.keys()
        assert fast["stage"] == slow["stage"]
        for key in fast.keys() - {"seconds", "stage"}:
            assert fast[key] == pytest.approx(slow[key], rel=1e-3), key
    (tmp_path / "run/model.safetensors").unlink()  # as if it had not finished
    train(tmp_path / "run", "latent_sft", "--resume", "--no-compile")
    with pytest.raises(UserError, match="flex needs a GPU"):
        train(tmp_path / "other", "latent_sft", "--attention", "flex")


def test_without_a_compiler_one_line_says_so_and_nothing_is_lost(tmp_path, monkeypatch):
    def no_compiler(function, **_):
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found\n\nSet TORCHDYNAMO_VERBOSE=1")

    (tmp_path / "run").mkdir()
    (tmp_path / "run/model.safetensors").write_bytes(b"an earlier run")
    (tmp_path / "run/config.json").write_text("{}", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(UserError, match=r"^--compile: PyTorch cannot compile here \(.* compiler found\)$"):
        train(tmp_path / "run", "cot_sft", "--compile")
    assert [path for path in sorted(tmp_path.rglob("*")) if path.suffix != ".lock"] == before


def test_eval_with_compile_finds_the_same(runs, tmp_path, capsys, monkeypatch):
    """In float64: random weights that think turn float32's rounding into other latents."""

    def in_double(*args):
        method = load_run(*args)
        method.model.double()
        return method

    found, main = [], script("eval")
    monkeypatch.setitem(main.__globals__, "load_run", in_double)
    for more in ([], ["--compile"]):
        file, options = tmp_path / "found.json", ["--data", "mini", "--limit", "30", "--threads", "1"]
        main(["--ckpt", str(runs["latent_sft"]), "--json", str(file), *options, *more])
        found.append(json.loads(file.read_text(encoding="utf-8"))[0])
    assert found[0].keys() == found[1].keys() and found[0]["mean_len"] > 0
    for key in ("n", "accuracy", "mean_len", "closed", "entropy"):
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-6), key


# ------------------------------------------------------------------ nobody waits for the device


@pytest.mark.parametrize("name", ["cot_sft", "colar", "stage2"])
def test_a_step_asks_the_device_for_no_number(tok, rows, monkeypatch, name):
    """On the meta device tensors have shapes and no values: whoever asks for one, or for as many entries as
    a mask has, gets an error, where a GPU would make everybody wait."""
    method, batch, loss = loss_of(name, tok, rows)
    meta = torch.device("meta")
    method.to(meta)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # it knows no meta
    trainer = object.__new__(Trainer)
    trainer.config, trainer.method, trainer.norm, trainer.tokens = method.config, method, 0.0, 0
    trainer.interrupted, trainer.optimizers = False, []
    trainer.trained = {n: p for n, p in method.named_parameters() if not n.startswith("encoder")}
    trainer.scaler = torch.amp.GradScaler("cpu", enabled=False)
    own = method.loss2 if name == "stage2" else method.loss
    stage = SimpleNamespace(rollout=None, collate=lambda items, rng: batch, loss=own, inner=1)
    logged = trainer.step(stage, 0, 0, list(range(len(rows))), 1e-3)
    assert logged["loss"].is_meta and logged["grad_norm"].is_meta
    assert trainer.tokens == method.config.accumulate * batch["ids"].numel()  # each part is this batch
    with pytest.raises((RuntimeError, NotImplementedError)):  # it can tell
        own({key: t.to(meta) for key, t in batch.items()}, torch.Generator())


@pytest.fixture
def device_that_must_not_be_asked(monkeypatch):
    """CoT-SFT as on a GPU, by which step it was read."""
    reads, real = [], Trainer.read

    def read(self, stage, logged):
        reads.append(self.at["step"] + 1)
        return real(self, stage, logged)

    gpu = SimpleNamespace(type="a GPU")
    monkeypatch.setattr(Trainer, "read", read)
    monkeypatch.setattr(CoTSFT, "device", gpu)
    monkeypatch.setattr(CoTSFT, "autocast", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(CoTSFT, "accuracy", lambda self, examples: {"accuracy": 0.0, "mean_len": 0.0})
    monkeypatch.setattr(machine, "send", lambda t, device: t)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, enabled: _Off())
    return reads


class _Off(torch.amp.GradScaler):
    def __init__(self):
        super().__init__("cpu", enabled=False)


OFTEN = ("--steps", 24, "--log_every", 5, "--eval_every", 12, "--save_every", 8)


@pytest.mark.usefixtures("one_tokenizer")
def test_metrics_are_read_when_something_is_logged_judged_or_saved(tmp_path, device_that_must_not_be_asked):
    train(tmp_path / "run", "cot_sft", *OFTEN)
    assert device_that_must_not_be_asked == [5, 8, 10, 12, 15, 16, 20, 24]


@pytest.mark.usefixtures("one_tokenizer")
@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_a_gradient_that_is_no_number_is_found_before_anything_is_saved(
    tmp_path, monkeypatch, device_that_must_not_be_asked, bad
):
    """An infinite norm makes clipping give 0: the weights stay good, and the step was none."""
    real, steps = torch.nn.utils.clip_grad_norm_, itertools.count(1)

    def clip(*args):
        norm = real(*args)
        return norm * float(bad) if next(steps) == 13 else norm

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    with pytest.raises(UserError, match="norm nan"):
        train(tmp_path / "run", "cot_sft", *OFTEN)
    assert device_that_must_not_be_asked == [5, 8, 10, 12, 15]


def test_what_is_true_is_found_on_the_host(tok, rows):
    batch = make(tok, "cot_sft").collate(rows)
    moved = Moved(batch, torch.device("meta"))
    assert moved["ids"].is_meta and machine.host(moved) is batch and machine.host(batch) is batch
    mask = batch["labels"] > 50
    assert torch.equal(batch["ids"][machine.indices(mask, torch.device("cpu"))], batch["ids"][mask])


# ------------------------------------------------------------------ decoding


class Reads(TorchDispatchMode):
    """Counts how often the host asks for values: numbers, and entries chosen by a mask."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        chosen = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        asks = any(i is not None and i.dtype == torch.bool for i in chosen)
        self.count += asks or name in ("_local_scalar_dense", "nonzero", "masked_select", "equal")
        return func(*args, **(kwargs or {}))


def fast_one(model):
    model.fast = Fast(compiled=True, backend="eager")
    return model


@pytest.mark.parametrize("kind", ["explicit", "superposition", "no_cot", "coconut", "colar"])
@pytest.mark.parametrize("family", ["mini", "gpt2"])
def test_decoding_with_fixed_shapes_gives_the_same(kind, family):
    model, rows = sharp_model(family).double(), prompts(40)
    slow = batched(model, kind, rows)
    fast = batched(fast_one(model), kind, rows)
    assert slow.answers == fast.answers and len(set(slow.answers)) > 9
    assert torch.equal(slow.lengths, fast.lengths) and torch.equal(slow.closed, fast.closed)
    if kind != "no_cot":
        assert torch.equal(slow.chain, fast.chain)
        torch.testing.assert_close(slow.latents, fast.latents)


def test_decoding_asks_every_eighth_step_only():
    """And once a step when all is put together. The questions are read in as many groups each time."""
    rows, found = prompts(30), {}
    for longest in (3, 35):
        model = fast_one(sharp_model())
        with torch.no_grad():
            model.head.weight[TOK.end_think] *= 0
        with Reads() as mode:
            out = batched(model, "superposition", rows, max_chain=longest)
        assert out.lengths.max() == longest
        found[longest] = mode.count
    assert found[35] - found[3] <= 32 + 4 * 5


def test_a_step_of_fixed_shapes_is_one_graph_without_a_break_for_the_whole_of_an_answer(monkeypatch):
    """What CUDA records cannot ask either."""
    backend = Backend()
    compiled = torch.compile(OneToken.step, backend=backend, dynamic=False, fullgraph=True)
    model, rows = sharp_model(), prompts(9)
    slow = batched(model, "superposition", rows)
    monkeypatch.setattr(OneToken, "step", compiled)
    fast = batched(fast_one(model), "superposition", rows)
    assert slow.answers == fast.answers and torch.equal(slow.chain, fast.chain)
    assert backend.graphs == 1 and out_of(fast) > 8


def out_of(decoded) -> int:
    """Steps of the longest row."""
    return int(decoded.lengths.max()) + 1 + LIMITS["max_answer"]


# ------------------------------------------------------------------ on a GPU


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("attention", ["sdpa", "flex"])
def test_on_a_gpu_too(tok, rows, name, attention):
    method, batch, loss = loss_of(name, tok, rows)
    cuda = torch.device("cuda")
    slow = loss(batch)
    method.to(cuda)
    for model in (method.model, method.encoder) if name == "stage1" else (method.model,):
        model.fast, model.config.attention = Fast(compiled=True), attention
    torch.cuda.set_sync_debug_mode("error" if name != "stage1" else "default")
    found = loss(Moved(batch, cuda))
    torch.cuda.set_sync_debug_mode("default")
    found.backward()
    torch.testing.assert_close(found.cpu(), slow, rtol=0, atol=1e-3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ["explicit", "superposition"])
def test_on_a_gpu_recorded_steps_give_the_same_answers(kind):
    model, rows = sharp_model().double().cuda(), prompts(40)
    with torch.device("cuda"):
        slow = batched(model, kind, rows)
        fast = batched(fast_one(model), kind, rows)
    assert slow.answers == fast.answers and torch.equal(slow.lengths, fast.lengths)
