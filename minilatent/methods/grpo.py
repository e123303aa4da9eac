"""GRPO for a model that thinks in latents: what the RL stages of CoLaR and Latent-SFT share.

For each question G chains and answers are drawn: latents by the method's own policy, the end of the chain and the
answer's tokens from the language head. The reward is 1 for a right answer; A = (r - mean) / (std + ε) of its group.

    J = mean over samples of   mean over its latents      min(ρA, clip(ρ)A)      ρ of the latent z_i
                             + mean over its decisions    min(ρA, clip(ρ)A)      ρ of "go on" or "end here" at z_i
                             + mean over its answer       min(ρA, clip(ρ)A)      ρ of a token

So each sample's chain has one advantage to share, A/length a latent: short right chains are made likelier by
more, short wrong ones less likely by more, which shortens chains. `--no-average` counts every latent and token alike.
A group whose answers are all right or all wrong is silent: it has no advantage, no part in J, and costs no pass.

A model that was taught where its chains end, ends them so confidently that sampling hardly ever tries another length: `--end_temperature` above 1 makes the
policy that draws and is trained less sure. (Greedy decoding is the same at every temperature.)

ρ = exp(log p - log p_old), p_old by this same forward pass before the first update: it is exactly 1 there.
"""

import random
import sys
import zlib

import torch
from torch import Tensor

from .. import parallel
from ..batch import Row, pad
from ..config import UserError
from ..decode import Decoded, Thinker, decode
from ..evaluate import accuracy
from ..losses import advantages, clipped_surrogate, log_not, mean, mean_by
from ..masks import LATENT, PREFIX, TAIL, Layout
from ..tasks.answers import Example, is_correct

Batch = dict[str, Tensor]


class GRPO:
    """What a method gains for its RL stage: `class X(GRPO, Method)`. Every chain has at least one latent. It says how a
    latent is drawn, and the log-probability of a drawn one; n: the latents of a batch, R = rows · G: its samples."""

    each_latent: tuple[str, ...]  # the names of a batch's tensors with a row for each latent: `drawn`'s

    def sampler(self, generator: torch.Generator) -> Thinker:
        """The policy that draws latents."""
        raise NotImplementedError

    def drawn(self, out: Decoded, real: Tensor) -> Batch:
        """What a batch keeps of the latents that were drawn, (n, ..). real (R, N): which places of `out` hold one."""
        raise NotImplementedError

    def fed(self, batch: Batch) -> Tensor:
        """The embeddings that were fed for these latents, (n, C)."""
        raise NotImplementedError

    def latent_log_prob(self, batch: Batch, hidden: Tensor) -> tuple[Tensor, Batch]:
        """Their log-probabilities, (n,), by the hidden states (n, C) that predict them; and what to tell in the log."""
        raise NotImplementedError

    def credit(self, name: str, batch: Batch, sample: Tensor) -> Tensor:
        """The advantage of each latent, decision or answer token, (m,), of the samples (m,)."""
        return batch["advantage"][sample]

    def judge(self, batch: Batch, rewards: Tensor) -> Batch:
        """The batch with its samples' rewards (rows, G) and their advantages (R,)."""
        return {**batch, "rewards": rewards, "advantage": advantages(rewards).view(-1)}

    def heard(self, batch: Batch) -> Batch:
        """The same with the samples of those groups only that are not silent. Of a good model's groups most are."""
        heard = (batch["advantage"].view_as(batch["rewards"]) != 0).any(1)  # (rows,)
        heard[0] |= ~heard.any()  # a pass needs a row
        heard = heard.repeat_interleave(batch["rewards"].shape[1])  # (R,)
        latents = heard.repeat_interleave((batch["kind"] == LATENT).sum(1))  # (n,)
        return {
            **batch,
            **{name: batch[name][heard] for name in ("ids", "kind", "closed", "right", "advantage")},
            **{name: batch[name][latents] for name in self.each_latent},
        }

    @torch.no_grad()
    def remember(self, batch: Batch) -> Batch:
        """And the log-probabilities of what was heard under the policy that drew it, by the same pass as in the loss."""
        part = self.heard(batch)
        with self.autocast():
            old, told = self.log_probs(part)
        values, sample = (torch.cat(x) for x in zip(*old.values()))
        likely = mean_by(values, sample, len(part["ids"]))[0]  # a sample's mean log-probability
        return {
            **batch,
            "likely": likely,
            **{"old_" + name: value for name, (value, _) in old.items()},
            **{"told_" + name: value for name, value in told.items()},
        }

    def adopt(self, tensors, settings) -> None:
        if self.config.lora_dropout:
            raise UserError(
                f"{self.config.method} compares a sample's probabilities before and after an update, dropout changes them: "
                "--lora_dropout 0"
            )
        super().adopt(tensors, settings)

    @torch.no_grad()
    def rollout(self, rows: list[Row], rng: random.Random) -> Batch:
        """G sampled chains and answers of each row's question, side by side, and what their tokens scored. A group stays
        in one process, and each process draws its own."""
        tok, G = self.tok, self.config.group
        # The parts of an accumulated step get the same rng: what is drawn for them must differ.
        generator = torch.Generator().manual_seed(
            rng.getrandbits(62) + parallel.rank() + zlib.crc32(rows[0].text.encode())
        )
        questions = [self.prompt(r.text) for r in rows]
        lengths = torch.tensor([len(q) for q in questions], device=self.device)
        out = decode(
            self.model,
            tok,
            self.model.embed(pad(questions, tok.pad).to(self.device)),
            lengths,
            self.sampler(generator),
            **{
                **self.decoding(),
                "sample_end": generator,
                "sample_answer": generator,
                "end_temperature": self.config.end_temperature,
                "samples": G,
            },
        )
        prompts = [q for q in questions for _ in range(G)]
        gold = [tok.decode(r.answer) for r in rows for _ in range(G)]
        right = torch.tensor([is_correct(a, g) for a, g in zip(out.answers, gold)], device=self.device)
        said = [[t for t in row if t != tok.pad] for row in out.tokens.tolist()]
        steps = out.lengths.tolist()
        batch = self.tensors(
            [
                Layout.of((p, PREFIX, 0), ([tok.latent] * n, LATENT, 0), ([tok.end_think, *answer], TAIL, 0))
                for p, n, answer in zip(prompts, steps, said)
            ]
        )
        batch = {name: t.to(self.device) for name, t in batch.items()}
        real = torch.arange(out.latents.shape[1], device=self.device) < out.lengths[:, None]
        whole = out.closed & (out.tokens == tok.eos).any(1)  # neither chain nor answer was cut off
        batch |= {
            "closed": out.closed,
            "whole": whole,
            "right": right,
            **self.drawn(out, real),
        }  # (R,), (n, ..)
        return self.remember(self.judge(batch, right.float().view(-1, G)))

    def log_probs(self, batch: Batch) -> tuple[dict[str, tuple[Tensor, Tensor]], Batch]:
        """The log-probabilities of all that was drawn, and which sample each belongs to: (m,), (m,) for the latents,
        the decisions and the answer's tokens. And what latent_log_prob has to tell."""
        ids, kind = batch["ids"], batch["kind"]  # (R, T)
        h = self.model(embeds=self.embed_with(ids, kind, self.fed(batch)))[:, :-1]
        here, following = kind[:, :-1], kind[:, 1:]
        sample = torch.arange(len(ids), device=ids.device)[:, None].expand_as(here)
        latents, told = self.latent_log_prob(batch, h[following == LATENT])

        # At each latent the chain goes on or ends; one that was cut off has not decided its last.
        decided = (here == LATENT) & ((following == LATENT) | batch["closed"][:, None])
        logits = self.allowed(self.model.logits(h[decided])) / self.config.end_temperature
        p_end = logits.log_softmax(-1)[:, self.tok.end_think]
        decision = torch.where(following[decided] == TAIL, p_end, log_not(logits, self.tok.end_think))

        tail = (here == TAIL) & (following == TAIL)  # from </think> on: the answer
        logits = self.allowed(self.model.logits(h[tail]))
        answer = logits.log_softmax(-1).gather(-1, ids[:, 1:][tail][:, None])[:, 0]
        return {
            "latents": (latents, sample[following == LATENT]),
            "decisions": (decision, sample[decided]),
            "answer": (answer, sample[tail]),
        }, told

    def allowed(self, logits: Tensor) -> Tensor:
        """Without the tokens that decoding never draws."""
        return logits.float().index_fill(
            -1, torch.tensor(self.tok.never, device=logits.device), float("-inf")
        )

    def loss(self, batch: Batch, noise, progress: float):
        objective, told, part = 0.0, {}, self.heard(batch)
        for name, (new, sample) in self.log_probs(part)[0].items():
            gain, told["clipped_" + name] = clipped_surrogate(
                new, batch["old_" + name], self.credit(name, part, sample), self.config.clip_ratio
            )
            # Without averaging, a sample of twice the length counts twice among the latents, or the decisions, or the answers; the
            # scale of each of these three stays that of the average.
            objective = objective + mean(
                mean_by(gain, sample, len(part["ids"]))[0] if self.config.average else gain
            )
        rewards, length = batch["rewards"], (batch["kind"] == LATENT).sum(1)
        # Of all samples; what latent_log_prob has told (σ, entropy) of those that were heard.
        told |= {
            "reward": rewards,
            "accuracy": batch["right"],
            "len": length,
            "silent": (batch["advantage"].view_as(rewards) == 0).all(1),
            "one_latent": length == 1,
            "cut_off": ~batch["closed"],
            **{
                name.removeprefix("told_"): value for name, value in batch.items() if name.startswith("told_")
            },
        }
        return -objective, {name: mean(values.float()).item() for name, values in told.items()}

    # ------------------------------------------------------------------ the whole

    def trainable(self) -> list[torch.nn.Module]:
        """All but the embedding table, and with it a tied language head."""
        return [
            child for name, child in self.model.named_children() if name != "embed" or self.config.lora_rank
        ]

    def validate(self, val: list[Example]) -> dict[str, float]:
        """Greedy accuracy and length; a collapse is told as it is seen."""
        found = accuracy(self, val)
        collapsed = {
            "one latent": found["mean_len"] < 1.05,
            "the maximum of --max_chain": found["mean_len"] > 0.95 * self.config.max_chain,
        }
        if parallel.rank() == 0 and any(collapsed.values()):
            print(
                f"the chains have collapsed to {' and '.join(what for what, is_so in collapsed.items() if is_so)}: "
                f"accuracy {found['accuracy']:.3f}, #L {found['mean_len']:.1f}",
                file=sys.stderr,
            )
        return found

    def rl_stage(self, train: list[Row], val: list[Example]) -> dict:
        """What methods.method.Stage takes. `collate` makes a batch by rolling out."""
        return dict(
            name=self.config.method,
            items=train,
            lengths=[len(r.question) for r in train],
            collate=self.rollout,
            loss=self.loss,
            trained=self.trainable(),
            steps=self.config.steps,
            lr=self.config.lr,
            validate=lambda: self.validate(val),
            inner=self.config.inner,
            judge_start=True,
        )

    def plan(self, train: list[Row]):
        tokens = sum(len(self.prompt(r.text)) + len(r.chain) / self.ratio for r in train[:1000]) / max(
            1, len(train[:1000])
        )
        return [
            (
                self.config.method,
                self.config.steps,
                (self.config.group + 1) * tokens,
                f"{self.config.group} samples a question",
            )
        ]
