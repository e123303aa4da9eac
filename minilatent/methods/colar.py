"""CoLaR: the chain's embeddings merged in blocks of c, a head that predicts the next merged one, and GRPO on top.

Tan et al., "Think Silently, Think Fast: Dynamic Latent Compression of LLM Reasoning Chains", arXiv 2505.16552.

    z_i    = sum of a block's token embeddings / √c           B_1..B_N: the chain in blocks of c tokens
    input    Q "Let's think c times faster:" <think> z_1 .. z_N </think> answer <eos>          causal
    L_comp   cross-entropy of the language head; the label before z_i is one token of B_i, drawn at random
    L_latent of the latent head, N(μ, σ) over the *next* input: at <think> and z_1 .. z_(N-1) of the next z, at z_N
             of the embedding of </think>; targets divided by the embedding table's std

A training step draws one c from 1..c_max and says it in the prompt, so that one model thinks at every speed. At
inference the latent head's μ (or a sample) is fed back until the language head, at the latent just fed, predicts
</think>. The embedding table stays frozen: the targets are made of it. (With --lora_rank it is frozen
anyway, but for the markers' rows, see lora.py; the latent head is trained and saved with the adapters.)

    python train.py --method colar [--init out/cot_sft] [--latent_loss nll] [--pooling mean] [--no-compressed_labels] [--own_latents 1]
    python eval.py --ckpt out/colar --speed 1 2 3 4 5
    python train.py --method colar_rl --init out/colar        RL on top of an NLL model, see CoLaRRL

Where we differ, and why:
  - soft-MSE is taken in closed form; the release draws one ε.
  - The std is computed from the weights; the release writes one number a model into its code.
  - Greedy end decision: the release draws it, at temperature 1, which ends some chains too early or too late at
    random; it has to do so in RL, where what is not drawn cannot be learnt. `--sample_end` does the same.
"""

import random
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import Row, encode_question, pad, segments
from ..checkpoint import load_into
from ..config import UserError
from ..evaluate import accuracy
from ..latent import LatentHead, compress
from ..losses import cross_entropy, gaussian_nll, log_not, mean, soft_mse
from ..masks import LATENT, PREFIX, TAIL, Layout
from ..tasks.answers import Example
from .grpo import GRPO
from .method import Batch, Method, Stage


class CoLaR(Method):
    def __init__(self, config, tok, model, folder=None):
        super().__init__(config, tok, model, folder)
        C = model.config.width
        self.latent_head = LatentHead(
            C, config.head_width or C, config.latent_loss == "mse", config.sigma_floor
        )
        self.latent_head.init_weights(torch.Generator().manual_seed(config.seed))
        self.register_buffer("scale", model.embed.weight.detach().std())  # () the table is frozen, so is this

    @classmethod
    def inherit(cls, config, settings) -> None:
        if settings.get("method") in ("colar", "colar_rl"):
            config.head_width = settings["head_width"]
            if config.method == "colar_rl":
                config.latent_loss = settings["latent_loss"]
                config.sigma_floor = max(config.sigma_floor, settings.get("sigma_floor", 0.0))

    def adopt(self, tensors, settings) -> None:
        if (
            not settings
            and self.config.init != "none"
            and self.model.config.tied
            and not self.config.lora_rank
        ):
            raise UserError(
                "colar freezes the embedding table, which is this model's language head, too: it could not learn to "
                "say </think>. Train a run of cot_sft first and --init its folder, or give --lora_rank"
            )
        head = {n[len("latent_head.") :]: t for n, t in tensors.items() if n.startswith("latent_head.")}
        if head:
            load_into(self.latent_head, head, f"the latent head of --init {self.config.init}")
            self.scale.copy_(tensors["scale"])

    # ------------------------------------------------------------------ inference

    @property
    def ratio(self) -> int:
        return 1 if self.config.speed == "auto" else int(self.config.speed)

    def prompt(self, question: str) -> list[int]:
        return [*encode_question(question, self.tok, self.config.speed), self.tok.think]

    def thinker(self, temperature: float | None = None, generator: torch.Generator | None = None):
        temperature = self.config.latent_temperature if temperature is None else temperature
        generator = generator or self.fresh()

        def think(logits: Tensor, hidden: Tensor) -> Tensor:
            mu, log_sigma = self.latent_head(hidden)  # (b, C) each
            if temperature > 0:
                mu = mu + temperature * log_sigma.exp() * torch.randn(mu.shape, generator=generator).to(mu)
            return mu * self.scale

        return think

    def fresh(self) -> torch.Generator:
        """For samples at inference: the same for every call, so that no result depends on what was evaluated before."""
        return torch.Generator().manual_seed(self.config.seed)

    def decoding(self):
        return {
            **super().decoding(),
            "min_chain": 1,
            "sample_end": self.fresh() if self.config.sample_end else None,
        }

    # ------------------------------------------------------------------ the supervised stage

    def layout(self, row: Row, c: int, said: int | str) -> Layout:
        """Q "Let's think c times faster:" <think> z_1 .. z_N </think> answer <eos>"""
        return Layout.of(
            (encode_question(row.text, self.tok, said) + [self.tok.think], PREFIX, 0),
            ([self.tok.latent] * len(segments(row.chain, c)), LATENT, 0),
            ([self.tok.end_think, *row.answer], TAIL, 0),
        )

    def collate(self, rows: list[Row], rng: random.Random) -> Batch:
        c = rng.randint(1, self.config.c_max)
        said = "auto" if rng.random() < self.config.auto else c
        return {
            **self.tensors([self.layout(r, c, said) for r in rows]),
            "blocks": pad([s for r in rows for s in segments(r.chain, c)], self.tok.pad),
        }  # (n, c)

    def loss(self, batch: Batch, noise: torch.Generator, progress: float):
        config, ids, kind, blocks = (
            self.config,
            batch["ids"],
            batch["kind"],
            batch["blocks"],
        )  # (B, T), (n, c)
        real = blocks != self.tok.pad
        z = compress(self.model.embed(blocks), real, config.pooling)  # (n, C)
        drawn = (
            torch.rand(len(blocks), generator=noise).to(real.device) * real.sum(1)
        ).long()  # (n,) in 0..count-1
        ids = ids.masked_scatter(kind == LATENT, blocks.gather(1, drawn[:, None])[:, 0])  # a latent's label
        x = self.embed_with(ids, kind, z)  # (B, T, C)
        h, following = self.model(embeds=x)[:, :-1], kind[:, 1:]  # (B, T-1, C), (B, T-1)

        loss = compression = self.compressed_cross_entropy(h, ids[:, 1:], following)
        predicts = (following == LATENT) | (kind[:, :-1] == LATENT)  # (B, T-1) <think>, z_1 .. z_N
        mu, log_sigma = self.latent_head(h[predicts])  # (m, C) each
        latent = self.latent_loss(
            mu.float(), log_sigma.float(), (x[:, 1:][predicts] / self.scale).detach().float()
        )
        loss = loss + config.latent_weight * latent
        logged = {"comp": compression.item(), "latent": latent.item(), "sigma": mean(log_sigma.exp()).item()}
        if config.own_latents > 0:  # exposed to what it will feed itself
            mu, log_sigma = self.latent_head(h[following == LATENT])  # (n, C)
            own = (mu + log_sigma.exp() * torch.randn(mu.shape, generator=noise).to(mu)) * self.scale
            h = self.model(embeds=self.embed_with(ids, kind, own))[:, :-1]
            answer = cross_entropy(self.model.logits(h[following == TAIL]), ids[:, 1:][following == TAIL])
            logged["own"] = answer.item()
            loss = loss + config.own_latents * answer
        return loss, logged

    def compressed_cross_entropy(self, h: Tensor, labels: Tensor, following: Tensor) -> Tensor:
        """L_comp: h (B, T-1, C), and what stands behind each position: its label and its kind (B, T-1)."""
        if self.config.compressed_labels:
            counts = (following == LATENT) | (following == TAIL)
            return cross_entropy(self.model.logits(h[counts]), labels[counts])
        # The ablation: before a latent the language head learns only that the chain goes on. (Decoding ends it where </think> is the
        # likeliest token, as ever: with the rest spread over the vocabulary that may be below one half.)
        tail = F.cross_entropy(
            self.model.logits(h[following == TAIL]).float(), labels[following == TAIL], reduction="none"
        )
        goes_on = log_not(self.model.logits(h[following == LATENT]), self.tok.end_think)
        return mean(torch.cat([tail, -goes_on]))

    def latent_loss(self, mu: Tensor, log_sigma: Tensor, target: Tensor) -> Tensor:
        if self.config.latent_loss == "nll":
            return gaussian_nll(mu, log_sigma, target)
        return soft_mse(mu, log_sigma, target, self.config.entropy_weight)

    # ------------------------------------------------------------------ the whole

    def trainable(self) -> list[torch.nn.Module]:
        """All but the embedding table, and with it a tied language head."""
        frozen = () if self.config.lora_rank else ("embed",)
        return [child for name, child in self.model.named_children() if name not in frozen] + [
            self.latent_head
        ]

    def validate(self, val: list[Example]) -> dict[str, float]:
        """Accuracy at every speed that is trained; their mean chooses the best checkpoint."""
        found, asked = {}, self.config.speed
        for c in range(1, self.config.c_max + 1):
            self.config.speed = str(c)
            found[c] = accuracy(self, val)
        self.config.speed = asked
        overall = sum(r["accuracy"] for r in found.values()) / len(found)  # `mean` is losses.py's
        return {
            "accuracy": overall,
            **{f"accuracy_c{c}": r["accuracy"] for c, r in found.items()},
            **{f"mean_len_c{c}": r["mean_len"] for c, r in found.items()},
        }

    def stages(self, train: list[Row], val: list[Example]) -> Iterator[Stage]:
        yield Stage(
            "colar",
            train,
            [len(r.question) + len(r.chain) for r in train],
            self.collate,
            self.loss,
            self.trainable(),
            self.config.steps,
            self.config.lr,
            lambda: self.validate(val),
        )

    def plan(self, train: list[Row]):
        c = 1 + self.config.c_max // 2
        tokens = sum(len(self.layout(r, c, c).ids) for r in train[:1000]) / max(1, len(train[:1000]))
        return [
            (
                "colar",
                self.config.steps,
                tokens * (1 + (self.config.own_latents > 0)),
                f"compressed chains, a factor from 1 to {self.config.c_max} each step",
            )
        ]


class CoLaRRL(GRPO, CoLaR):
    """GRPO (see rl.py) from a CoLaR checkpoint that was trained by NLL: its σ is a distribution, soft-MSE's goes to 0.

    Latents are drawn from N(μ, σ). `--no-average` is the paper's "w/o average". A latent's log-density is its mean over
    the C dimensions of the width (the release's choice), so ρ is the C-th root of the likelihood ratio: clipping at 1 ± ε
    is C times more lenient, and a latent weighs about as much as a token. `--log_density sum` is the likelihood ratio
    itself; a small step in C dimensions moves it far, and most is clipped. `--sigma_floor` above the start's own draws from further away.

    What to expect: on mini little (results/README.md). A draw moves a latent by σ in every direction, so by σ along the line to
    another block's embedding, which is a hundred σ away: it refines a latent, and never tries another number.
    """

    each_latent = ("z",)

    def adopt(self, tensors, settings) -> None:
        if settings.get("method") not in ("colar", "colar_rl"):
            raise UserError(
                "colar_rl starts from a CoLaR run: train one with --method colar --latent_loss nll, then --init its folder"
            )
        if (
            settings["latent_loss"] == "mse"
            or settings["latent_loss"] == "soft_mse"
            and not settings["entropy_weight"]
        ):
            raise UserError(
                f"colar_rl draws latents with the latent head's σ: its --init was trained with --latent_loss {settings['latent_loss']}, "
                "which leaves none. Train one with --latent_loss nll"
            )
        super().adopt(tensors, settings)

    def sampler(self, generator):
        return self.thinker(1.0, generator)

    def drawn(self, out, real):
        return {"z": out.latents[real]}  # (n, C)

    def fed(self, batch):
        return batch["z"]

    def latent_log_prob(self, batch, hidden):
        mu, log_sigma = (t.float() for t in self.latent_head(hidden))  # (n, C)
        density = torch.distributions.Normal(mu, log_sigma.exp()).log_prob((batch["z"] / self.scale).float())
        density = density.mean(-1) if self.config.log_density == "mean" else density.sum(-1)
        return density, {"sigma": log_sigma.exp()}

    def trainable(self):
        return [*super().trainable(), self.latent_head]

    def stages(self, train, val):
        yield Stage(**self.rl_stage(train, val))
