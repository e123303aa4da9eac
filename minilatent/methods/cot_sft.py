"""CoT-SFT: explicit chain-of-thought, fine-tuned. Other methods start from it and are compared with it.

Q <think> c_1 .. c_T </think> answer <eos>         cross-entropy on all that follows <think>

python train.py --method cot_sft
"""

from ..batch import Batch, Row, causal_batch
from ..decode import explicit_thinker
from .method import Method, Stage


class CoTSFT(Method):
    PRESETS = {"mini": {"steps": 1500}}
    explicit = True

    def stages(self, train: list[Row]) -> list[Stage]:
        lengths = [len(r.prompt) + len(r.chain) + len(r.tail) for r in train]
        return [self.stage("cot", "cross-entropy on the chain and the answer", train, lengths)]

    def collate(self, rows: list[Row], rng=None) -> Batch:
        return causal_batch([r.prompt for r in rows], [r.chain + r.tail for r in rows], self.tok.pad)

    # ------------------------------------------------------------------ inference

    def thinker(self):
        return explicit_thinker(self.model)
