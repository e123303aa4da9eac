"""Batched, cached decoding against a decoder that does one question at a time, a full forward pass a step."""

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, new_method, tiny_model

from minilatent import cache
from minilatent.batch import pad
from minilatent.cache import without
from minilatent.decode import decode, explicit_thinker, hidden_thinker, superposition_thinker
from minilatent.tokenizer import MINI_PATTERN, Tiktoken, Tokenizer

TOK = Tokenizer(Tiktoken(MINI_PATTERN, [bytes([i]) for i in range(256)]))  # and the five markers
K, LIMITS = 4, {"max_chain": 7, "max_answer": 5}
FIXED = ("pause", "coconut", "sim_cot", "codi")  # methods that always think 4 steps
OWN = (*FIXED, "colar")  # methods whose thinker is their own
KINDS = ("explicit", "superposition", "soft", "hidden", "no_cot", *OWN)
CASES = [*((kind, "mini") for kind in KINDS), ("explicit", "gpt2"), ("superposition", "gpt2")]
CASES += [("explicit", "qwen"), ("superposition", "qwen")]


@pytest.fixture(autouse=True)
def questions_read_in_several_groups(monkeypatch):
    """Questions are read in groups of about equal length: the tests' few rows must make more than one."""
    monkeypatch.setattr(cache, "PREFILL_ROWS", 24)


def sharp_model(family: str = "mini", seed: int = 0):
    """Random and sharp: every layer's output is as large as what it reads, so that the whole context decides.
    </think>, <eos>, latent and padding are likely: chains and answers end at all lengths, and a decoder that
    forgets to forbid the latter two is found out."""
    model = tiny_model(TOK.vocab_size, seed, **{**FAMILIES[family], "tied": False})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                gain = 0.5 if "embed" in name else 2 / p.shape[1] ** 0.5
                p.copy_(gain * torch.randn(p.shape, generator=generator))
        for token, factor in ((TOK.end_think, 6.0), (TOK.eos, 4.0), (TOK.latent, 3.0), (TOK.pad, 3.0)):
            model.head.weight[token] *= factor
    return model


def method(kind: str, model):
    fixed = {"num_latents": 4} if kind in FIXED else {}
    return new_method(kind, TOK, model, **LIMITS, **fixed).to(model.embed.weight)


def thinker(kind: str, model):
    if kind in OWN:
        return method(kind, model).thinker()
    return {
        "explicit": lambda: explicit_thinker(model),
        "superposition": lambda: superposition_thinker(model, K, TOK.never),
        "soft": lambda: superposition_thinker(model, K, TOK.never, 0.6),
        "hidden": lambda: hidden_thinker(model),
        "no_cot": lambda: None,
    }[kind]()


def prompts(n: int, seed: int = 0) -> list[list[int]]:
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 13, (n,), generator=g).tolist()
    return [[*torch.randint(0, 256, (length,), generator=g).tolist(), TOK.think] for length in lengths]


def projected(h: torch.Tensor, layers) -> torch.Tensor:
    """CODI's: Linear, GELU, Linear, LayerNorm."""
    inner = F.gelu(layers[0].weight @ h + layers[0].bias)
    inner = layers[2].weight @ inner + layers[2].bias
    inner = (inner - inner.mean()) / (inner.var(correction=0) + 1e-5).sqrt()
    return inner * layers[3].weight + layers[3].bias


@torch.no_grad()
def naive(model, kind: str, prompt: list[int]) -> tuple[list[int], list[torch.Tensor], list[int], bool]:
    """Chain of most likely tokens, what was fed at each step, answer tokens, ended by itself."""
    table, x = model.embed.weight, [model.embed.weight[i] for i in prompt]
    chain, fed, answer, closed = [], [], [], kind == "no_cot"
    own = method(kind, model) if kind in OWN else None

    def predict():
        h = model(embeds=torch.stack(x)[None])[0, -1]
        logits = h @ model.head.weight.T
        logits[TOK.latent] = logits[TOK.pad] = -float("inf")
        return h, logits

    def mixture(logits):
        best = logits.sort(descending=True).indices[:K]
        weights = (logits[best] / (0.6 if kind == "soft" else 1)).softmax(0)
        return sum(w * table[i] for w, i in zip(weights, best))

    feed = {
        "explicit": lambda h, logits: table[logits.argmax()],
        "superposition": lambda h, logits: mixture(logits),
        "soft": lambda h, logits: mixture(logits),
        "hidden": lambda h, logits: (h - h.mean()) / (h.std() + 1e-6) * table.std(),
        "pause": lambda h, logits: table[TOK.latent],
        "coconut": lambda h, logits: h,
        "sim_cot": lambda h, logits: h,
        "codi": lambda h, logits: projected(h, own.projection),
        "colar": lambda h, logits: own.latent_head(h)[0] * table.std(),
    }
    while kind != "no_cot":
        h, logits = predict()
        closed = len(chain) == 4 if kind in FIXED else int(logits.argmax()) == TOK.end_think
        closed = closed and (kind != "colar" or len(chain) > 0)  # at least one latent
        if closed or len(chain) == LIMITS["max_chain"]:
            break
        z = feed[kind](h, logits)
        chain.append(int(logits.argmax())), fed.append(z), x.append(z)
    x.append(table[TOK.end_think])
    while len(answer) < LIMITS["max_answer"] and TOK.eos not in answer:
        answer.append(int(predict()[1].argmax()))
        x.append(table[answer[-1]])
    return chain, fed, answer, closed


def batched(model, kind: str, rows: list[list[int]], **options):
    rows = [r + [TOK.end_think] for r in rows] if kind == "no_cot" else rows
    own = method(kind, model).decoding() if kind in OWN else {}
    prefix, lengths = model.embed(pad(rows, TOK.pad)), torch.tensor([len(r) for r in rows])
    return decode(model, TOK, prefix, lengths, thinker(kind, model), **{**LIMITS, **own, **options})


@pytest.mark.parametrize("kind, family", CASES)
def test_a_batch_gives_what_one_question_at_a_time_gives_exactly_in_float64(kind, family):
    """Batch > 1 differs from batch 1: positions counted with the padding, padding in the cache, a row that
    goes on because its neighbour does. The rows end at different steps here, which is when it shows."""
    model, rows = sharp_model(family).double(), prompts(40)
    out = batched(model, kind, rows)
    expected = [naive(model, kind, r) for r in rows]
    answers = [answer for _, _, answer, _ in expected]
    assert out.answers == [TOK.decode(answer) for answer in answers]
    assert out.lengths.tolist() == [len(chain) for chain, *_ in expected]
    assert len({tuple(answer) for answer in answers}) > 9  # or nothing is shown
    assert len({len(answer) for answer in answers}) > 1  # and answers of several lengths
    if kind == "no_cot":
        return
    assert out.closed.tolist() == [closed for *_, closed in expected]
    if kind in FIXED:  # whatever the model predicts
        assert out.lengths.tolist() == [4] * len(rows) and out.closed.all()
    else:
        assert len(set(out.lengths.tolist())) > 3 and 0 < out.closed.sum() < len(rows)
    assert out.chain.shape[1] == out.latents.shape[1] == out.lengths.max()
    for b, (chain, fed, _, _) in enumerate(expected):
        assert out.chain[b].tolist() == chain + [TOK.pad] * (out.chain.shape[1] - len(chain))
        if fed:
            atol = 1e-9 if kind == "soft" else 1e-10  # a temperature below 1 amplifies rounding
            torch.testing.assert_close(out.latents[b, : len(fed)], torch.stack(fed), rtol=0, atol=atol)
        assert (out.latents[b, len(fed) :] == 0).all()


@pytest.mark.parametrize("kind", ["explicit", "superposition"])
def test_in_float32_no_row_of_a_hundred_differs(kind):
    model, rows = sharp_model(seed=1), prompts(100, seed=5)
    out = batched(model, kind, rows)
    for b, row in enumerate(rows):
        chain, _, answer, _ = naive(model, kind, row)
        assert out.answers[b] == TOK.decode(answer) and out.lengths[b] == len(chain)


@pytest.mark.parametrize("family", ["mini", "gpt2"])
def test_several_samples_of_a_question_are_those_of_the_question_given_several_times(family):
    """It is read once for all of them; what is sampled differs."""
    model, rows = sharp_model(family).double(), prompts(12)
    seeds = {"sample_end": 0, "sample_answer": 1}
    generators = lambda: {name: torch.Generator().manual_seed(seed) for name, seed in seeds.items()}
    one = batched(model, "superposition", rows, samples=5, **generators())
    many = batched(model, "superposition", [r for r in rows for _ in range(5)], **generators())
    assert one.answers == many.answers
    assert torch.equal(one.lengths, many.lengths) and torch.equal(one.chain, many.chain)
    torch.testing.assert_close(one.latents, many.latents)
    assert len(one.answers) == 60 and any(len(set(one.answers[i : i + 5])) > 1 for i in range(0, 60, 5))


@pytest.mark.parametrize("kind", ["explicit", "superposition"])
def test_a_rows_result_does_not_depend_on_its_neighbours_or_place(kind):
    model, rows = sharp_model().double(), prompts(10, seed=3)
    out, back = batched(model, kind, rows), batched(model, kind, rows[::-1])
    assert out.answers == back.answers[::-1] and torch.equal(out.lengths, back.lengths.flip(0))
    alone = batched(model, kind, rows[:1])
    assert alone.answers == out.answers[:1] and alone.chain.shape[1] == alone.lengths[0]


def test_the_kept_probabilities_are_the_full_softmax_of_each_step_with_nothing_on_the_latent_or_padding():
    out = batched(sharp_model().double(), "superposition", prompts(8), keep_probs=True)
    assert out.probs.shape == (8, int(out.lengths.max()), TOK.vocab_size)
    for b, n in enumerate(out.lengths.tolist()):
        torch.testing.assert_close(out.probs[b, :n].sum(-1), torch.ones(n), rtol=0, atol=1e-5)
        assert (out.probs[b, :n, TOK.never] == 0).all() and (out.probs[b, n:] == 0).all()
        assert out.probs[b, :n].argmax(-1).tolist() == out.chain[b, :n].tolist()


@pytest.mark.parametrize("token", [ord("A"), TOK.end_think])
def test_markers_are_never_counted_and_a_chain_that_does_not_end_is_closed_by_force(token):
    """#L counts latents or chain tokens, neither <think> nor </think>."""
    model = sharp_model()
    with torch.no_grad():  # the hidden state is constant, and `token` is always the most likely
        model.norm = torch.nn.LayerNorm(16)
        model.norm.weight.zero_(), model.norm.bias.fill_(1.0)
        model.head.weight.zero_()
        model.head.weight[token] = 1.0
    out = batched(model, "superposition", prompts(3))
    if token == TOK.end_think:
        assert out.lengths.tolist() == [0] * 3 and out.closed.all() and out.answers == [""] * 3
    else:
        assert out.lengths.tolist() == [LIMITS["max_chain"]] * 3 and not out.closed.any()
        assert out.answers == ["A" * LIMITS["max_answer"]] * 3


def test_no_chain_ends_before_the_least_number_of_steps_and_a_fixed_number_is_no_cut():
    """A chain that is closed by force is not `closed`; one of a fixed length has ended as it should."""
    model, rows = sharp_model().double(), prompts(40)
    free, least = batched(model, "hidden", rows), batched(model, "hidden", rows, min_chain=3)
    assert (free.lengths < 3).any() and (least.lengths >= 3).all() and (least.lengths > 3).any()
    for b in (free.lengths >= 3).nonzero()[:, 0].tolist():
        assert free.lengths[b] == least.lengths[b] and free.answers[b] == least.answers[b]
    for n in (0, 1, 5):
        out = batched(model, "hidden", rows, min_chain=n, max_chain=n)
        assert out.lengths.tolist() == [n] * 40 and out.closed.all() and out.latents.shape[1] == n


@pytest.mark.parametrize(
    "done, expected",
    [
        ("0000", [0, 1, 2, 3]),
        ("0100", [0, 3, 2]),
        ("1100", [2, 3]),
        ("0011", [0, 1]),
        ("1010", [3, 1]),
        ("0111", [0]),
    ],
)
def test_finished_rows_leave_gaps_that_the_last_ones_fill_and_nobody_else_moves(done, expected):
    assert without(torch.tensor([d == "1" for d in done])).tolist() == expected
