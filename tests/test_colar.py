"""CoLaR: merged embeddings by a naive loop, losses by closed forms and row by row, and decoding."""

import math
import random

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model

from minilatent import tasks
from minilatent.batch import Row, encode, segments
from minilatent.config import UserError
from minilatent.latent import compress
from minilatent.masks import LATENT
from minilatent.methods import METHODS
from minilatent.methods.colar import LatentHead, gaussian_nll, soft_mse
from minilatent.run import resolve
from minilatent.trainer import Trainer

SMALL = {"eval_batch": 4, "max_chain": 6, "max_answer": 3, "batch_size": 4, "speed": "3"}


@pytest.fixture(scope="module")
def rows(tok):
    found = encode(tasks.load("mini", "train", limit=9), tok, 512)[0]
    assert len({len(r.chain) for r in found}) > 1
    return found


def make(tok, name="colar", **changes):
    """A model that often predicts </think>: chains end by themselves, sooner or later."""
    config = resolve({"method": name, **SMALL, **changes})
    model = tiny_model(tok.vocab_size, scale=3.0, context=512, tied=False)
    with torch.no_grad():
        model.head.weight[tok.end_think] *= 12
    return METHODS[name](config, tok, model).train()


class Fixed(random.Random):
    """Gives the factor c, and "auto" never or always."""

    def __init__(self, c: int, auto: bool = False):
        super().__init__(0)
        self.c, self.auto = c, auto

    def randint(self, a, b):
        assert a <= self.c <= b
        return self.c

    def random(self):
        return 0.0 if self.auto else 1.0


def loss_of(method, rows, c, seed=0):
    return method.loss(method.collate(rows, Fixed(c)), torch.Generator().manual_seed(seed))


def prompt(tok, row, speed) -> list[int]:
    return tok.encode(f"{row.text} Let's think {speed} times faster:") + [tok.think]


def merged(E, row, c: int, pooling: str = "sqrt") -> list[torch.Tensor]:
    """Each block's embeddings, one after the other: their sum / √c, or their mean; c of the block itself."""
    z = []
    for block in segments(row.chain, c):
        total = sum(E[t] for t in block)
        z.append(total / (math.sqrt(len(block)) if pooling == "sqrt" else len(block)))
    return z


# ------------------------------------------------------------------ merging


@pytest.mark.parametrize("c", [1, 2, 4, 5, 8])
@pytest.mark.parametrize("pooling", ["sqrt", "mean"])
def test_compression_is_that_of_a_naive_loop_for_ragged_chains_side_by_side(tok, rows, c, pooling):
    method = make(tok, c_max=8, pooling=pooling)
    E, blocks = method.model.embed.weight, method.collate(rows, Fixed(c))["blocks"]
    assert c <= 2 or (blocks == tok.pad).any()  # a shorter last block: what a fixed √c gets wrong
    naive = [z for row in rows for z in merged(E, row, c, pooling)]
    found = compress(method.model.embed(blocks), blocks != tok.pad, pooling)
    torch.testing.assert_close(found, torch.stack(naive))


def test_the_variance_is_kept_by_the_root_and_not_by_the_mean():
    x = torch.randn(4000, 5, 64, generator=torch.Generator().manual_seed(0))
    real = torch.arange(5) < torch.randint(1, 6, (4000, 1), generator=torch.Generator().manual_seed(1))
    assert compress(x, real).var().item() == pytest.approx(1.0, abs=0.02)
    for c in (2, 5):
        mean = compress(x[:, :c], torch.ones(4000, c, dtype=torch.bool), "mean")
        assert mean.var().item() == pytest.approx(1 / c, abs=0.02)


def test_the_sequence_of_a_row_and_its_prompt(tok, rows):
    method, row = make(tok), rows[0]
    n = math.ceil(len(row.chain) / 3)
    assert method.layout(row, 3, 3).ids == prompt(tok, row, 3) + [tok.latent] * n + row.tail
    assert method.prompt(row.text) == prompt(tok, row, 3)  # inference reads what training showed
    ids = make(tok, auto=0.5).collate(rows, Fixed(2, auto=True))["ids"][0].tolist()
    assert ids[: len(prompt(tok, row, "auto"))] == prompt(tok, row, "auto")
    factors = {method.collate(rows, random.Random(i))["blocks"].shape[1] for i in range(60)}
    assert factors == {1, 2, 3, 4, 5, 6}


# ------------------------------------------------------------------ the losses


def test_nll_and_soft_mse_are_the_closed_forms_and_those_of_torch_distributions():
    mu, log_sigma, e = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(mu, log_sigma.exp())
    nll = -normal.log_prob(e).mean() - 0.5 * math.log(2 * math.pi)
    assert gaussian_nll(mu, log_sigma, e).item() == pytest.approx(nll.item(), rel=1e-5)
    sampled = (normal.sample((200_000,)) - e).pow(2).mean().item()
    closed = soft_mse(mu, log_sigma, e).item()
    assert closed == pytest.approx(sampled, rel=0.01)
    entropy = normal.entropy().mean().item()
    assert soft_mse(mu, log_sigma, e, 0.3).item() == pytest.approx(closed - 0.3 * entropy, rel=1e-4)
    point = torch.full_like(mu, -float("inf"))  # the deterministic head
    assert soft_mse(mu, point, e).item() == pytest.approx(F.mse_loss(mu, e).item(), rel=1e-6)


def test_at_c_1_compression_is_cot_sfts_cross_entropy_on_the_same_prompt(tok, rows):
    colar = make(tok)
    cot = METHODS["cot_sft"](resolve({"method": "cot_sft"}), tok, colar.model)
    expected, _ = cot.loss(cot.collate([Row(prompt(tok, r, 1), r.chain, r.tail) for r in rows]))
    assert loss_of(colar, rows, 1)[1]["comp"] == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize(
    "switches",
    [{}, {"latent_loss": "nll"}, {"latent_loss": "mse"}, {"pooling": "mean"}, {"compressed_labels": False}],
)
@pytest.mark.parametrize("c", [2, 5])
def test_the_loss_is_every_row_by_itself_whatever_the_padding(tok, rows, c, switches):
    method, rows = make(tok, **switches), rows[:4]
    config, E, scale = method.config, method.model.embed.weight, method.model.embed.weight.std()
    of_latent = gaussian_nll if config.latent_loss == "nll" else soft_mse
    n = len(method.collate(rows, Fixed(c))["blocks"])
    u = iter(torch.rand(n, generator=torch.Generator().manual_seed(0)).tolist())
    comp, latent = [], []
    for row in rows:
        z, given = merged(E, row, c, config.pooling), prompt(tok, row, c)
        x = torch.stack([*E[given], *z, *E[row.tail]])
        h = method.model(embeds=x[None])[0]
        log_q = method.model.logits(h).log_softmax(-1)
        think = len(given) - 1
        labels = [block[int(next(u) * len(block))] for block in segments(row.chain, c)]
        for i, y in enumerate(labels + row.tail, think):
            before_latent = i < think + len(z)
            if before_latent and not config.compressed_labels:
                others = torch.arange(len(log_q[i])) != tok.end_think  # 1 - p loses digits at p near 1
                comp.append(-log_q[i, others].logsumexp(0).item())
            else:
                comp.append(-log_q[i, y].item())
        for i in range(think, think + len(z) + 1):  # <think>, z_1 .. z_N; the last predicts </think>
            mu, log_sigma = method.latent_head(h[i])
            latent.append(of_latent(mu, log_sigma, x[i + 1] / scale).item())
    loss, logged = loss_of(method, rows, c)
    assert logged["comp"] == pytest.approx(sum(comp) / len(comp), abs=2e-4)
    assert logged["latent"] == pytest.approx(sum(latent) / len(latent), rel=1e-4)
    assert loss.item() == pytest.approx(logged["comp"] + config.latent_weight * logged["latent"], rel=1e-5)


def test_a_label_is_each_token_of_its_block_about_as_often(tok, rows, monkeypatch):
    method, seen = make(tok), []
    blocks = method.collate(rows[:1], Fixed(2))["blocks"]

    def spy(h, labels, following):
        seen.append(labels[following == LATENT])
        return h.sum() * 0

    monkeypatch.setattr(method, "compressed_cross_entropy", spy)
    for seed in range(100):
        loss_of(method, rows[:1], 2, seed)
    labels = torch.stack(seen)  # (100, N)
    first, second = labels == blocks[:, 0], labels == blocks[:, 1]
    assert (first | second).all() and 0.45 < first.float().mean() < 0.55


def test_the_table_stays_frozen_and_all_else_learns(tok, rows, tmp_path, monkeypatch):
    (tmp_path / "state").mkdir()
    method = make(tok, steps=4, latent_loss="nll", warmup=0.0)
    monkeypatch.setattr(method, "accuracy", lambda _: {"accuracy": 0.0, "mean_len": 0.0})
    before = {n: t.clone() for n, t in method.state_dict().items()}
    Trainer(method, tmp_path).fit(method.stages(rows), [])
    same = {n for n, t in method.state_dict().items() if torch.equal(t, before[n])}
    assert same == {"model.embed.weight", "scale"}


def test_a_deterministic_head_has_no_sigma():
    head = LatentHead(8, 12, deterministic=True)
    mu, log_sigma = head(torch.randn(3, 8))
    assert head.log_sigma is None and (log_sigma.exp() == 0).all() and mu.shape == (3, 8)


# ------------------------------------------------------------------ decoding (see test_decode.py, too)


def test_the_mean_repeats_and_samples_spread_with_the_temperature(tok, rows):
    method = make(tok).eval()
    solve = lambda: method.solve([r.text for r in rows])
    mean = solve()
    assert torch.equal(mean.latents, solve().latents) and mean.lengths.min() >= 1
    method.config.latent_temperature = 0.5
    assert not torch.equal(solve().latents[:, 0], mean.latents[:, 0])
    assert torch.equal(solve().latents, solve().latents)  # whatever was evaluated before


def test_the_end_of_a_chain_is_sampled_by_the_seed(tok, rows):
    method = make(tok).eval()
    often = method.solve([r.text for r in rows]).chain.flatten().mode().values
    with torch.no_grad():  # </think> as likely as the most likely token, or it is hardly ever sampled
        method.model.head_weight[tok.end_think] = method.model.head_weight[often]
    method.config.sample_end = True
    lengths = lambda: method.solve([r.text for r in rows[:4] for _ in range(60)]).lengths
    found, method.config.seed = lengths(), 1
    assert len(found.unique()) > 2, "chains end at several lengths, or the test tests little"
    assert (lengths() != found).sum() > 10 and torch.equal(lengths(), lengths())


# ------------------------------------------------------------------ where it starts


def test_a_frozen_head_that_cannot_learn_the_markers_is_refused(tok):
    """Of a pretrained model with a tied head; not of one that a run has taught </think>, nor with LoRA."""
    make(tok, init="hub/name").adopt({}, {})  # a head of its own
    tied = make(tok, init="hub/name")
    tied.model.config.tied = True
    with pytest.raises(UserError, match="cot_sft first"):
        tied.adopt({}, {})
    tied.adopt({}, {"method": "cot_sft"})
    tied.config.lora_rank = 2
    tied.adopt({}, {})
