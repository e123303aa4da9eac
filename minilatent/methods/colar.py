"""CoLaR: the chain's embeddings merged in blocks of c, a head that predicts the next one, and GRPO on top.

Tan et al., "Think Silently, Think Fast: Dynamic Latent Compression of LLM Reasoning Chains",
arXiv 2505.16552.

    z_i       sum of a block's token embeddings / √c (eq. 2)        B_1..B_N: the chain in blocks of c tokens
    input     Q "Let's think c times faster:" <think> z_1 .. z_N </think> answer <eos>       causal
    L_comp    cross-entropy of the language head; the label before z_i is one token of B_i, sampled
    L_latent  of the latent head, N(μ, σ) over the *next* input: at <think> and z_1 .. z_(N-1) of the next z,
              at z_N of the embedding of </think>; targets divided by the embedding table's std (eq. 5, 6)

A training step draws one c from 1..c_max and says it in the prompt, so that one model thinks at every
speed. At inference the latent head's μ (or a sample) is fed back until the language head, at the latent
just fed, predicts </think>. The embedding table stays frozen: the targets are made of it. (With --lora_rank
it is frozen anyway, but for the markers' rows; the latent head is trained and saved with the adapters.)

    python train.py --method colar [--init out/cot_sft] [--latent_loss nll] [--pooling mean]
    python eval.py --ckpt out/colar --speed 1 2 3 4 5
    python train.py --method colar_rl --init out/colar        RL on top of an NLL model

Where we differ, and why:
  - soft-MSE is taken in closed form; the release samples one ε.
  - The std is computed from the weights; the release has one hard-coded number per model.
  - Greedy end decision: the release samples it, at temperature 1 (as `--sample_end` does), which ends some
    chains too early or too late at random. RL has to do so, too: what is not sampled cannot be learnt.
  - No second pass on the model's own latents; the release ships one with weight 0.
"""

import math
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..batch import Batch, Row, encode_prompt, pad, segments
from ..checkpoint import load_into
from ..config import Config, UserError, opt
from ..latent import compress
from ..losses import cross_entropy, log_not, mean
from ..machine import host, indices, note, send
from ..masks import LATENT, PREFIX, TAIL, Layout
from ..tasks.answers import Example
from .method import Method, Stage


@dataclass
class Settings(Config):
    speed: str = opt("2", "compression factor asked for at inference: a number, or auto")
    c_max: int = opt(5, "in training a step's factor is drawn from 1..c_max")
    auto: float = opt(0.0, "share of the steps whose prompt says auto instead of the factor")
    pooling: str = opt("sqrt", "a block becomes its sum / √c, or its mean", choices=("sqrt", "mean"))
    head_width: int = opt(0, "width of the latent head (0: the model's)")
    latent_loss: str = opt("soft_mse", "head's loss; mse has no σ", choices=("soft_mse", "nll", "mse"))
    entropy_weight: float = opt(0.0, "α of soft_mse")
    sigma_floor: float = opt(0.0, "lower bound of the latent head's σ, in units of the embeddings' std")
    latent_weight: float = opt(1.0, "weight of the latent head's loss")
    compressed_labels: bool = opt(True, "learn a block's tokens (off: only whether the chain goes on)")
    latent_temperature: float = opt(0.0, "temperature of the latents at inference (0: the mean)")
    sample_end: bool = opt(False, "sample the end of the chain at inference instead of the likelier choice")

    def check(self) -> None:
        super().check()
        if self.speed != "auto" and not (self.speed.isdecimal() and int(self.speed)):
            raise UserError(f"--speed {self.speed} is neither a whole number from 1 on nor auto")
        if self.entropy_weight and self.latent_loss != "soft_mse":
            raise UserError("--entropy_weight belongs to --latent_loss soft_mse")


class CoLaR(Method):
    Settings = Settings
    PRESETS = {
        "mini": {"steps": 1800, "lr": 3e-3, "c_max": 6, "head_width": 512, "latent_weight": 10.0},
        "gpu": {"steps": 75_000, "lr": 1e-4, "c_max": 5, "head_width": 0},  # the paper's: at most 50 epochs
        "lora": {"lora_rank": 128},
    }

    def __init__(self, config, tok, model, folder=None):
        super().__init__(config, tok, model, folder)
        C = model.config.width
        deterministic = config.latent_loss == "mse"
        self.latent_head = LatentHead(C, config.head_width or C, deterministic, config.sigma_floor)
        self.latent_head.init_weights(torch.Generator().manual_seed(config.seed))
        self.register_buffer("scale", model.embed.weight.detach().std())  # () the table is frozen, so is this

    @classmethod
    def inherit(cls, config, settings) -> None:
        if settings.get("method") in ("colar", "colar_rl"):
            config.head_width = settings["head_width"]

    def adopt(self, tensors, settings) -> None:
        tied = self.model.config.tied and not self.config.lora_rank
        if not settings and self.config.init != "none" and tied:
            frozen = "colar freezes the embedding table, which is this model's language head, too"
            way_out = "Train a run of cot_sft first and --init its folder, or give --lora_rank"
            raise UserError(f"{frozen}: it could not learn to predict </think>. {way_out}")
        head = {n.removeprefix("latent_head."): t for n, t in tensors.items() if n.startswith("latent_head.")}
        if head:
            load_into(self.latent_head, head, f"the latent head of --init {self.config.init}")
            self.scale.copy_(tensors["scale"])

    # ------------------------------------------------------------------ the supervised stage

    def stages(self, train: list[Row]) -> list[Stage]:
        lengths = [len(r.prompt) - 1 + len(r.chain) for r in train]
        about = f"compressed chains, a factor from 1 to {self.config.c_max} each step"
        own = {"trained": self.trainable(), "validate": self.every_speed}
        return [self.stage("colar", about, train, lengths, **own)]

    def trainable(self) -> list[str]:
        return [*self.all_but_embedding(), "latent_head"]

    def layout(self, row: Row, c: int, said: int | str) -> Layout:
        """Q "Let's think c times faster:" <think> z_1 .. z_N </think> answer <eos>"""
        latents = [self.tok.latent] * len(segments(row.chain, c))
        prompt = encode_prompt(row.text, self.tok, said)
        return Layout.of((prompt, PREFIX, 0), (latents, LATENT, 0), (row.tail, TAIL, 0))

    def collate(self, rows: list[Row], rng: random.Random) -> Batch:
        c = rng.randint(1, self.config.c_max)
        said = "auto" if rng.random() < self.config.auto else c
        blocks = [block for r in rows for block in segments(r.chain, c)]
        return {**self.tensors([self.layout(r, c, said) for r in rows]), "blocks": pad(blocks, self.tok.pad)}

    def loss(self, batch: Batch, noise: torch.Generator):
        config, ids, kind = self.config, batch["ids"], batch["kind"]  # (B, T)
        blocks = batch["blocks"]  # (n, c)
        real = blocks != self.tok.pad
        z = compress(self.model.embed(blocks), real, config.pooling)  # (n, C)
        u = send(torch.rand(len(blocks), generator=noise), real.device)
        sampled = (u * real.sum(1)).long()[:, None]  # (n, 1) in 0..count-1
        labels = ids.masked_scatter(kind == LATENT, blocks.gather(1, sampled)[:, 0])[:, 1:]  # (B, T - 1)
        x = self.embed_with(ids, kind, z)  # (B, T, C)
        h, on_host = self.model(embeds=x)[:, :-1], host(batch)["kind"]  # (B, T - 1, C), (B, T)
        following = on_host[:, 1:]  # (B, T - 1)

        compression = self.compressed_cross_entropy(h, labels, following)  # L_comp
        heads = (following == LATENT) | (on_host[:, :-1] == LATENT)  # at <think>, z_1 .. z_N
        predicts = indices(heads, h.device)
        mu, log_sigma = (t.float() for t in self.latent_head(h[predicts]))  # (m, C) each
        target = (x[:, 1:][predicts] / self.scale).detach().float()
        if config.latent_loss == "nll":  # L_latent
            latent = gaussian_nll(mu, log_sigma, target)
        else:
            latent = soft_mse(mu, log_sigma, target, config.entropy_weight)
        logged = {"comp": note(compression), "latent": note(latent), "sigma": note(mean(log_sigma.exp()))}
        return compression + config.latent_weight * latent, logged

    def compressed_cross_entropy(self, h: Tensor, labels: Tensor, following: Tensor) -> Tensor:
        """L_comp: h (B, T - 1, C), and what follows each position: its label and its kind (B, T - 1)."""
        before_latent, before_tail = following == LATENT, following == TAIL
        if self.config.compressed_labels:
            labelled = indices(before_latent | before_tail, h.device)
            return cross_entropy(self.model.logits(h[labelled]), labels[labelled])
        # The ablation: before a latent the language head learns only that the chain goes on. (Decoding ends
        # it where </think> is the most likely token: among spread-out others that may be below one half.)
        logits = self.model.logits(h[before_tail]).float()
        tail = F.cross_entropy(logits, labels[before_tail], reduction="none")
        goes_on = log_not(self.model.logits(h[before_latent]), self.tok.end_think)
        return mean(torch.cat([tail, -goes_on]))

    def every_speed(self, examples: list[Example]) -> dict[str, float]:
        """Accuracy at every speed that is trained; their mean chooses the best checkpoint."""
        found, asked = {}, self.config.speed
        for c in range(1, self.config.c_max + 1):
            self.config.speed = str(c)
            found[c] = self.accuracy(examples)
        self.config.speed = asked
        scores = {"accuracy": sum(r["accuracy"] for r in found.values()) / len(found)}
        for key in ("accuracy", "mean_len"):
            scores |= {f"{key}_c{c}": r[key] for c, r in found.items()}
        return scores

    # ------------------------------------------------------------------ inference

    @property
    def ratio(self) -> int:
        return 1 if self.config.speed == "auto" else int(self.config.speed)

    def prompt(self, question: str) -> list[int]:
        return encode_prompt(question, self.tok, self.config.speed)

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
        """For samples at inference, new for every call: no result depends on what was evaluated before."""
        return torch.Generator().manual_seed(self.config.seed)

    def decoding(self):
        sample_end = self.fresh() if self.config.sample_end else None
        return {**super().decoding(), "min_chain": 1, "sample_end": sample_end}


class LatentHead(nn.Module):
    """From a hidden state to a diagonal Gaussian over the next latent: μ and log σ, (..., C) each
    (section 3.2). deterministic: μ alone, σ = 0 (the ablation). floor: lower bound of σ. In full
    precision: a density is sensitive."""

    def __init__(self, width: int, hidden: int, deterministic: bool = False, floor: float = 0.0):
        super().__init__()
        self.floor = floor
        layers = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        self.body = nn.Sequential(*layers)
        self.mu = nn.Linear(hidden, width)
        self.log_sigma = None if deterministic else nn.Linear(hidden, width)

    def init_weights(self, generator: torch.Generator) -> None:
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, 0.0, p.shape[1] ** -0.5, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(p)
        if self.log_sigma is not None:  # σ = 1, the targets' own: a small σ would rule the NLL's first steps
            nn.init.zeros_(self.log_sigma.weight)

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden.device.type, enabled=False):
            x = self.body(hidden.to(self.mu.weight.dtype))
            mu = self.mu(x)
            if self.log_sigma is None:
                return mu, torch.full_like(mu, float("-inf"))
            log_sigma = self.log_sigma(x)
            if self.floor:  # σ + floor
                log_sigma = torch.logaddexp(log_sigma, torch.full_like(mu, math.log(self.floor)))
            return mu, log_sigma


def gaussian_nll(mu: Tensor, log_sigma: Tensor, target: Tensor) -> Tensor:
    """-log N(target; μ, σ) without its constant ½ log 2π, averaged over positions and width, (n, C) each:
    (e - μ)² / 2σ² + log σ (CoLaR, eq. 5)."""
    return mean((target - mu).pow(2) / (2 * (2 * log_sigma).exp()) + log_sigma)


def soft_mse(mu: Tensor, log_sigma: Tensor, target: Tensor, alpha: float = 0.0) -> Tensor:
    """E_ε[(μ + σε - e)²] - α · entropy in closed form: (μ - e)² + σ² - α · ½ log(2πe σ²), averaged over
    positions and width (CoLaR, eq. 6; the release samples one ε). With α = 0 nothing keeps σ away from 0."""
    squared = (target - mu).pow(2) + (2 * log_sigma).exp()
    if alpha:
        squared = squared - alpha * (log_sigma + 0.5 * math.log(2 * math.pi * math.e))
    return mean(squared)
