"""Everything that eval.py reports of a trained run: accuracy, length, and what its latents hold."""

import sys
from collections import defaultdict

import torch
from torch import Tensor

from .. import tasks
from ..batch import pad
from ..config import UserError
from ..decode import Decoded
from ..evaluate import fitting, solve_batches, wilson
from ..tasks.answers import Example, is_correct
from ..tokenizer import Tokenizer
from .measures import chain_weights, concentration, ecr, one_path, parallelism, partners, to_hex

KS = (1, 2, 5, 10, 20, 50, 100, 200, 300)
PROBS_BYTES = 500e6  # most that a batch's distributions over the vocabulary may take
N_EFF = ("n_eff", "n_eff_entropy", "top2", "n_eff_control", "n_eff_excess", "n_eff_one_path")  # each also _distinct
QUANTILES = 21  # of N_eff over the questions: 0, 5, .. 100 %


def frequent_tokens(tok: Tokenizer, examples: list[Example]) -> Tensor:
    """Token ids (V,), the most frequent of the examples' chains first: what the control of ECR@K offers."""
    ids = [i for e in examples for i in tok.encode(e.chain)]
    return torch.bincount(torch.tensor(ids, dtype=torch.long), minlength=tok.vocab_size).argsort(
        descending=True, stable=True
    )


def training_tokens(method, sample: int = 2000) -> Tensor | None:
    """`frequent_tokens` of the run's training data, or None, with a word on stderr, if it is no longer at hand."""
    c = method.config
    try:
        return frequent_tokens(
            method.tok,
            tasks.load(
                c.data,
                "train",
                limit=sample,
                seed=c.seed,
                chain_style=c.chain_style,
                chain_order=c.chain_order,
                revision=c.revision,
            ),
        )
    except UserError as error:
        print(f"no control for ECR, the training data is not at hand: {error}", file=sys.stderr)
        return None


def evaluate(
    method,
    examples: list[Example],
    name: str,
    ks: tuple[int, ...] = KS,
    frequent: Tensor | None = None,
    too_long: str = "skip",
    batch: int = 0,
    per_question: bool = False,
    brief: bool = False,
) -> dict:
    """Everything that eval.py reports of one data set, as JSON would hold it; null where a measure does not apply:
    all of the latents' for a method that does not think, ECR for data without chains, N_eff for data without
    several chains a question. For explicit CoT, ECR is 1 by construction (its own chain is the reference), and
    N_eff is that of its token distributions with r = 1; the k-mixture's measures are null.

    For hidden-state latents, all of these read the language head's distribution, which is not what is fed.
    N_eff's keys come twice: `*_distinct` counts only the tokens that tell a question's chains apart. Two controls:
    `*_control`, against another question's chains, and `*_one_path`, of latents that hold nothing but the chain that
    the model follows most.

    frequent    token ids, the most frequent first (`frequent_tokens` of training examples), for ECR's control
    per_question    also "questions": in the data's order "correct" as hexadecimal bits (metrics.to_hex) and "len"; "ecr_gain",
                    ECR@10 above its control, null without a chain; "n_eff_above", N_eff by the tokens that differ above the larger
                    of its controls, of those of "n_eff_judged" alone: with several chains, and another question to compare with

    brief       accuracy, #L and speed alone, null for the rest: no distribution is kept, which with a large vocabulary takes most of the time

    `seconds` includes keeping each step's distribution. These are dropped batch by batch: what is kept is a few
    numbers a question, so memory does not grow with the data set.
    """
    fits = fitting(method, examples, too_long)
    V = method.model.config.vocab_size
    ks = tuple(k for k in ks if k <= V)
    batch = batch or method.config.eval_batch
    if not brief:
        batch = min(batch, max(1, int(PROBS_BYTES // (4 * V * max(1, method.config.max_chain)))))
    others = other_chains(method.tok, fits)

    found: dict[str, list[Tensor]] = defaultdict(list)  # per question, batch by batch
    seconds, right, order = 0.0, 0, []
    for chosen, out, took in solve_batches(method, fits, batch, keep_probs=not brief):
        seconds += took
        some = [fits[i] for i in chosen]
        found["correct"].append(torch.tensor([is_correct(a, e.answer) for a, e in zip(out.answers, some)]))
        right, order = right + int(found["correct"][-1].sum()), order + chosen
        found["len"].append(out.lengths.cpu())
        if out.probs is not None and out.probs.shape[1]:
            found["closed"].append(out.closed.cpu().float())
            for key, value in judge_latents(
                method, out, some, [others.get(i) for i in chosen], ks, frequent
            ).items():
                found[key].append(value)
    values = {key: torch.cat(parts) for key, parts in found.items()}

    def mean(key: str) -> float | None:
        return values[key].double().mean().item() if len(values.get(key, ())) else None

    def per_k(key: str) -> dict[str, float] | None:
        """Over all steps, not over questions: a long chain has more of them."""
        if key not in values or not values["ecr_steps"].sum():
            return None
        pooled = (values[key] * values["ecr_steps"][:, None]).sum(0) / values["ecr_steps"].sum()
        return {str(k): v for k, v in zip(ks, pooled.tolist())}

    def quantiles(key: str) -> list[float] | None:
        return (
            torch.quantile(values[key].double(), torch.linspace(0, 1, QUANTILES).double()).tolist()
            if mean(key)
            else None
        )

    n, length = len(fits), mean("len")
    result = {
        "method": method.config.method,
        "data": name,
        "n": n,
        "skipped": len(examples) - n,
        "accuracy": right / n,
        "ci95": list(wilson(right, n)),
        "mean_len": length,
        "acc_per_len": right / n / length if length else None,
        "seconds": seconds,
        "questions_per_second": n / max(seconds, 1e-9),
        "closed": mean("closed"),
        "ecr": per_k("ecr"),
        "ecr_control": per_k("ecr_control"),
        "k_share": {str(k): k / V for k in ks},
        "n_multi": len(values.get("n_eff", ())),
    }
    for key in (
        *N_EFF,
        *(key + "_distinct" for key in N_EFF),
        "n_chains",
        "entropy",
        "entropy_mixture",
        "top1",
    ):
        result[key] = mean(key)
    result["n_eff_quantiles"] = {
        key: quantiles(key)
        for key in (
            key + suffix
            for suffix in ("", "_distinct")
            for key in ("n_eff", "n_eff_control", "n_eff_one_path")
        )
    }
    if per_question:
        result["questions"] = questions(values, order, [len(e.chains) > 1 for e in fits], ks)
    return result


def questions(values: dict[str, Tensor], order: list[int], multi: list[bool], ks: tuple[int, ...]) -> dict:
    """Per-question results, which came in this order, in the data's."""
    place = sorted(range(len(order)), key=order.__getitem__)
    told = {"correct": to_hex(values["correct"][place].tolist()), "len": values["len"][place].tolist()}
    if "ecr_control" in values and 10 in ks:
        gain = (values["ecr"] - values["ecr_control"])[place, ks.index(10)].tolist()
        told["ecr_gain"] = [
            round(g, 2) if n else None for g, n in zip(gain, values["ecr_steps"][place].tolist())
        ]
    if (
        "n_eff_distinct" in values
    ):  # they came batch by batch, too: those that have several chains and a thought
        # One chain only is what a mixture has to beat; latents that know nothing follow all chains alike, another question's too.
        beaten = torch.maximum(
            values["n_eff_one_path_distinct"], values["n_eff_other_distinct"]
        )  # NaN without another question
        judged = iter((values["n_eff_distinct"] - beaten).tolist())
        by_question = {i: next(judged) for i, n in zip(order, values["len"].tolist()) if multi[i] and n > 0}
        above = {i: round(g, 2) for i, g in sorted(by_question.items()) if g == g}  # not NaN
        told |= {
            "n_eff_judged": to_hex([i in above for i in range(len(order))]),
            "n_eff_above": list(above.values()),
        }
    return told


Chains = list[list[int]]  # of one question, in tokens


def chains_of(tok: Tokenizer, example: Example) -> Chains:
    return [tok.encode(" ".join(steps)) for steps in example.chains]


def other_chains(tok: Tokenizer, examples: list[Example]) -> dict[int, Chains | None]:
    """For each question with several valid chains, by its index: the chains of another question with as many of
    them, and as long where possible; None where there is no such question."""
    multi = [i for i, e in enumerate(examples) if len(e.chains) > 1]
    chains = [chains_of(tok, examples[i]) for i in multi]
    count = torch.tensor([len(c) for c in chains])
    partner = partners(torch.tensor([len(c[0]) for c in chains]), count[:, None] == count)
    return {i: chains[p] if p >= 0 else None for i, p in zip(multi, partner.tolist())}


def pad_chains(chains: list[Chains], value: int) -> tuple[Tensor, Tensor]:
    """(B, M, T) ids and (B, M) lengths, 0 where a question has fewer than M chains."""
    M = max(len(c) for c in chains)
    flat = [chain for c in chains for chain in c + [[]] * (M - len(c))]
    return pad(flat, value).view(len(chains), M, -1), torch.tensor([len(chain) for chain in flat]).view(-1, M)


def judge_latents(
    method,
    out: Decoded,
    examples: list[Example],
    others: list[Chains | None],
    ks: tuple[int, ...],
    frequent: Tensor | None,
) -> dict[str, Tensor]:
    """What a batch's distributions hold, per question; those of N_eff for the questions that have several chains."""
    tok, ratio = method.tok, method.ratio
    steps, probs = out.lengths.cpu(), out.probs  # (B,), (B, N, V)
    fed = probs  # Soft Thinking mixes at a temperature of its own
    if soft := getattr(method, "soft", None):
        fed = (probs.clamp(min=1e-30).log() / soft.soft_temperature).softmax(-1)
    found = concentration(fed, steps, method.config.k)
    if method.explicit:  # one token is fed: there is no mixture
        found = {"entropy": found["entropy"]}
        chain, chain_len = out.chain.cpu(), steps
    else:
        reference = [tok.encode(e.chain) for e in examples]
        chain, chain_len = pad(reference, tok.pad), torch.tensor([len(c) for c in reference])

    if ks:
        found["ecr"] = ecr(probs.topk(max(ks), dim=-1).indices, steps, chain, chain_len, ratio, ks)
        found["ecr_steps"] = torch.where(chain_len > 0, steps, 0)  # without a chain: not counted
        if frequent is not None:
            top = frequent[: max(ks)].expand(*probs.shape[:2], -1)  # (B, N, max K)
            found["ecr_control"] = ecr(top, steps, chain, chain_len, ratio, ks)

    multi = [i for i, e in enumerate(examples) if len(e.chains) > 1 and steps[i] > 0]
    if multi:
        probs, steps = probs[multi], steps[multi]
        chains, chain_len = pad_chains(
            [chains_of(tok, examples[i]) for i in multi], tok.pad
        )  # (B, M, T), (B, M)
        found["n_chains"] = (chain_len > 0).sum(1)
        paired = [j for j, i in enumerate(multi) if others[i]]
        control = pad_chains([others[multi[j]] for j in paired], tok.pad) if paired else None
        for suffix, distinct in (("", False), ("_distinct", True)):
            weights = chain_weights(probs, steps, chains, chain_len, ratio, distinct)  # (B, M)
            own = parallelism(weights)
            row, best = torch.arange(len(multi)), weights.argmax(-1)  # the chain it follows most
            alone = one_path(probs.shape, steps, chains[row, best], chain_len[row, best], ratio)
            one = parallelism(chain_weights(alone, steps, chains, chain_len, ratio, distinct))
            found.update({key + suffix: value for key, value in own.items()})
            found["n_eff_one_path" + suffix] = one["n_eff"]
            if paired:
                other = parallelism(chain_weights(probs[paired], steps[paired], *control, ratio, distinct))
                found["n_eff_control" + suffix] = other["n_eff"]
                found["n_eff_excess" + suffix] = own["n_eff"][paired] - other["n_eff"]
            found["n_eff_other" + suffix] = torch.full_like(
                own["n_eff"], float("nan")
            )  # the same, with a place for every question
            if paired:
                found["n_eff_other" + suffix][paired] = other["n_eff"]
    return found


# ------------------------------------------------------------------ as text


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns aligned: the first to the left, numbers to the right."""
    lines = [head, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0])] + [c.rjust(w) for c, w in zip(line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def label(result: dict) -> str:
    """What a result is of: the data set, and CoLaR's speed."""
    return result["data"] + (f" ×{result['speed']}" if "speed" in result else "")


def report(results: list[dict]) -> str:
    """The tables that eval.py prints."""
    show = lambda value, digits=2: "-" if value is None else f"{value:.{digits}f}"
    at = lambda per_k, k: show((per_k or {}).get(k))
    rows = [
        [
            label(r),
            str(r["n"]),
            f"{100 * r['accuracy']:.1f}",
            "{:.1f}-{:.1f}".format(*(100 * x for x in r["ci95"])),
            show(r["mean_len"], 1),
            show(r["acc_per_len"] and 100 * r["acc_per_len"], 1),
            show(r["closed"] and 100 * r["closed"], 1),
            show(r["entropy"]),
            show(r["top1"]),
            f"{r['questions_per_second']:.0f}",
        ]
        for r in results
    ]
    text = table(["data", "n", "acc %", "95 %", "#L", "acc/#L", "closed %", "entropy", "top-1", "q/s"], rows)
    if any(r["ecr"] for r in results):
        ks = [k for k in ("1", "10", "50", "100", "300") if k in results[0]["k_share"]]
        rows = [
            [f"{label(r)}{what}", *(at(r[key], k) for k in ks)]
            for r in results
            for key, what in (("ecr", ""), ("ecr_control", ", frequent tokens"))
        ]
        rows += [["K / V", *(f"{100 * results[0]['k_share'][k]:.1f} %" for k in ks)]]
        text += "\n\n" + table(["ECR", *("@" + k for k in ks)], rows)
    if any(r["n_multi"] for r in results):
        columns = ("n_eff", "n_eff_entropy", "top2", "n_eff_control", "n_eff_one_path")
        rows = [
            [
                label(r) + what,
                str(r["n_multi"]),
                show(r["n_chains"], 1),
                *(show(r[key + suffix]) for key in columns),
            ]
            for r in results
            for suffix, what in (("", ""), ("_distinct", ", tokens that differ"))
        ]
        text += "\n\n" + table(
            ["N_eff", "questions", "chains", "1/Σw²", "exp H", "top-2", "others' chains", "one chain only"],
            rows,
        )
    if any(r["skipped"] for r in results):
        text += "\n\nleft out, too long for the context: " + ", ".join(
            f"{label(r)} {r['skipped']}" for r in results if r["skipped"]
        )
    return text
