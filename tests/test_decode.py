"""Batched, cached decoding against a decoder that does one question at a time and a full forward pass a step."""

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, tiny_model

from minilatent import decode as decoding
from minilatent.batch import pad
from minilatent.config import Config
from minilatent.decode import decode, explicit_thinker, hidden_thinker, superposition_thinker, without
from minilatent.methods import METHODS
from minilatent.tokenizer import MINI_PATTERN, Tiktoken, Tokenizer

TOK = Tokenizer(Tiktoken(MINI_PATTERN, [bytes([i]) for i in range(256)]))  # and the five markers
K, MAX_CHAIN, MAX_ANSWER = 4, 7, 5
FIXED = ("pause", "coconut", "codi")  # methods that always think as many steps
OWN = (*FIXED, "colar")  # methods that bring what they think with
KINDS = ("explicit", "superposition", "soft", "hidden", "no_cot", *OWN)
COLD = (3.3, 2)  # of Soft Thinking: entropy, steps in a row


@pytest.fixture(autouse=True)
def questions_read_in_several_groups(monkeypatch):
    """Questions are read in groups of about equal length: the tests' few rows must make more than one."""
    monkeypatch.setattr(decoding, "TOGETHER", 24)


def chatty_model(family: str = "mini", seed: int = 0):
    """Random and sharp: every layer's output is as large as what it reads, so that the whole context decides. With a
    loud </think>, <eos>, latent and padding chains and answers end at all lengths, and a decoder that forgets to
    forbid the latter two is found out."""
    model = tiny_model(TOK.vocab_size, seed, **{**FAMILIES[family], "tied": False})
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                gain = 0.5 if "embed" in name else 2 / p.shape[1] ** 0.5
                p.copy_(gain * torch.randn(p.shape, generator=generator))
        for token, volume in ((TOK.end_think, 6.0), (TOK.eos, 4.0), (TOK.latent, 3.0), (TOK.pad, 3.0)):
            model.head.weight[token] *= volume
    return model


def method(kind: str, model):
    return (
        METHODS[kind](
            Config(method=kind, num_latents=4, max_chain=MAX_CHAIN, max_answer=MAX_ANSWER), TOK, model
        )
        .to(model.embed.weight)
        .eval()
    )


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
    return [
        torch.randint(0, 256, (int(torch.randint(1, 13, (1,), generator=g)),), generator=g).tolist()
        + [TOK.think]
        for _ in range(n)
    ]


@torch.no_grad()
def naive(model, kind: str, prompt: list[int]) -> tuple[list[int], list[torch.Tensor], list[int], bool]:
    """Chain of likeliest tokens, what was fed at each step, answer tokens, ended by itself."""
    table, x = model.embed.weight, [model.embed.weight[i] for i in prompt]
    chain, fed, answer, closed, sure = [], [], [], kind == "no_cot", 0
    projection = method(kind, model).projection if kind == "codi" else None
    head = method(kind, model).latent_head if kind == "colar" else None

    def look():
        h = model(embeds=torch.stack(x)[None])[0, -1]
        logits = h @ model.head.weight.T
        logits[TOK.latent] = logits[TOK.pad] = -float("inf")
        return h, logits

    if kind == "no_cot":
        x.append(table[TOK.end_think])
    else:
        while True:
            h, logits = look()
            closed = len(chain) == 4 if kind in FIXED else int(logits.argmax()) == TOK.end_think
            closed = closed and (kind != "colar" or len(chain) > 0)  # at least one latent
            if kind == "soft":
                p = logits.softmax(0)
                sure = sure + 1 if -sum(x * x.log() for x in p if x > 0) < COLD[0] else 0
                closed = closed or sure == COLD[1]
            if closed or len(chain) == MAX_CHAIN:
                x.append(table[TOK.end_think])
                break
            if kind == "explicit":
                z = table[logits.argmax()]
            elif kind in ("superposition", "soft"):
                best = logits.sort(descending=True).indices[:K]
                weights = (logits[best] / (0.6 if kind == "soft" else 1)).softmax(0)
                z = sum(w * table[i] for w, i in zip(weights, best))
            elif kind == "pause":
                z = table[TOK.latent]
            elif kind == "coconut":
                z = h
            elif kind == "codi":
                inner = (
                    F.gelu(h @ projection[0].weight.T + projection[0].bias) @ projection[2].weight.T
                    + projection[2].bias
                )
                z = (inner - inner.mean()) / (inner.var(correction=0) + 1e-5).sqrt() * projection[
                    3
                ].weight + projection[3].bias
            elif kind == "colar":
                z = head(h)[0] * table.std()
            else:
                z = (h - h.mean()) / (h.std() + 1e-6) * table.std()
            chain.append(int(logits.argmax())), fed.append(z), x.append(z)
    while len(answer) < MAX_ANSWER and (not answer or answer[-1] != TOK.eos):
        answer.append(int(look()[1].argmax()))
        x.append(table[answer[-1]])
    return chain, fed, answer, closed


def batched(model, kind: str, rows: list[list[int]], **options):
    rows = [r + [TOK.end_think] for r in rows] if kind == "no_cot" else rows
    ids = pad(rows, TOK.pad)
    options = {
        "max_chain": MAX_CHAIN,
        "max_answer": MAX_ANSWER,
        **(method(kind, model).decoding() if kind in OWN else {}),
        **({"cold": COLD} if kind == "soft" else {}),
        **options,
    }
    return decode(
        model, TOK, model.embed(ids), torch.tensor([len(r) for r in rows]), thinker(kind, model), **options
    )


@pytest.mark.parametrize("family", ["mini", "gpt2"])
def test_several_samples_of_a_question_are_as_if_it_had_been_asked_so_often(family):
    """It is read once for all of them; what is drawn is another's for each."""
    model, rows = chatty_model(family).double(), prompts(12)
    draws = lambda: {
        name: torch.Generator().manual_seed(i) for i, name in enumerate(("sample_end", "sample_answer"))
    }
    one = batched(model, "superposition", rows, samples=5, **draws())
    many = batched(model, "superposition", [r for r in rows for _ in range(5)], **draws())
    assert (
        one.answers == many.answers
        and torch.equal(one.lengths, many.lengths)
        and torch.equal(one.chain, many.chain)
    )
    torch.testing.assert_close(one.latents, many.latents)
    assert len(one.answers) == 60 and any(len(set(one.answers[i : i + 5])) > 1 for i in range(0, 60, 5))


@pytest.mark.parametrize("family", ["mini", "gpt2", "qwen"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_one_question_at_a_time_gives_exactly_in_float64(kind, family):
    """`Batch > 1 differs from batch 1`: positions counted with the padding, padding in the cache, a row that goes on
    because its neighbour does. The rows end at different steps here, which is when it shows."""
    model, rows = chatty_model(family).double(), prompts(64)
    out = batched(model, kind, rows)
    expected = [naive(model, kind, r) for r in rows]
    assert out.answers == [TOK.decode(answer) for _, _, answer, _ in expected]
    assert out.lengths.tolist() == [len(chain) for chain, *_ in expected]
    assert len({tuple(answer) for _, _, answer, _ in expected}) > 12  # or nothing is shown
    assert len({len(answer) for _, _, answer, _ in expected}) > 1  # and answers of several lengths
    if kind == "no_cot":
        return
    assert out.closed.tolist() == [closed for *_, closed in expected]
    if kind in FIXED:
        assert (
            out.lengths.tolist() == [4] * len(rows) and out.closed.all()
        )  # whatever the model says: </think> is loud
    else:
        assert len(set(out.lengths.tolist())) > 3 and 0 < out.closed.sum() < len(rows)
    assert out.chain.shape[1] == out.latents.shape[1] == out.lengths.max()
    for b, (chain, fed, _, _) in enumerate(expected):
        assert out.chain[b].tolist() == chain + [TOK.pad] * (out.chain.shape[1] - len(chain))
        if fed:
            torch.testing.assert_close(out.latents[b, : len(fed)], torch.stack(fed), rtol=0, atol=1e-10)
        assert (out.latents[b, len(fed) :] == 0).all()


def test_in_float32_fewer_than_one_row_in_a_thousand_differs():
    model, n, different = chatty_model(seed=1), 250, 0
    for kind in ("explicit", "superposition"):
        rows = prompts(n // 2, seed=5)
        out = batched(model, kind, rows)
        for b, row in enumerate(rows):
            chain, _, answer, _ = naive(model, kind, row)
            different += out.answers[b] != TOK.decode(answer) or out.lengths[b] != len(chain)
    assert different <= 0.001 * n


@pytest.mark.parametrize("kind", ["explicit", "superposition"])
def test_a_rows_result_does_not_depend_on_its_neighbours_or_place(kind):
    model, rows = chatty_model().double(), prompts(10, seed=3)
    out, back = batched(model, kind, rows), batched(model, kind, rows[::-1])
    assert out.answers == back.answers[::-1] and torch.equal(out.lengths, back.lengths.flip(0))
    alone = batched(model, kind, rows[:1])
    assert alone.answers == out.answers[:1] and alone.chain.shape[1] == alone.lengths[0]


def test_the_kept_probabilities_are_the_full_softmax_of_each_step_with_nothing_on_the_latent_or_padding():
    model, rows = chatty_model().double(), prompts(8)
    out = batched(model, "superposition", rows, keep_probs=True)
    assert out.probs.shape == (8, int(out.lengths.max()), TOK.vocab_size)
    for b, n in enumerate(out.lengths.tolist()):
        torch.testing.assert_close(out.probs[b, :n].sum(-1), torch.ones(n), rtol=0, atol=1e-5)
        assert (out.probs[b, :n, TOK.never] == 0).all() and (out.probs[b, n:] == 0).all()
        assert out.probs[b, :n].argmax(-1).tolist() == out.chain[b, :n].tolist()


def test_markers_are_never_counted_and_a_chain_that_does_not_end_is_closed_by_force():
    """#L counts latents or chain tokens; </think> and <think> counted would flatter nobody but confuse every table."""
    silent, hasty = chatty_model(), chatty_model()
    with torch.no_grad():
        silent.norm.weight.zero_(), hasty.norm.weight.zero_()  # hidden states no longer matter ..
        silent.head.weight.zero_(), hasty.head.weight.zero_()
        for model in (silent, hasty):  # .. and a constant one decides
            model.norm = torch.nn.LayerNorm(16, elementwise_affine=True)
            model.norm.weight.data.zero_(), model.norm.bias.data.fill_(1.0)
        silent.head.weight[65] = 1.0  # says "A" for ever
        hasty.head.weight[TOK.end_think] = 1.0  # says </think> for ever
    out = batched(silent, "superposition", prompts(3))
    assert (
        out.lengths.tolist() == [MAX_CHAIN] * 3
        and not out.closed.any()
        and out.answers == ["A" * MAX_ANSWER] * 3
    )
    out = batched(hasty, "superposition", prompts(3))
    assert out.lengths.tolist() == [0] * 3 and out.closed.all() and out.answers == [""] * 3


def test_no_chain_ends_before_the_least_number_of_steps_and_a_fixed_number_is_no_cut():
    """A thinker that is closed by force is `not closed`; one whose steps are fixed has ended as it should."""
    model, rows = chatty_model().double(), prompts(40)
    free, least = batched(model, "hidden", rows), batched(model, "hidden", rows, min_chain=3)
    assert (free.lengths < 3).any() and (least.lengths >= 3).all() and (least.lengths > 3).any()
    late = free.lengths >= 3
    assert torch.equal(free.lengths[late], least.lengths[late])
    assert [a for a, x in zip(free.answers, late) if x] == [a for a, x in zip(least.answers, late) if x]
    for n in (0, 1, 5):
        out = batched(model, "hidden", rows, min_chain=n, max_chain=n)
        assert out.lengths.tolist() == [n] * 40 and out.closed.all() and out.latents.shape[1] == n


def test_a_cold_stop_ends_a_chain_after_n_sure_steps_in_a_row_and_no_other():
    model, rows = chatty_model().double(), prompts(64)
    free, cold = batched(model, "soft", rows, cold=None), batched(model, "soft", rows)
    assert cold.closed.sum() > free.closed.sum() and (cold.lengths < free.lengths).sum() > 5
    same = cold.lengths == free.lengths
    assert same.sum() > 5 and [a for a, x in zip(cold.answers, same) if x] == [
        a for a, x in zip(free.answers, same) if x
    ]
    later = batched(model, "soft", rows, cold=(COLD[0], 3))
    assert ((cold.lengths <= later.lengths) & (later.lengths <= free.lengths)).all()
    assert batched(model, "soft", rows, cold=(1e9, 1)).lengths.tolist() == [0] * 64


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
