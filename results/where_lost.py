"""Where does a chain of latents go wrong? The first m latents are the encoder's, of the gold chain; the model goes on by itself.

    python -m results.where_lost --ckpt out/latent_sft --json ..

Of a run of Latent-SFT that kept its stage 1 (`state/`). Writes, of test questions of mini,
    accuracy    by m: all that happens after the first m latents. It rises at the latents that the model gets wrong
    told        by the latent's place in a step of the problem: how often stage 1's decoder says each token of the *following* segment
                right from this latent alone (what L_sup trains)
"""

import argparse
import copy
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from minilatent import checkpoint, tasks
from minilatent.decode import decode
from minilatent.files import write_json
from minilatent.latent import mix
from minilatent.masks import TEXT, causal, dual_track_positions, supervision_mask
from minilatent.run import load_run
from minilatent.tasks.answers import is_correct

STEP = 8  # tokens of one of mini's steps


@torch.no_grad()
def accuracy_by_given(method, rows, examples, z, batch: int = 256) -> list[float]:
    """Accuracy when the first 0, 1, 2, .. of each question's latents are given; z: a question's (N, C) each."""
    model, tok = method.model, method.tok
    right = torch.zeros(max(map(len, z)) + 1)
    for at in range(0, len(rows), batch):
        some = list(zip(rows, examples, z))[at : at + batch]
        for m in range(len(right)):
            prefix = [
                torch.cat([model.embed.weight[r.question + [tok.think]], given[:m]]) for r, _, given in some
            ]
            out = decode(
                model,
                tok,
                pad_sequence(prefix, True),
                torch.tensor([len(p) for p in prefix]),
                method.thinker(),
                max_chain=method.config.max_chain,
                max_answer=method.config.max_answer,
            )
            right[m] += sum(is_correct(a, e.answer) for a, (_, e, _) in zip(out.answers, some))
    return [round(x, 4) for x in (right / len(rows)).tolist()]


@torch.no_grad()
def told_by_place(method, rows, z) -> list[list[float]]:
    """Stage 1's decoder, (places in a step, tokens of the following segment)."""
    batch = method.tensors([method.decoder_layout(r) for r in rows])
    ids, kind, block = batch["ids"], batch["kind"], batch["block"]  # (B, T)
    mask = supervision_mask(kind, block) if method.config.ltsum else causal(kind)
    h = method.model(
        embeds=method.embed_with(ids, kind, torch.cat(z)), mask=mask, positions=dual_track_positions(kind)
    )
    right = method.model.logits(h[:, :-1]).argmax(-1) == ids[:, 1:]  # (B, T - 1)
    text, block = kind[:, 1:] == TEXT, block[:, 1:]
    place = (
        torch.arange(text.shape[1]) - (~text * torch.arange(text.shape[1])).cummax(1).values - 1
    )  # of a token in its segment
    r = method.config.ratio
    return [
        [
            round(
                right[text & (block % (STEP // r) == (i + 1) % (STEP // r)) & (place == p)]
                .float()
                .mean()
                .item(),
                4,
            )
            for p in range(r)
        ]
        for i in range(STEP // r)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", type=Path, default=Path("out/latent_sft"))
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    method = load_run(str(args.ckpt), torch.device("cpu"))
    examples = tasks.load("mini", "test", limit=args.questions)
    rows, student = method.gold(examples), method.model

    best = args.ckpt / "state" / "best-stage1-both.safetensors"
    tensors, _ = checkpoint.load_tensors(best)
    method.encoder, method.model = copy.deepcopy(student), copy.deepcopy(student)  # stage 1's pair
    for name, module in (("encoder.", method.encoder), ("model.", method.model)):
        checkpoint.load_into(
            module, {k.removeprefix(name): v for k, v in tensors.items() if k.startswith(name)}, best
        )
    with torch.no_grad():
        z, sparse, _ = method.induce(
            *method.on_device(method.tensors([method.encoder_layout(r) for r in rows]), "ids", "kind")
        )
        counts = [len(method.segments(r)) for r in rows]
        told = told_by_place(method, rows, z.split(counts))
        theirs, method.model = method.model, student  # the table of the model that reads them
        ratio = student.embed.weight.std() / theirs.embed.weight.std()
        z = z * ratio if method.hidden else mix(*sparse, student.embed.weight)
    result = {
        "latent": method.config.latent,
        "ratio": method.config.ratio,
        "questions": len(rows),
        "accuracy": accuracy_by_given(method, rows, examples, z.split(counts)),
        "told": told,
    }
    print(result)
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
