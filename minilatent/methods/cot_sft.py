"""CoT-SFT: explicit chain-of-thought, fine-tuned. Other methods start from it and are compared with it.

    Q <think> c_1 .. c_T </think> answer <eos>         cross-entropy on all that follows <think>

    python train.py --method cot_sft

Soft Thinking (Zhang et al., arXiv 2505.15778) is another way to decode such a model, without training: a
step feeds back the mixture of its likeliest tokens' embeddings, weighted by their probabilities, instead of
the likeliest one's. The model has never learned to read mixtures; where it is sure of its token, nothing
changes.

    python eval.py --ckpt out/cot_sft --soft_thinking [--soft_k 10] [--soft_temperature 0.6]

Where we differ from Soft Thinking: the answer is decoded greedily, as everywhere here (the paper samples
it). The paper also ends a chain after many steps in a row of low entropy, its "cold stop"; on short
chains that never happens, so it is left out.
"""

from ..batch import Batch, Row, causal_batch
from ..config import SoftThinking
from ..decode import explicit_thinker, superposition_thinker
from .method import Method, Stage


class CoTSFT(Method):
    PRESETS = {"mini": {"steps": 1500}}
    soft: SoftThinking | None = None  # decode with mixtures

    def stages(self, train: list[Row]) -> list[Stage]:
        lengths = [len(r.prompt) + len(r.chain) + len(r.tail) for r in train]
        return [self.stage("cot", "cross-entropy on the chain and the answer", train, lengths)]

    def collate(self, rows: list[Row], rng=None) -> Batch:
        return causal_batch([r.prompt for r in rows], [r.chain + r.tail for r in rows], self.tok.pad)

    def loss(self, batch: Batch, noise=None):
        return self.next_token_loss(batch), {}

    # ------------------------------------------------------------------ inference

    @property
    def explicit(self) -> bool:
        return self.soft is None

    @property
    def mixed(self) -> bool:
        return self.soft is not None

    @property
    def mixture_size(self) -> int:
        return self.soft.soft_k if self.soft else 10

    def thinker(self):
        if self.soft:
            k, temperature = self.soft.soft_k, self.soft.soft_temperature
            return superposition_thinker(self.model, k, self.tok.never, temperature)
        return explicit_thinker(self.model)
