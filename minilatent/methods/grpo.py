"""GRPO (group relative policy optimization, arXiv 2402.03300) for a model that thinks in latents: what the RL
stages of CoLaR and Latent-SFT share.

For each question G chains and answers are sampled: latents by the method's own policy, the end of the
chain and the answer's tokens from the language head. The reward is 1 for a right answer; the advantage A
= (r - mean) / (std + ε) of its group.

    J = mean over samples of  mean over its latents     min(ρA, clip(ρ)A)   ρ of the latent z_i
                            + mean over its decisions   min(ρA, clip(ρ)A)   ρ of "go on" or "end here" at z_i
                            + mean over its answer      min(ρA, clip(ρ)A)   ρ of a token

Each sample spreads one advantage over its chain, A/length per latent. So a latent of a short chain gets a
larger push, up if the answer is right and down if it is wrong: whether chains get shorter depends on
which ones are right. `--no-average` counts every latent and token alike. A group whose answers are all
right or all wrong has no advantage: left out.

A model that was taught where its chains end is so sure of it that sampling rarely tries another length:
`--end_temperature` above 1 makes the policy that is sampled less sure (greedy decoding stays the same).

ρ = exp(log p - log p_old). log p_old comes from this same pass before the first update: ρ is exactly 1 there.
"""

import random
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ..batch import Batch, Row, pad, tail
from ..config import Config, UserError, opt
from ..decode import Decoded, Thinker, decode
from ..losses import log_not, mean, mean_by
from ..masks import LATENT, PREFIX, TAIL, Layout
from ..tasks.answers import is_correct
from .method import Stage


@dataclass
class GRPOSettings(Config):
    group: int = opt(8, "G, chains and answers sampled for each question", least=2)
    inner: int = opt(1, "updates on each rollout")
    end_temperature: float = opt(1.0, "temperature of the decision to go on or end, in rollouts", least=1e-3)
    clip_ratio: float = opt(0.2, "ε of the clipped surrogate")
    average: bool = opt(True, "average a sample's terms over its length (off: all latents and tokens alike)")


# 32 questions are as many rows a pass as elsewhere; dropout would change the compared probabilities.
RL_PRESETS = {
    "gpu": {"steps": 3000, "lr": 1e-6, "group": 8, "batch_size": 32, "eval_every": 250},
    "lora": {"lora_dropout": 0.0},
}


class GRPO:
    """What a method gains for its RL stage: `class X(GRPO, Method)`. Every chain has at least one latent.
    The method says how a latent is sampled, and the log-probability of a sampled one. n: the latents of a
    batch, R = rows · G: its samples."""

    latent_tensors: tuple[str, ...]  # the names of a batch's tensors with a row for each latent

    # ------------------------------------------------------------------ what the method says

    def policy(self, generator: torch.Generator) -> Thinker:
        """How latents are sampled."""
        raise NotImplementedError

    def sampled_latents(self, out: Decoded, real: Tensor) -> Batch:
        """What a batch keeps of the sampled latents, (n, ..). real (R, N): which places of `out` hold one."""
        raise NotImplementedError

    def latent_embeddings(self, batch: Batch) -> Tensor:
        """The embeddings that were fed for these latents, (n, C)."""
        raise NotImplementedError

    def latent_log_prob(self, batch: Batch, hidden: Tensor) -> tuple[Tensor, Batch]:
        """Their log-probabilities, (n,), by the states (n, C) that predict them; and what is logged."""
        raise NotImplementedError

    def advantage_of(self, name: str, batch: Batch, sample: Tensor) -> Tensor:
        """The advantage of what was sampled, (m,). name: latents, decisions or answer; sample (m,): whose."""
        return batch["advantage"][sample]

    def with_advantages(self, batch: Batch, rewards: Tensor) -> Batch:
        """The batch with its samples' rewards (rows, G) and advantages (R,)."""
        return {**batch, "rewards": rewards, "advantage": advantages(rewards).view(-1)}

    # ------------------------------------------------------------------ the stage

    def stages(self, train: list[Row]) -> list[Stage]:
        about, lengths = f"{self.config.group} samples a question", [len(r.prompt) - 1 for r in train]
        own = {"trained": self.trainable(), "rollout": self.rollout, "inner": self.config.inner}
        return [self.stage(self.config.method, about, train, lengths, judge_start=True, **own)]

    def trainable(self) -> list[str]:
        return self.all_but_embedding()

    def adopt(self, tensors, settings) -> None:
        if self.config.lora_dropout:
            compares = "compares a sample's probabilities before and after an update"
            raise UserError(f"{self.config.method} {compares}, dropout changes them: --lora_dropout 0")
        super().adopt(tensors, settings)

    @torch.no_grad()
    def rollout(self, rows: list[Row], rng: random.Random) -> Batch:
        """G sampled chains and answers for each row's question, side by side, with their rewards, advantages
        and old log-probabilities. A group stays in one process, and each process samples its own."""
        tok, G = self.tok, self.config.group
        # The parts of an accumulated step get the same rng: what is sampled for them must differ.
        generator = torch.Generator().manual_seed(rng.getrandbits(62) + zlib.crc32(rows[0].text.encode()))
        questions = [self.prompt(r.text) for r in rows]
        lengths = torch.tensor([len(q) for q in questions], device=self.device)
        options = {**self.decoding(), "sample_end": generator, "sample_answer": generator, "samples": G}
        options["end_temperature"] = self.config.end_temperature
        prefix = self.model.embed(pad(questions, tok.pad).to(self.device))
        out = decode(self.model, tok, prefix, lengths, self.policy(generator), **options)

        prompts = [q for q in questions for _ in range(G)]
        gold = [tok.decode(r.answer) for r in rows for _ in range(G)]
        right = torch.tensor([is_correct(a, g) for a, g in zip(out.answers, gold)], device=self.device)
        layouts = []
        for prompt, n, answer in zip(prompts, out.lengths.tolist(), out.tokens.tolist()):
            answer = [t for t in answer if t != tok.pad]
            latents = ([tok.latent] * n, LATENT, 0)
            layouts.append(Layout.of((prompt, PREFIX, 0), latents, (tail(answer, tok), TAIL, 0)))
        batch = {name: t.to(self.device) for name, t in self.tensors(layouts).items()}
        real = torch.arange(out.latents.shape[1], device=self.device) < out.lengths[:, None]
        whole = out.closed & (out.tokens == tok.eos).any(1)  # neither chain nor answer was cut off
        batch |= {"closed": out.closed, "whole": whole, "right": right}  # (R,) each
        batch |= self.sampled_latents(out, real)  # (n, ..)
        rewards = right.float().view(-1, G)  # (rows, G): 1 for a right answer
        return self.with_old_log_probs(self.with_advantages(batch, rewards))

    @torch.no_grad()
    def with_old_log_probs(self, batch: Batch) -> Batch:
        """The batch with the log-probabilities under the policy that sampled it, by the loss's own pass."""
        part = self.informative(batch)
        with self.autocast():
            old, statistics = self.log_probs(part)
        values, sample = (torch.cat(x) for x in zip(*old.values()))
        likely = mean_by(values, sample, len(part["ids"]))[0]  # a sample's mean log-probability
        batch = {**batch, "likely": likely}
        batch |= {"old_" + name: value for name, (value, _) in old.items()}
        return batch | {"log_" + name: value for name, value in statistics.items()}

    def informative(self, batch: Batch) -> Batch:
        """The samples of those groups that have an advantage. Of a good model's groups most have none."""
        groups = (batch["advantage"].view_as(batch["rewards"]) != 0).any(1)  # (rows,)
        groups[0] |= ~groups.any()  # a pass needs a row
        samples = groups.repeat_interleave(batch["rewards"].shape[1])  # (R,)
        latents = samples.repeat_interleave((batch["kind"] == LATENT).sum(1))  # (n,)
        part = dict(batch)
        part |= {name: batch[name][samples] for name in ("ids", "kind", "closed", "right", "advantage")}
        return part | {name: batch[name][latents] for name in self.latent_tensors}

    def log_probs(self, batch: Batch) -> tuple[dict[str, tuple[Tensor, Tensor]], Batch]:
        """The log-probabilities of all that was sampled, and which sample each belongs to: (m,), (m,) for
        the latents, the decisions and the answer's tokens. And latent_log_prob's statistics."""
        ids, kind = batch["ids"], batch["kind"]  # (R, T)
        h = self.model(embeds=self.embed_with(ids, kind, self.latent_embeddings(batch)))[:, :-1]
        here, following = kind[:, :-1], kind[:, 1:]
        sample = torch.arange(len(ids), device=ids.device)[:, None].expand_as(here)
        latents, statistics = self.latent_log_prob(batch, h[following == LATENT])

        # At each latent the chain goes on or ends; one that was cut off has not decided its last.
        decided = (here == LATENT) & ((following == LATENT) | batch["closed"][:, None])
        logits = self.allowed(self.model.logits(h[decided])) / self.config.end_temperature
        end = self.tok.end_think
        log_end, log_on = logits.log_softmax(-1)[:, end], log_not(logits, end)
        decision = torch.where(following[decided] == TAIL, log_end, log_on)

        in_answer = (here == TAIL) & (following == TAIL)  # from </think> on
        logits = self.allowed(self.model.logits(h[in_answer]))
        answer = logits.log_softmax(-1).gather(-1, ids[:, 1:][in_answer][:, None])[:, 0]
        return {
            "latents": (latents, sample[following == LATENT]),
            "decisions": (decision, sample[decided]),
            "answer": (answer, sample[in_answer]),
        }, statistics

    def allowed(self, logits: Tensor) -> Tensor:
        """Without the tokens that decoding never feeds."""
        never = torch.tensor(self.tok.never, device=logits.device)
        return logits.float().index_fill(-1, never, float("-inf"))

    def loss(self, batch: Batch, noise=None):
        objective, logged, part = 0.0, {}, self.informative(batch)
        for name, (new, sample) in self.log_probs(part)[0].items():
            advantage = self.advantage_of(name, part, sample)
            gain, clipped = clipped_surrogate(new, batch["old_" + name], advantage, self.config.clip_ratio)
            # Without averaging, a sample of twice the length counts twice among the latents, or the
            # decisions, or the answers; the scale of each of these three stays that of the average.
            terms = mean_by(gain, sample, len(part["ids"]))[0] if self.config.average else gain
            objective = objective + mean(terms)
            logged["clipped_" + name] = clipped
        rewards, length = batch["rewards"], (batch["kind"] == LATENT).sum(1)
        alike = (batch["advantage"].view_as(rewards) == 0).all(1)  # groups without an advantage
        logged |= {"reward": rewards, "accuracy": batch["right"], "len": length}
        logged |= {"no_advantage": alike, "one_latent": length == 1, "cut_off": ~batch["closed"]}
        # latent_log_prob's (σ, entropy) are of the informative samples alone.
        logged |= {name.removeprefix("log_"): v for name, v in batch.items() if name.startswith("log_")}
        return -objective, {name: mean(values.float()).item() for name, values in logged.items()}


# ---------------------------------------------------------------------- the maths


def advantages(rewards: Tensor, counts: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """A reward against its group's, (questions, G) -> (r - mean) / (std + ε) of each row. Equal rewards: 0.
    counts (questions, G): which samples the group's mean and std are of; the others get 0."""
    counts = torch.ones_like(rewards) if counts is None else counts.to(rewards.dtype)
    n = counts.sum(1, keepdim=True).clamp(min=1)
    spread = (rewards - (rewards * counts).sum(1, keepdim=True) / n) * counts
    return spread / ((spread.pow(2).sum(1, keepdim=True) / n).sqrt() + eps)


def clipped_surrogate(new: Tensor, old: Tensor, advantage: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's min(ρA, clip(ρ, 1 ± clip) A) with ρ = exp(new - old), to be maximised, and where the clip
    took over the gradient. (n,) each."""
    ratio = (new - old).exp()
    plain, clipped = ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage
    return torch.minimum(plain, clipped), clipped < plain
