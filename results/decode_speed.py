"""Batched, cached decoding against one question at a time with a full forward pass a step, in one run:

    python -m results.decode_speed --ckpt out/latent_sft --json results/mini/decode_speed.json

Both decode the same questions with the same weights, dtype and threads; their answers are compared.
"""

import argparse
import time
from pathlib import Path

import torch

from minilatent import tasks
from minilatent.files import write_json
from minilatent.run import load_run
from minilatent.study.budget import machine


@torch.no_grad()
def naive(method, question: str) -> tuple[str, int]:
    """The answer and #L of one question of a Latent-SFT or CoT run; nothing is cached."""
    model, tok, config, think = method.model, method.tok, method.config, method.thinker()
    x = model.embed(torch.tensor([method.prompt(question)]))  # (1, T, C)

    def look():
        hidden = model(embeds=x)[:, -1]
        logits = model.logits(hidden)
        logits[:, tok.never] = float("-inf")
        return hidden, logits

    steps, answer = 0, []
    while True:
        hidden, logits = look()
        end = int(logits.argmax()) == tok.end_think or steps == config.max_chain
        x = torch.cat(
            [x, model.embed.weight[[tok.end_think]][None] if end else think(logits, hidden)[:, None]], 1
        )
        if end:
            break
        steps += 1
    while len(answer) < config.max_answer and tok.eos not in answer:
        answer.append(int(look()[1].argmax()))
        x = torch.cat([x, model.embed.weight[answer[-1:]][None]], 1)
    return tok.decode(answer), steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", default="out/latent_sft")
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    method = load_run(args.ckpt, torch.device("cpu"))
    method.model.to(getattr(torch, args.dtype))
    questions = [e.question for e in tasks.load(method.config.data, "test", limit=args.questions)]
    method.solve(questions[:8]), naive(method, questions[0])  # warm up
    rounds = []
    for _ in range(args.rounds):
        start = time.perf_counter()
        out = method.solve(questions)
        middle = time.perf_counter()
        alone = [naive(method, q) for q in questions]
        end = time.perf_counter()
        rounds.append(
            {"batched": len(questions) / (middle - start), "naive": len(questions) / (end - middle)}
        )
        rounds[-1]["ratio"] = rounds[-1]["batched"] / rounds[-1]["naive"]
        print("  ".join(f"{k} {v:.1f}" for k, v in rounds[-1].items()))
    different = sum(
        a != b or n != m
        for a, b, n, m in zip(out.answers, [a for a, _ in alone], out.lengths.tolist(), [n for _, n in alone])
    )
    result = {
        "method": method.config.method,
        "dtype": args.dtype,
        "hardware": machine(torch.device("cpu"))["hardware"],
        "questions": len(questions),
        "threads": torch.get_num_threads(),
        "questions_per_second": rounds,
        "rows_that_differ": different,
    }
    print(f"{different} of {len(questions)} rows differ")
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
