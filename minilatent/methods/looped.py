"""Looped: No-CoT by a model that runs its blocks R times. The control for depth.

Saunshi et al., "Reasoning with Latent Thoughts: On the Power of Looped Transformers", arXiv 2502.17416.

    Q <think> </think> answer <eos>      cross-entropy on the answer
    h = block_n(.. block_1(h)), R times, with the same weights; every loop has keys and values of its own

A chain of latents makes the computation deeper: each latent passes through all blocks again. So does looping,
without a latent: if a latent method is no better than this, its latents are depth and nothing else. (Pause
tokens are the control for width: more positions, and no more depth.)

    python train.py --method looped --init none [--loops 3]

Where we differ: the paper trains looped models from random weights; with --init a model that was trained
without loops has to get used to them first.
"""

from dataclasses import dataclass

from ..config import Config, opt
from . import no_cot


@dataclass
class Settings(Config):
    loops: int = opt(3, "R, how often the blocks run", least=1)


class Looped(no_cot.NoCoT):
    Settings = Settings

    def __init__(self, config, tok, model, folder=None):
        super().__init__(config, tok, model, folder)
        model.config.loops = config.loops
