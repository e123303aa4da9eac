"""CoLaR and its RL: merged embeddings by a naive loop, losses by closed forms, samples and their probabilities."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model

from minilatent.batch import encode, segments
from minilatent.config import UserError, resolve
from minilatent.latent import LatentHead, compress
from minilatent.losses import gaussian_nll, soft_mse
from minilatent.masks import LATENT
from minilatent.methods import METHODS
from minilatent.tasks import words
from minilatent.trainer import Trainer

SMALL = {"eval_batch": 4, "max_chain": 6, "max_answer": 3, "batch_size": 4, "group": 3, "speed": "3"}


@pytest.fixture(scope="module")
def rows(tok):
    found = encode(words.load("mini", "train", 9), tok, 512)[0]
    assert len({len(r.chain) for r in found}) > 1
    return found


def make(tok, name="colar", scale=3.0, **changes):
    """A model whose </think> is loud: chains end by themselves, sooner or later."""
    config = resolve({"method": name, **SMALL, **changes})
    model = tiny_model(tok.vocab_size, scale=scale, context=512, tied=False)
    with torch.no_grad():
        model.head.weight[tok.end_think] *= 12
    return METHODS[name](config, tok, model).train()


class Fixed(random.Random):
    """Draws the factor c, and "auto" never or always."""

    def __init__(self, c: int, auto: bool = False):
        super().__init__(0)
        self.c, self.auto = c, auto

    def randint(self, a, b):
        assert a <= self.c <= b
        return self.c

    def random(self):
        return 0.0 if self.auto else 1.0


def run(method, rows, c, seed=0):
    return method.loss(method.collate(rows, Fixed(c)), torch.Generator().manual_seed(seed), 0.0)


# --- merging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("c", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("pooling", ["sqrt", "mean"])
def test_compression_is_that_of_a_naive_loop_for_ragged_chains_side_by_side(tok, rows, c, pooling):
    method = make(tok, c_max=8, pooling=pooling)
    E = method.model.embed.weight
    naive = []
    for row in rows:
        for s in range(0, len(row.chain), c):
            block = row.chain[s : s + c]
            naive.append(
                sum(E[t] for t in block) / (math.sqrt(len(block)) if pooling == "sqrt" else len(block))
            )
    blocks = method.collate(rows, Fixed(c))["blocks"]
    assert c == 1 or (blocks == tok.pad).any()  # a shorter last block: what a fixed √c gets wrong
    torch.testing.assert_close(
        compress(method.model.embed(blocks), blocks != tok.pad, pooling), torch.stack(naive)
    )


def test_the_variance_is_kept_by_the_root_and_not_by_the_mean():
    x = torch.randn(4000, 5, 64, generator=torch.Generator().manual_seed(0))
    real = torch.arange(5) < torch.randint(1, 6, (4000, 1), generator=torch.Generator().manual_seed(1))
    assert compress(x, real).var().item() == pytest.approx(1.0, abs=0.02)
    for c in (2, 5):
        mean = compress(x[:, :c], torch.ones(4000, c, dtype=torch.bool), "mean")
        assert mean.var().item() == pytest.approx(1 / c, abs=0.02)


def test_the_sequence_of_a_row_and_its_prompt(tok, rows):
    method, row = make(tok), rows[0]
    x = method.layout(row, 3, 3)
    prompt = tok.encode(row.text + " Let's think 3 times faster:") + [tok.think]
    n = math.ceil(len(row.chain) / 3)
    assert x.ids == prompt + [tok.latent] * n + [tok.end_think, *row.answer]
    assert method.prompt(row.text) == prompt  # inference reads what training showed
    auto = make(tok, auto=0.5)
    assert "auto times faster" in tok.decode(auto.collate(rows, Fixed(2, auto=True))["ids"][0].tolist())
    drawn = {method.collate(rows, random.Random(i))["blocks"].shape[1] for i in range(60)}
    assert drawn == {1, 2, 3, 4, 5}


# --- the losses ----------------------------------------------------------------------------------------------------


def test_nll_and_soft_mse_are_the_closed_forms_and_those_of_torch_distributions():
    g = torch.Generator().manual_seed(0)
    mu, log_sigma, e = (torch.randn(7, 5, generator=g) for _ in range(3))
    normal = torch.distributions.Normal(mu, log_sigma.exp())
    nll = -normal.log_prob(e).mean() - 0.5 * math.log(2 * math.pi)
    assert gaussian_nll(mu, log_sigma, e).item() == pytest.approx(nll.item(), rel=1e-5)
    drawn = (normal.sample((200_000,)) - e).pow(2).mean()
    assert soft_mse(mu, log_sigma, e).item() == pytest.approx(drawn.item(), rel=0.01)
    assert soft_mse(mu, log_sigma, e, 0.3).item() == pytest.approx(
        (soft_mse(mu, log_sigma, e) - 0.3 * normal.entropy().mean()).item(), rel=1e-4
    )
    point = torch.full_like(mu, -float("inf"))  # the deterministic head
    assert soft_mse(mu, point, e).item() == pytest.approx(F.mse_loss(mu, e).item(), rel=1e-6)


def test_at_c_1_compression_is_cot_sfts_cross_entropy_on_the_same_prompt(tok, rows):
    colar = make(tok)
    cot = METHODS["cot_sft"](resolve({"method": "cot_sft"}), tok, colar.model)
    prompted = [type(r)(tok.encode(r.text + " Let's think 1 times faster:"), r.chain, r.answer) for r in rows]
    expected, _ = cot.loss(cot.collate(prompted), None, 0.0)
    assert run(colar, rows, 1)[1]["comp"] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(
    "switches",
    [{}, {"latent_loss": "nll"}, {"latent_loss": "mse"}, {"pooling": "mean"}, {"compressed_labels": False}],
)
@pytest.mark.parametrize("c", [2, 5])
def test_the_loss_is_every_row_by_itself_whatever_the_padding(tok, rows, c, switches):
    method = make(tok, **switches)
    E, scale = method.model.embed.weight, method.model.embed.weight.std()
    rows, batch = rows[:4], method.collate(rows[:4], Fixed(c))
    u = torch.rand(len(batch["blocks"]), generator=torch.Generator().manual_seed(0)).tolist()
    comp, latent, n = [], [], 0
    for row in rows:
        blocks = segments(row.chain, c)
        z = [
            sum(E[t] for t in b) / (len(b) if method.config.pooling == "mean" else len(b) ** 0.5)
            for b in blocks
        ]
        labels = [b[int(u[n + i] * len(b))] for i, b in enumerate(blocks)]
        n += len(blocks)
        prompt = tok.encode(f"{row.text} Let's think {c} times faster:") + [tok.think]
        tail = [tok.end_think, *row.answer]
        x = torch.stack([E[t] for t in prompt] + z + [E[t] for t in tail])
        h = method.model(embeds=x[None])[0]
        log_q = method.model.logits(h).log_softmax(-1)
        for i, y in enumerate(labels + tail, len(prompt) - 1):
            end = log_q[i, tok.end_think]
            off = not method.config.compressed_labels and i < len(prompt) + len(z) - 1
            comp.append((-torch.log1p(-end.exp()) if off else -log_q[i, y]).item())
        for i in range(
            len(prompt) - 1, len(prompt) + len(z)
        ):  # <think>, z_1 .. z_N; the last foretells </think>
            mu, log_sigma = method.latent_head(h[i])
            e = x[i + 1] / scale
            latent.append(
                (gaussian_nll if method.config.latent_loss == "nll" else soft_mse)(mu, log_sigma, e).item()
            )
    loss, logged = run(method, rows, c)
    assert logged["comp"] == pytest.approx(sum(comp) / len(comp), abs=2e-4)
    assert logged["latent"] == pytest.approx(sum(latent) / len(latent), rel=1e-4)
    assert loss.item() == pytest.approx(
        logged["comp"] + method.config.latent_weight * logged["latent"], rel=1e-5
    )


def test_a_label_is_each_token_of_its_block_about_as_often(tok, rows):
    method, seen = make(tok), []
    blocks = method.collate(rows[:1], Fixed(2))["blocks"]
    method.compressed_cross_entropy = lambda h, labels, following: (
        seen.append(labels[following == LATENT]),
        h.sum() * 0,
    )[1]
    for seed in range(200):
        run(method, rows[:1], 2, seed)
    labels = torch.stack(seen)  # (200, N)
    first = (labels == blocks[:, 0]).float().mean()
    assert ((labels == blocks[:, 0]) | (labels == blocks[:, 1])).all() and 0.45 < first < 0.55


def test_the_table_stays_frozen_and_all_else_learns(tok, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("minilatent.methods.colar.accuracy", lambda *a: {"accuracy": 0.0, "mean_len": 0.0})
    (tmp_path / "state").mkdir()
    method = make(tok, steps=4, own_latents=1.0, latent_loss="nll", warmup=0.0)
    before = {n: t.clone() for n, t in method.state_dict().items()}
    Trainer(method.config, method, tmp_path).fit(rows, [])
    same = {n for n, t in method.state_dict().items() if torch.equal(t, before[n])}
    assert same == {"model.embed.weight", "scale"}


def test_own_latents_supervise_the_answer_through_what_the_head_would_feed(tok, rows):
    method = make(tok, own_latents=1.0, latent_loss="nll")
    loss, logged = run(method, rows[:3], 2)
    assert loss.item() == pytest.approx(
        logged["comp"] + method.config.latent_weight * logged["latent"] + logged["own"], rel=1e-5
    )
    grads = torch.autograd.grad(
        loss - run(make(tok, latent_loss="nll"), rows[:3], 2)[0], method.latent_head.mu.weight
    )
    assert grads[0].abs().sum() > 0
    assert logged["own"] != run(method, rows[:3], 2, seed=1)[1]["own"]  # sampled


def test_a_deterministic_head_has_no_sigma():
    head = LatentHead(8, 12, deterministic=True)
    mu, log_sigma = head(torch.randn(3, 8))
    assert head.log_sigma is None and (log_sigma.exp() == 0).all() and mu.shape == (3, 8)


# --- decoding: test_decode.py holds it against the naive decoder ----------------------------------------------------


def test_the_mean_repeats_and_samples_spread_with_the_temperature(tok, rows):
    method = make(tok).eval()
    solve = lambda: method.solve([r.text for r in rows])
    a, b = solve(), solve()
    assert torch.equal(a.latents, b.latents) and a.lengths.min() >= 1
    method.config.latent_temperature = 0.5
    assert not torch.equal(solve().latents[:, 0], a.latents[:, 0])
    assert torch.equal(solve().latents, solve().latents)  # whatever was evaluated before
    method.config.latent_temperature, method.config.sample_end = 0.0, True
    with torch.no_grad():  # </think> as likely as the likeliest token, or it is hardly ever drawn
        method.model.head_weight[tok.end_think] = method.model.head_weight[a.chain[0, 0]]
    solve = lambda: method.solve([r.text for r in rows for _ in range(100)]).lengths
    a, method.config.seed = solve(), 1
    assert len(a.unique()) > 2, "chains end at several lengths, or the test tests little"
    assert (solve() != a).sum() > 10 and torch.equal(solve(), solve())


# --- where it starts ------------------------------------------------------------------------------------------------


def test_a_frozen_head_that_cannot_learn_the_markers_is_refused(tok):
    """Of a pretrained model with a tied head, asked directly; not of one that a run has taught </think>, nor with LoRA."""
    make(tok, init="hub/name").adopt({}, {})  # a head of its own
    tied = make(tok, init="hub/name")
    tied.model.config.tied = True
    with pytest.raises(UserError, match="cot_sft first"):
        tied.adopt({}, {})
    tied.adopt({}, {"method": "cot_sft"})
    tied.config.lora_rank = 2
    tied.adopt({}, {})
