"""Build the playground: one HTML page, in which trained models think in the reader's browser.

    python -m minilatent.tools.playground RUN [RUN ...] --out playground.html

The page holds weights, tokenizers and questions, and asks nobody for anything. Its sources are in page/:
engine.js (the model and the decoding loop, to be read beside ours), ui.js, page.html and page.css.
"""

import json
import zlib
from pathlib import Path

import torch

from .. import tasks
from ..config import Parser, UserError, run_script
from ..files import replace_file
from ..methods import Method
from ..run import load_run
from ..tokenizer import MINI_PATTERN

PAGE = Path(__file__).parent / "page"
METHODS = ("cot_sft", "latent_sft", "colar")
MODEL = {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "qkv_bias": False}
MODEL |= {"o_bias": False, "tied": True, "rope_scaling": None, "loops": 1}
LARGEST = 3_000_000  # parameters
# What HTML changes in a text, the last being the beginning of a tag: they get an eighth bit.
ESCAPED = {ord(c): ord(c) + 128 for c in "\0\r<"}


def check(method: Method, folder: str) -> None:
    """UserError if the page cannot show this run."""
    config, shape = method.config, vars(method.model.config)
    of = lambda name: getattr(config, name, None)
    other = [f"{name} {shape[name]}" for name, value in MODEL.items() if shape[name] != value]
    faults = {
        f"the page shows runs of {', '.join(METHODS)}, not of {config.method}": config.method not in METHODS,
        "it has adapters (--lora_rank)": config.lora_rank,
        "its tokenizer is not mini's": getattr(method.tok.backend, "pattern", "") != MINI_PATTERN,
        f"the page does not know models with {', '.join(other)}": other,
        f"its model has more than {LARGEST / 1e6:.0f} M parameters": method.model.num_parameters() > LARGEST,
        "its latents are hidden states (--latent hidden)": of("latent") == "hidden",
        "it samples (--latent_temperature, --sample_end)": of("latent_temperature") or of("sample_end"),
        "its speed is auto, and the page says a number": of("speed") == "auto",
    }
    for fault in (fault for fault, found in faults.items() if found):
        raise UserError(f"{folder}: {fault}")


def tensors_of(method: Method) -> dict[str, torch.Tensor]:
    """What the page computes with: the model's tensors and the latent head's, but for its σ."""
    tensors = {name.removeprefix("model."): tensor for name, tensor in method.state_dict().items()}
    return {name: t for name, t in tensors.items() if name != "scale" and "log_sigma" not in name}


def planes(tensors: dict[str, torch.Tensor]) -> bytes:
    """bfloat16: all exponents, which are alike and compress well, then all signs with their mantissas."""
    bits = torch.cat([t.flatten() for t in tensors.values()]).bfloat16().view(torch.int16).int()
    both = torch.cat([bits >> 7, (bits & 127) | (bits >> 8 & 128)])
    return bytes((both & 255).to(torch.uint8).tolist())


def as_text(data: bytes) -> str:
    """7 bits a character, 1.17 bytes a byte. (base64 takes 1.33, and three models would not fit in 5 MB.)"""
    down = torch.arange(7, -1, -1, dtype=torch.uint8)
    bits = (torch.tensor(list(data), dtype=torch.uint8)[:, None] >> down & 1).flatten()
    bits = torch.nn.functional.pad(bits, (0, -len(bits) % 7)).view(-1, 7)
    return bytes((bits << down[1:]).sum(1).tolist()).decode("ascii").translate(ESCAPED)


def describe(method: Method, tensors: dict[str, torch.Tensor]) -> dict:
    """All that the page must know of a run beside its weights."""
    config, tok = method.config, method.tok
    title = {"cot_sft": "CoT-SFT", "latent_sft": f"Latent-SFT({method.ratio})", "colar": "CoLaR"}
    ranks = [token.decode("latin-1") for token in tok.backend.ranks]  # a character a byte
    tokenizer = {"pattern": MINI_PATTERN, "ranks": ranks, "markers": tok.markers, "opening": tok.opening}
    own = {key: getattr(config, key, 0) for key in ("max_chain", "max_answer", "k", "c_max")}
    return own | {
        "method": config.method,
        "title": title[config.method],
        "ratio": method.ratio,
        "speed": int(getattr(config, "speed", 0)),
        "scale": float(getattr(method, "scale", 0)),
        "parameters": method.model.num_parameters(),
        "model": vars(method.model.config),
        "shapes": [[name, t.numel()] for name, t in tensors.items()],
        "tokenizer": tokenizer,
    }


def questions(each: int = 4) -> list[dict]:
    """To pick from: some of every test set, with chain and answer."""
    some = [(name, e) for name in tasks.words.TEST_SETS for e in tasks.load(name, "test", limit=each)]
    return [{"set": n, "question": e.question, "chain": e.chain, "answer": e.answer} for n, e in some]


def build(folders: list[str]) -> str:
    """The page of these run folders."""
    runs, weights = [], []
    for folder in folders:
        method = load_run(folder, torch.device("cpu"))
        check(method, folder)
        tensors = tensors_of(method)
        runs.append(describe(method, tensors))
        weights.append(as_text(zlib.compress(planes(tensors), 9)))
    data = json.dumps({"runs": runs, "questions": questions()}).replace("<", "\\u003c")
    parts = {name: (PAGE / name).read_text(encoding="utf-8") for name in ("page.css", "engine.js", "ui.js")}
    parts |= {"data": data, "weights": "\n".join(f'<script type="text/plain">{w}</script>' for w in weights)}
    page = (PAGE / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace(f"{{{{{name}}}}}", part)
    return page


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m minilatent.tools.playground", description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder of train.py")
    parser.add_argument("--out", default="playground.html", help="file to write [playground.html]")
    args = parser.parse_args(argv)
    page = build(args.runs)
    replace_file(Path(args.out), lambda path: path.write_bytes(page.encode()))
    print(f"{args.out}: {len(page.encode()) / 1e6:.2f} MB; open it in a browser")


if __name__ == "__main__":
    run_script(main)
