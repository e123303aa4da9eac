"""Pause tokens: more computing before the answer, without content. The control for every latent method.

Goyal et al., "Think before you speak: Training Language Models With Pause Tokens", arXiv 2310.02226 (and
"pause as thought", the ablation of Coconut, arXiv 2412.06769).

    Q <think> p p p p p p </think> answer <eos>         cross-entropy on the answer

p is one learned embedding, `num_latents` copies of it: the token <latent>'s. It has no label, and the model
says nothing at it: what it computes there serves the answer only.

    python train.py --method pause [--num_latents 6]

Where we differ: the paper inserts pauses in pretraining, too; here the base has never seen one.
"""

from dataclasses import dataclass

from ..batch import Batch, Row, causal_batch, tail
from ..config import Config, opt
from .method import Method, Stage


@dataclass
class Settings(Config):
    num_latents: int = opt(6, "pause tokens, the same number for every question", least=0)


class Pause(Method):
    Settings = Settings
    PRESETS = {"mini": {"steps": 1500, "lr": 3e-3}}
    needs_chain = False

    def stages(self, train: list[Row]) -> list[Stage]:
        n = self.config.num_latents
        lengths = [len(r.prompt) + n + len(r.tail) for r in train]
        return [self.stage("pause", f"cross-entropy on the answer after {n} pauses", train, lengths)]

    def collate(self, rows: list[Row], rng=None) -> Batch:
        pauses = [self.tok.latent] * self.config.num_latents
        given = [r.prompt + pauses + tail([], self.tok) for r in rows]
        return causal_batch(given, [r.answer for r in rows], self.tok.pad)

    # ------------------------------------------------------------------ inference

    def thinker(self):
        return lambda logits, hidden: self.model.embed.weight[self.tok.latent].expand_as(hidden)

    def decoding(self):
        n = self.config.num_latents
        return {**super().decoding(), "min_chain": n, "max_chain": n}
