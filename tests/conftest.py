"""What all tests share: one thread, the mini tokenizer, and models small enough to be read."""
import random
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))            # so that a bare `pytest` finds the package

from minilatent.config import PRESETS                  # noqa: E402
from minilatent.metrics import to_hex                  # noqa: E402
from minilatent.model import ModelConfig, Transformer  # noqa: E402
from minilatent.tokenizer import mini_tokenizer        # noqa: E402

torch.set_num_threads(1)
for name in ("mini", "smoke"):           # tests compare at 1e-5; `--dtype auto` has tests of its own
    PRESETS[name]["dtype"] = "float32"

GPT2 = {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "qkv_bias": True}
QWEN = {"n_kv_head": 1, "qkv_bias": True, "qk_norm": True, "rope_theta": 1e6, "norm_eps": 1e-6}
LLAMA = {"n_kv_head": 1, "tied": False}
FAMILIES = {"mini": {}, "gpt2": GPT2, "qwen": QWEN, "llama": LLAMA}


def tiny_model(vocab: int = 40, seed: int = 0, scale: float = 1.0, **changes) -> Transformer:
    """A random model. `scale` 1 is the usual small initialisation; larger weights make sharp, varied outputs, so
    that a wrong mask or position changes an argmax and not only the seventh digit."""
    settings = {"n_layer": 2, "n_head": 2, "n_kv_head": 2, "width": 16, "head_dim": 8, "hidden": 24, "context": 96}
    model = Transformer(ModelConfig(vocab, **{**settings, **changes}))
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name or name.endswith("bias"):            # ones and zeros would hide a forgotten one
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            p.mul_(scale)
    return model.eval()


@pytest.fixture(scope="session")
def tok():
    return mini_tokenizer()


def made_line(row="a", seed=0, name="mini", correct=(True,), **more) -> dict:
    """A line of rows.jsonl, of so many questions, without having trained anything."""
    correct, n = list(correct), len(correct)
    return {"row": row, "run": row, "title": row, "group": "main", "seed": seed, "instead_of": "", "budget": 1.0, "limit": n, "method": "latent_sft",
            "data": name, "n": n, "skipped": 0, "accuracy": sum(correct) / n, "mean_len": 5.0, "questions_per_second": 100.0,
            "train_seconds": 60.0, "train_tokens": 2_000_000, "flops": 1e12, "hardware": "a CPU", "val_accuracy": 0.5, "ecr": None, "n_multi": 0,
            "questions": {"correct": to_hex(correct), "len": [5] * n}, **more}


def drawn(p: float, n: int, seed: int) -> list[bool]:
    rng = random.Random(seed)
    return [rng.random() < p for _ in range(n)]
