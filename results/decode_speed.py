"""Batched, cached decoding against one question at a time with a full forward pass for each step:

    python -m results.decode_speed --ckpt out/latent_sft --json results/mini/decode_speed.json

Both decode the same questions with the same weights, precision and threads; their answers are compared.
"""

import time
from pathlib import Path

import torch

from minilatent import tasks
from minilatent.config import Parser, run_script
from minilatent.files import write_json
from minilatent.run import load_run
from minilatent.tools.benchmark import machine


@torch.no_grad()
def naive(method, question: str) -> tuple[str, int]:
    """The answer and #L of one question of a Latent-SFT or CoT-SFT run; nothing is cached."""
    model, tok, config, think = method.model, method.tok, method.config, method.thinker()
    x = model.embed(torch.tensor([method.prompt(question)]))  # (1, T, C)

    def predict():
        """The last hidden state (1, C), and the logits (1, V) without impossible tokens."""
        hidden = model(embeds=x)[:, -1]
        logits = model.logits(hidden)
        logits[:, tok.never] = float("-inf")
        return hidden, logits

    steps, closed, answer = 0, False, []
    while not closed:
        hidden, logits = predict()
        closed = int(logits.argmax()) == tok.end_think or steps == config.max_chain
        fed = model.embed.weight[[tok.end_think]] if closed else think(logits, hidden)  # (1, C)
        x = torch.cat([x, fed[:, None]], 1)
        steps += not closed
    while len(answer) < config.max_answer and tok.eos not in answer:
        answer.append(int(predict()[1].argmax()))
        x = torch.cat([x, model.embed.weight[answer[-1:]][None]], 1)
    return tok.decode(answer), steps


def main(argv: list[str]) -> None:
    parser = Parser(
        prog="python -m results.decode_speed", description="Batched decoding against a naive loop."
    )
    parser.add_argument("--ckpt", default="out/latent_sft", metavar="DIR", help="run folder")
    parser.add_argument("--questions", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    method = load_run(args.ckpt, torch.device("cpu"))
    method.model.to(getattr(torch, args.dtype))
    questions = [e.question for e in tasks.load(method.config.data, "test", limit=args.questions)]
    method.solve(questions[:8])  # warm up
    naive(method, questions[0])
    rounds = []
    for _ in range(args.rounds):
        start = time.perf_counter()
        out = method.solve(questions)
        middle = time.perf_counter()
        alone = [naive(method, question) for question in questions]
        end = time.perf_counter()
        batched, one_by_one = len(questions) / (middle - start), len(questions) / (end - middle)
        rounds.append({"batched": batched, "naive": one_by_one, "ratio": batched / one_by_one})
        print("  ".join(f"{name} {value:.1f}" for name, value in rounds[-1].items()))
    together = zip(out.answers, out.lengths.tolist())
    different = sum(pair != other for pair, other in zip(together, alone))
    print(f"{different} of {len(questions)} rows differ")
    result = {
        "method": method.config.method,
        "dtype": args.dtype,
        "hardware": machine(torch.device("cpu"))["hardware"],
        "questions": len(questions),
        "threads": torch.get_num_threads(),
        "questions_per_second": rounds,
        "rows_that_differ": different,
    }
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    run_script(main)
