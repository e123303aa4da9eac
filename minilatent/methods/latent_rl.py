"""Latent-GRPO: GRPO on top of Latent-SFT, whose superpositions are drawn with Gumbel noise.

"Latent-GRPO", arXiv 2604.27998, read from the released code. It starts from a run of Latent-SFT; rl.py has the objective.

    drawn     y = log p + clamp(s·g, -1.5, 3) + 1.5 over the vocabulary, g ~ Gumbel(0, 1); the k highest y, their softmax α,
              z = Σ_j α_j e_j is fed back
    log p(z)  mean over the k entries of -d - e^-d, a Gumbel density, with d = y - log p under the current policy

Three devices, each with a switch:
  --one_sided   the + 1.5. It changes neither α nor z, only the density: with d ≥ 0 at first, an entry that was drawn
                becomes likelier with a positive advantage and less likely with a negative one, by 1 - e^-d. With d < 0
                the density falls as p grows, and the gradient has the other sign.
  --mirror      for such an entry with a negative advantage the gradient is that of the mirrored density d - e^d, the
                value stays. As the release has it: that bounds the push by 1 where e^-d - 1 has no bound; its sign stays.
  --best_first  at the first latent only one right sample of a group keeps its advantage, the one with the highest mean
                log-probability, because a mixture of several right first steps need not be a right first step. As in
                the release the wrong ones lose theirs, too, where there is a right one.

A sample whose chain or answer was cut off gets no advantage and is left out of its group's mean and std; a group whose
rewards are all equal is left out of the objective. The embedding table is frozen, there is no KL. What to watch in
metrics.jsonl: `len` and `entropy`; the author saw both fall, the chain drifting back to one token a step.

    python train.py --method latent_rl --init out/latent_sft [--no-one_sided] [--no-mirror] [--no-best_first]

Where we differ, and why:
  - Whether to go on or to end is a decision of its own, drawn from p(</think>) at each latent and learnt, as in CoLaR's RL.
    So a chain has one latent at least, at inference too.
  - Answer tokens are drawn from the whole distribution (the release: T 0.6, top-p 0.95), which is the one that ρ is of.
  - The objective is averaged inside a sample first (--no-average: over all latents and tokens).
"""

import torch

from ..config import UserError
from ..decode import superposition_thinker
from ..latent import NOISE_FLOOR, clamped_gumbel, entropy, mix
from ..losses import advantages, gumbel_log_density
from ..masks import LATENT
from .grpo import GRPO
from .method import Method, Stage


class LatentRL(GRPO, Method):
    needs_chain = False  # what it learns from is the answer
    mixed = True
    each_latent = ("score", "top")

    def adopt(self, tensors, settings) -> None:
        config = self.config
        if settings.get("method") not in ("latent_sft", "latent_rl"):
            raise UserError(
                "latent_rl starts from a Latent-SFT run: train one with --method latent_sft, then --init its folder"
            )
        if settings["latent"] == "hidden":
            raise UserError("latent_rl draws superpositions: its --init was trained with --latent hidden")
        for key in ("k", "ratio", "segmentation"):
            if settings[key] != getattr(config, key):
                raise UserError(
                    f"--init {config.init} was trained with --{key} {settings[key]}: give latent_rl the same"
                )
        super().adopt(tensors, settings)

    def thinker(self):
        return superposition_thinker(self.model, self.config.k, self.tok.never)

    def decoding(self):
        return {**super().decoding(), "min_chain": 1}

    # ------------------------------------------------------------------ the policy over latents

    def sampler(self, generator):
        scale, shift = self.config.gumbel_scale, -NOISE_FLOOR if self.config.one_sided else 0.0
        k = min(self.config.k, self.model.config.vocab_size - len(self.tok.never))

        def think(logits, hidden):  # (b, V), the impossible at -inf
            noise = clamped_gumbel(logits.shape, generator, scale).to(logits) + shift
            score, top = (logits.log_softmax(-1) + noise).topk(k)  # (b, k)
            return mix(score.softmax(-1), top, self.model.embed.weight), score, top

        return think

    def drawn(self, out, real):
        score, top = (x[real] for x in out.drawn)  # (n, k)
        return {"score": score, "top": top}

    def fed(self, batch):
        return mix(batch["score"].softmax(-1), batch["top"], self.model.embed.weight)

    def latent_log_prob(self, batch, hidden):
        log_p = self.allowed(self.model.logits(hidden)).log_softmax(-1)  # (n, V)
        given = batch["latent_advantage"]  # (n,), None while there is none
        mirrored = given[:, None] < 0 if self.config.mirror and given is not None else None
        density = gumbel_log_density(batch["score"], log_p.gather(-1, batch["top"]), mirrored)
        return density, {"entropy": entropy(log_p.exp())}

    # ------------------------------------------------------------------ advantages

    def judge(self, batch, rewards):
        whole = batch["whole"].view_as(rewards)  # (rows, G)
        return {**batch, "rewards": rewards * whole, "advantage": advantages(rewards * whole, whole).view(-1)}

    def remember(self, batch):
        batch = super().remember({**batch, "latent_advantage": None})
        part = self.heard(batch)
        advantage, count = part["advantage"], (part["kind"] == LATENT).sum(1)  # (R',) of the samples heard
        each = advantage.repeat_interleave(count)  # (n',)
        if self.config.best_first:
            right = (advantage > 0).view(-1, self.config.group)
            best = batch["likely"].view_as(right).masked_fill(~right, float("-inf")).argmax(1, keepdim=True)
            others = right.any(1, keepdim=True) & (torch.arange(right.shape[1], device=right.device) != best)
            first = count.cumsum(0) - count  # where a sample's latents begin
            each[first[others.view(-1)]] = 0.0
        return {**batch, "latent_advantage": each}

    def credit(self, name, batch, sample):
        return batch["latent_advantage"] if name == "latents" else super().credit(name, batch, sample)

    def stages(self, train, val):
        yield Stage(**self.rl_stage(train, val))
