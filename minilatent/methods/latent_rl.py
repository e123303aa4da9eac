"""Latent-GRPO: GRPO on top of Latent-SFT, whose superpositions are sampled with Gumbel noise.

"Latent-GRPO", arXiv 2604.27998, read from the released code, but for what is below. It starts from a run of
Latent-SFT; grpo.py has the objective.

    sample    y = log p + clamp(s·g, -1.5, 3) + 1.5 over the likeliest tokens that hold 0.95 of the
              probability (--top_p), g ~ Gumbel(0, 1)
              the k highest y, their softmax α; z = Σ_j α_j e_j is fed back
    log p(z)  mean over these entries of -d - e^-d, a Gumbel density; d = (y - log p) / s

Three devices, each with a switch:
  --one_sided   the + 1.5. It changes neither α nor z, only the density: with d ≥ 0 at first, a sampled entry
                becomes likelier with a positive advantage and less likely with a negative one, by
                1 - e^-d. With d < 0 the density falls as p grows, and the gradient has the other sign.
  --mirror      for such an entry with a negative advantage the gradient is that of the mirrored density
                d - e^d, the value stays. As in the release: that bounds the push by 1 where e^-d - 1 has
                no bound; its sign stays.
  --best_first  at the first latent only one right sample of a group keeps its advantage, the one with the
                highest mean log-probability: a mixture of several right first steps need not be a right
                first step. As in the release the wrong ones lose theirs, too, where there is a right one.

A sample whose chain or answer was cut off gets no advantage and is left out of its group's mean and std;
a group whose rewards are all equal is left out of the objective. The embedding table is frozen, there is
no KL. What to watch in metrics.jsonl: `len` and `entropy`; the author saw both fall, the chain drifting
back to one token a step. The run that it starts from should know the noise: train it with --gumbel and the
same --gumbel_scale. On mini, without that, most samples with s = 1 are wrong where greedy decoding is right.

On mini --one_sided and --mirror are off. Where all d ≥ 0, every drawn entry of a right sample becomes
likelier and every one of a wrong sample less likely, whatever its noise was: p grows flat, and accuracy
falls at once. The mirrored gradient makes p sharp, a chain of single tokens; that takes a little longer to
do harm. The density's own gradient is about 0 on average (E[e^-g] = 1): what the noise favoured is learnt.

    python train.py --method latent_sft --gumbel --gumbel_scale 0.5 --steps 700 --out out/noisy
    python train.py --method latent_rl --init out/noisy --gumbel_scale 0.5 [--no-best_first]

Where we differ, and why:
  - Whether to go on or to end is a decision of its own, sampled from p(</think>) at each latent and
    learnt, as in CoLaR's RL. So a chain has one latent at least, at inference too.
  - Answers are drawn from the whole distribution (the release: T 0.6, top-p 0.95): the one that ρ is of.
  - The release scales after clamping, and its density does not know s: the same at s = 1.
  - The objective is averaged inside a sample first (--no-average: over all latents and tokens).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..config import UserError, opt
from ..decode import superposition_thinker
from ..latent import NOISE_FLOOR, clamped_gumbel, entropy, mix
from ..masks import LATENT
from .grpo import GRPO, RL_PRESETS, GRPOSettings, advantages
from .method import Method

PLAIN = {"one_sided": False, "mirror": False}  # the density's own gradient


@dataclass
class Settings(GRPOSettings):
    ratio: int = opt(2, "compression ratio r of the run it starts from")
    k: int = opt(10, "vocabulary entries kept in a superposition, as in the run it starts from")
    gumbel_scale: float = opt(1.0, "s, scale of the noise", least=1e-6)
    top_p: float = opt(0.95, "latents are drawn from the likeliest tokens with this probability", least=1e-3)
    one_sided: bool = opt(True, "shift the noise that samples a latent to 0 and above")
    mirror: bool = opt(True, "bound the gradient where a negative advantage meets negative noise")
    best_first: bool = opt(True, "at latent 1 only a group's most likely right sample has an advantage")


class LatentRL(GRPO, Method):
    Settings = Settings
    PRESETS = {
        **RL_PRESETS,
        "mini": {"optimizer": "adamw", "steps": 200, "lr": 1e-4, "batch_size": 32, **PLAIN},
        "smoke": {"group": 4},
    }
    needs_chain = False  # what it learns from is the answer
    mixed = True
    latent_tensors = ("score", "top")

    def adopt(self, tensors, settings) -> None:
        config = self.config
        if settings.get("method") not in ("latent_sft", "latent_rl"):
            way_out = "train one with --method latent_sft, then --init its folder"
            raise UserError(f"latent_rl starts from a Latent-SFT run: {way_out}")
        if settings.get("latent") == "hidden":
            raise UserError("latent_rl samples superpositions: its --init was trained with --latent hidden")
        for key in ("k", "ratio"):
            if settings[key] != getattr(config, key):
                raise UserError(f"--init {config.init} has --{key} {settings[key]}: give latent_rl the same")
        super().adopt(tensors, settings)

    # ------------------------------------------------------------------ the policy over latents

    def policy(self, generator):
        scale, shift = self.config.gumbel_scale, -NOISE_FLOOR if self.config.one_sided else 0.0
        k = min(self.config.k, self.model.config.vocab_size - len(self.tok.never))

        def think(logits, hidden):  # (b, V), the impossible at -inf
            noise = clamped_gumbel(logits.shape, generator, scale).to(logits) + shift
            log_p = nucleus(logits.log_softmax(-1), self.config.top_p)  # (b, V)
            score, top = (log_p + noise).topk(k)  # (b, k)
            return mix(score.softmax(-1), top, self.model.embed.weight), score, top

        return think

    def sampled_latents(self, out, real):
        score, top = (x[real] for x in out.sampled)  # (n, k)
        return {"score": score, "top": top}

    def latent_embeddings(self, batch):
        return mix(batch["score"].softmax(-1), batch["top"], self.model.embed.weight)

    def latent_log_prob(self, batch, hidden):
        log_p = self.allowed(self.model.logits(hidden)).log_softmax(-1)  # (n, V)
        advantage = batch["latent_advantage"]  # (n,), None while there is none
        mirrored = None
        if self.config.mirror and advantage is not None:
            mirrored = advantage[:, None] < 0
        scale = self.config.gumbel_scale
        density = gumbel_log_density(batch["score"], log_p.gather(-1, batch["top"]), mirrored, scale)
        return density, {"entropy": entropy(log_p.exp())}

    # ------------------------------------------------------------------ advantages

    def with_advantages(self, batch, rewards):
        whole = batch["whole"].view_as(rewards)  # (rows, G)
        return {**batch, "rewards": rewards * whole, "advantage": advantages(rewards * whole, whole).view(-1)}

    def with_old_log_probs(self, batch):
        batch = super().with_old_log_probs({**batch, "latent_advantage": None})
        part = self.informative(batch)
        advantage, count = part["advantage"], (part["kind"] == LATENT).sum(1)  # (R',)
        each = advantage.repeat_interleave(count)  # (n',)
        if self.config.best_first:
            right = (advantage > 0).view(-1, self.config.group)
            likely = batch["likely"].view_as(right).masked_fill(~right, float("-inf"))
            best = likely.argmax(1, keepdim=True)
            others = torch.arange(right.shape[1], device=right.device) != best
            others &= right.any(1, keepdim=True)
            first = count.cumsum(0) - count  # where a sample's latents begin
            each[first[others.view(-1)]] = 0.0
        return {**batch, "latent_advantage": each}

    def advantage_of(self, name, batch, sample):
        return batch["latent_advantage"] if name == "latents" else super().advantage_of(name, batch, sample)

    # ------------------------------------------------------------------ inference

    def thinker(self):
        return superposition_thinker(self.model, self.config.k, self.tok.never)

    def decoding(self):
        return {**super().decoding(), "min_chain": 1}


def nucleus(log_p: Tensor, top_p: float) -> Tensor:
    """log_p (b, V) with -inf outside of the smallest set of tokens that holds top_p of the probability."""
    p, order = log_p.exp().sort(-1, descending=True)
    outside = p.cumsum(-1) - p >= top_p  # (b, V), the likeliest first
    return log_p.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))


def gumbel_log_density(
    score: Tensor, log_p: Tensor, mirrored: Tensor | None = None, scale: float = 1.0
) -> Tensor:
    """Scores y = log p_old + s·g as Gumbel variables around log p: the mean over the entries of -d - e^-d
    with d = (y - log p) / s, (n, k) each -> (n,), without the constant log s; entries with the score -inf are
    none. Where `mirrored` (n, 1) and d < 0, the value stays and the gradient is that of d - e^d, the density
    mirrored at its peak: straight-through."""
    drawn = score > float("-inf")  # (n, k)
    d = torch.where(drawn, score - log_p, 0.0) / scale
    density = -d - (-d).exp()
    if mirrored is not None:
        proxy = d.clamp(max=0) - d.clamp(max=0).exp()
        density = torch.where(mirrored & (d < 0), density.detach() + (proxy - proxy.detach()), density)
    return (density * drawn).sum(-1) / drawn.sum(-1)
