"""No-CoT: the answer at once. What a model can do in one forward pass: the floor under every latent method.

    Q <think> </think> answer <eos>                     cross-entropy on the answer

    python train.py --method no_cot

The sequence keeps the two markers, so that a model from CoT-SFT reads what it knows.
"""

from ..batch import Batch, Row, causal_batch, tail
from .method import Method, Stage


class NoCoT(Method):
    PRESETS = {"mini": {"steps": 1500, "lr": 3e-3}}
    needs_chain = False

    def stages(self, train: list[Row]) -> list[Stage]:
        lengths = [len(r.prompt) + len(r.tail) for r in train]
        return [self.stage("no_cot", "cross-entropy on the answer", train, lengths)]

    def collate(self, rows: list[Row], rng=None) -> Batch:
        given = [r.prompt + tail([], self.tok) for r in rows]  # no label asks for </think>
        return causal_batch(given, [r.answer for r in rows], self.tok.pad)

    # ------------------------------------------------------------------ inference

    def prompt(self, question: str) -> list[int]:
        return super().prompt(question) + tail([], self.tok)

    def thinker(self):
        return None
