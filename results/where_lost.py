"""Where does a chain of latents go wrong? The first m latents are the encoder's, of the true chain; the model
continues by itself.

    python -m results.where_lost --ckpt out/latent_sft --json ..

For a run of Latent-SFT that kept its stage 1 (`state/`). Writes, of test questions of mini:

    accuracy    by m. It rises at the latents that the model predicts wrongly
    told        by the latent's place in a step of the problem: how often stage 1's decoder predicts each
                token of the *following* segment from this latent alone (what L_sup trains)
"""

import copy
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minilatent import checkpoint, tasks
from minilatent.batch import Row
from minilatent.config import Parser, run_script
from minilatent.decode import decode
from minilatent.files import write_json
from minilatent.latent import mix
from minilatent.masks import TEXT, causal, dual_track_positions, supervision_mask
from minilatent.run import load_run
from minilatent.tasks.answers import Example, is_correct

STEP = 8  # tokens of one of mini's steps
BATCH = 256  # questions


@torch.no_grad()
def accuracy_by_given(method, rows: list[Row], examples: list[Example], z: list[Tensor]) -> list[float]:
    """Accuracy when the first 0, 1, 2, .. of each question's latents, (N, C), are given."""
    model, tok = method.model, method.tok
    right = torch.zeros(max(map(len, z)) + 1)
    for at in range(0, len(rows), BATCH):
        part = slice(at, at + BATCH)
        prompts = [model.embed.weight[row.prompt] for row in rows[part]]  # (T, C) each
        for m in range(len(right)):
            prefix = [torch.cat([prompt, latents[:m]]) for prompt, latents in zip(prompts, z[part])]
            lengths = torch.tensor([len(p) for p in prefix])
            padded = pad_sequence(prefix, batch_first=True)
            out = decode(model, tok, padded, lengths, method.thinker(), **method.decoding())
            right[m] += sum(is_correct(a, e.answer) for a, e in zip(out.answers, examples[part]))
    return [round(x, 4) for x in (right / len(rows)).tolist()]


@torch.no_grad()
def told_by_place(method, rows: list[Row], z: Tensor) -> list[list[float]]:
    """How often stage 1's decoder is right: (places of a latent in a step, tokens of the segment after it).
    z: all latents in reading order, (n, C)."""
    batch = method.tensors([method.decoder_layout(r) for r in rows])
    ids, kind, block = batch["ids"], batch["kind"], batch["block"]  # (B, T)
    mask = supervision_mask(kind, block) if method.config.ltsum else causal(kind)
    x = method.embed_with(ids, kind, z)
    h = method.model(embeds=x, mask=mask, positions=dual_track_positions(kind))
    right = method.model.logits(h[:, :-1]).argmax(-1) == ids[:, 1:]  # (B, T - 1)
    text, block = kind[:, 1:] == TEXT, block[:, 1:]

    at = torch.arange(text.shape[1])
    before = (~text * at).cummax(1).values  # the last position that is no text of the chain
    token = at - before - 1  # the place of a token in its segment
    r = method.config.ratio
    place = block % (STEP // r)  # a step's latents are 1, 2, .., 0
    table = []
    for i in range(STEP // r):
        here = text & (place == (i + 1) % (STEP // r))
        table.append([round(right[here & (token == t)].float().mean().item(), 4) for t in range(r)])
    return table


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m results.where_lost", description="Where does a chain of latents go wrong?"
    )
    parser.add_argument("--ckpt", type=Path, default=Path("out/latent_sft"), metavar="DIR", help="run folder")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    method = load_run(str(args.ckpt), torch.device("cpu"))
    examples = tasks.load("mini", "test", limit=args.questions)
    rows, student = method.gold(examples), method.model

    best = args.ckpt / "state" / "best-stage1-both.safetensors"
    tensors, _ = checkpoint.load_tensors(best)
    method.encoder, method.model = copy.deepcopy(student), copy.deepcopy(student)  # stage 1's pair
    for name, module in (("encoder.", method.encoder), ("model.", method.model)):
        own = {key.removeprefix(name): t for key, t in tensors.items() if key.startswith(name)}
        checkpoint.load_into(module, own, best)
    with torch.no_grad():
        batch = method.tensors([method.encoder_layout(r) for r in rows])
        z, label = method.induce(batch["ids"], batch["kind"])
        told = told_by_place(method, rows, z)
        decoder, method.model = method.model, student
        if "probs" in label:  # the same mixtures, from the embeddings of the model that reads them now
            z = mix(label["probs"], label["ids"], student.embed.weight)
        else:
            z = z * student.embed.weight.std() / decoder.embed.weight.std()
    counts = [len(method.segments(r)) for r in rows]
    result = {
        "latent": method.config.latent,
        "ratio": method.config.ratio,
        "questions": len(rows),
        "accuracy": accuracy_by_given(method, rows, examples, list(z.split(counts))),
        "told": told,
    }
    print(result)
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    run_script(main)
