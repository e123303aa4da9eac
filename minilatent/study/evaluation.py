"""Everything that eval.py reports of a trained run: accuracy, length, and what its latents hold."""

import sys

import torch
from torch import Tensor

from .. import tasks
from ..batch import pad
from ..config import UserError, wrapped
from ..decode import Decoded
from ..evaluate import fitting, solve_batches, wilson
from ..methods import owners
from ..tasks.answers import Example, is_correct
from ..tokenizer import Tokenizer
from .measures import chain_weights, ecr, mean_entropy, one_path, parallelism, partners, to_hex

KS = (1, 2, 5, 10, 20, 50, 100, 200, 300)
PROBS_BYTES = 500e6  # most that a batch's distributions over the vocabulary may take
N_EFF = ("n_eff", "top2", "n_eff_control", "n_eff_one_path")
SUFFIXES = {"": "", "_distinct": ", tokens that differ"}  # by all tokens; by those that tell chains apart


def change_settings(method, given: dict) -> None:
    """Change settings of a loaded run. UserError for a bad value or another method's setting."""
    for name, value in given.items():
        if not hasattr(method.config, name):
            raise UserError(f"--{name} belongs to {owners(name)}, this is a run of {method.config.method}")
        setattr(method.config, name, value)
    method.config.check()


def frequent_tokens(tok: Tokenizer, examples: list[Example]) -> Tensor:
    """Token ids (V,), the most frequent of the examples' chains first: the control of ECR@K."""
    ids = torch.tensor([i for e in examples for i in tok.encode_chain(e.chain)], dtype=torch.long)
    return torch.bincount(ids, minlength=tok.vocab_size).argsort(descending=True, stable=True)


def training_tokens(method, sample: int = 2000) -> Tensor | None:
    """`frequent_tokens` of the run's training data; None, with a message, if the data is not available."""
    c = method.config
    options = {"chain_style": c.chain_style, "chain_order": c.chain_order}
    try:
        return frequent_tokens(method.tok, tasks.load(c.data, "train", limit=sample, seed=c.seed, **options))
    except UserError as error:
        message = f"no control for ECR, the training data is not available: {error}"
        print(wrapped(message), file=sys.stderr)
        return None


def evaluate(method, examples, name: str, frequent=None, batch=0, per_question=False, brief=False) -> dict:
    """Everything that eval.py reports of one data set, as JSON would hold it; null where a measure does not
    apply: to a method that does not think, ECR without chains, N_eff without several chains a question.
    Explicit CoT is its own reference, so that its ECR is 1. For hidden-state latents the
    measures read the distribution of the language head, which is not what is fed.

    Each key of N_eff exists twice: `*_distinct` counts only the tokens that differ between a question's
    chains. Two controls: `*_control`, against another question's chains, and `*_one_path`, of latents that
    hold only the chain that the model follows most.

    frequent: token ids, the most frequent first (`frequent_tokens` of training examples), for ECR's control
    per_question: also "questions", see `questions`
    brief: accuracy, #L and speed alone: with a large vocabulary, keeping distributions takes most of the time

    Only a few numbers a question are kept, so memory does not grow with the data set.
    """
    fits, V = fitting(method, examples), method.model.config.vocab_size
    n, ks, batch = len(fits), [k for k in KS if k <= V], batch or method.config.eval_batch
    if not brief:
        batch = min(batch, max(1, int(PROBS_BYTES // (4 * V * max(1, method.config.max_chain)))))
    others, seconds = other_chains(method.tok, fits), 0.0
    values: dict[str, Tensor] = {}  # (n, ..) one number a question, NaN where there is none
    for chosen, out, took in solve_batches(method, fits, batch, keep_probs=not brief):
        seconds, some = seconds + took, [fits[i] for i in chosen]
        right = [is_correct(answer, e.answer) for answer, e in zip(out.answers, some)]
        found = {"correct": torch.tensor(right), "len": out.lengths.cpu()}
        if out.probs is not None and out.probs.shape[1]:
            found["closed"] = out.closed.cpu()
            found |= judge_latents(method, out, some, [others.get(i, []) for i in chosen], ks, frequent)
        for key, value in found.items():
            values.setdefault(key, torch.full((n, *value.shape[1:]), torch.nan).double())
            values[key][chosen] = value.double()

    def mean(key: str) -> float | None:
        value = values[key].nanmean() if key in values else torch.tensor(torch.nan)
        return None if value.isnan() else value.item()

    def per_k(key: str) -> dict[str, float] | None:
        """Averaged over all steps, not over questions: a long chain has more of them."""
        steps = values.get("ecr_steps", torch.zeros(n)).nan_to_num()
        if key not in values or not steps.any():
            return None
        pooled = (values[key] * steps[:, None]).nansum(0) / steps.sum()
        return {str(k): v for k, v in zip(ks, pooled.tolist())}

    interval = list(wilson(int(values["correct"].sum()), n))
    result = {"method": method.config.method, "data": name, "n": n, "skipped": len(examples) - n}
    result |= {"accuracy": mean("correct"), "ci95": interval, "mean_len": mean("len")}
    result |= {"seconds": seconds, "questions_per_second": n / max(seconds, 1e-9)}
    result |= {"ecr": per_k("ecr"), "ecr_control": per_k("ecr_control")}
    result["n_multi"] = int((~values["n_eff"].isnan()).sum()) if "n_eff" in values else 0
    for key in ("closed", *(k + suffix for suffix in SUFFIXES for k in N_EFF), "n_chains", "entropy"):
        result[key] = mean(key)
    steps, right = torch.tensor([len(e.steps) for e in fits]), values["correct"]
    result["by_steps"] = {str(k): float(right[steps == k].mean()) for k in steps.unique().tolist()}
    if per_question:
        result["questions"] = questions(values, ks)
    return result


def questions(values: dict[str, Tensor], ks: list[int]) -> dict:
    """Results by question: "correct" as bits (measures.to_hex) and "len"; "ecr_gain", ECR@10 above its
    control, null without a chain; "n_eff_above", N_eff by the tokens that differ above the larger of its
    controls, of the questions in "n_eff_judged" alone. values (n, ..) of all questions"""
    found = {"correct": to_hex(values["correct"].tolist()), "len": values["len"].long().tolist()}
    rounded = lambda x: [None if v != v else round(v, 2) for v in x.float().tolist()]
    if "ecr_control" in values:
        gain = (values["ecr"] - values["ecr_control"])[:, ks.index(10)]
        found["ecr_gain"] = rounded(gain.where(values["ecr_steps"] > 0, torch.nan))
    if "n_eff_distinct" in values:
        # A mixture has to beat latents that hold one chain, and latents that know nothing, which follow
        # another question's chains as well. Without another question there is no verdict.
        controls = torch.maximum(values["n_eff_one_path_distinct"], values["n_eff_control_distinct"])
        above = values["n_eff_distinct"] - controls
        found["n_eff_judged"] = to_hex((~above.isnan()).tolist())
        found["n_eff_above"] = rounded(above[~above.isnan()])
    return found


# ------------------------------------------------------------------ what the latents of a batch hold

ChainIds = list[list[int]]  # the valid chains of one question, in tokens


def chains_of(tok: Tokenizer, example: Example) -> ChainIds:
    return [tok.encode_chain(" ".join(steps)) for steps in example.chains]


def other_chains(tok: Tokenizer, examples: list[Example]) -> dict[int, ChainIds]:
    """For each question with several valid chains, by its index: the chains of another question with as many
    of them, and as long where possible; none where there is no such question."""
    multi = [i for i, e in enumerate(examples) if len(e.chains) > 1]
    chains = [chains_of(tok, examples[i]) for i in multi]
    count = torch.tensor([len(c) for c in chains])
    partner = partners(torch.tensor([len(c[0]) for c in chains]), count[:, None] == count)
    return {i: chains[p] if p >= 0 else [] for i, p in zip(multi, partner.tolist())}


def pad_chains(chains: list[ChainIds], value: int) -> tuple[Tensor, Tensor]:
    """(B, M, T) ids and (B, M) lengths, 0 where a question has fewer than M chains."""
    M = max(2, *(len(c) for c in chains))
    flat = [chain for c in chains for chain in c + [[]] * (M - len(c))]
    return pad(flat, value).view(len(chains), M, -1), torch.tensor([len(chain) for chain in flat]).view(-1, M)


def judge_latents(method, out: Decoded, examples, others: list[ChainIds], ks, frequent) -> dict[str, Tensor]:
    """The measures of a batch's distributions, (B,) or for ECR (B, len(ks)); of N_eff NaN for questions
    without several chains. others: for each question the chains of another one. frequent: see `evaluate`"""
    tok, ratio = method.tok, method.ratio
    steps, probs = out.lengths.cpu(), out.probs  # (B,), (B, N, V)
    found = {"entropy": mean_entropy(probs, steps)}
    if method.explicit:
        chain, chain_len = out.chain.cpu(), steps
    else:
        reference = [tok.encode_chain(e.chain) for e in examples]
        chain, chain_len = pad(reference, tok.pad), torch.tensor([len(c) for c in reference])

    top = probs.topk(max(ks), dim=-1).indices  # (B, N, max K)
    found["ecr"] = ecr(top, steps, chain, chain_len, ratio, ks)
    found["ecr_steps"] = torch.where(chain_len > 0, steps, 0)  # without a chain: not counted
    if frequent is not None:
        top = frequent[: max(ks)].expand_as(top)
        found["ecr_control"] = ecr(top, steps, chain, chain_len, ratio, ks)

    if multi := [i for i, e in enumerate(examples) if len(e.chains) > 1 and steps[i] > 0]:
        own = pad_chains([chains_of(tok, examples[i]) for i in multi], tok.pad)
        control = pad_chains([others[i] for i in multi], tok.pad)
        for key, value in judge_parallelism(probs[multi], steps[multi], own, control, ratio).items():
            found[key] = torch.full((len(examples),), torch.nan)
            found[key][multi] = value
    return found


def judge_parallelism(
    probs: Tensor, steps: Tensor, own: tuple[Tensor, Tensor], others: tuple[Tensor, Tensor], ratio: int
) -> dict[str, Tensor]:
    """N_eff and its controls for questions with several chains, (B,) each. own, others: (B, M, T) chains and
    their (B, M) lengths; n_eff_control is NaN where there are no others."""
    chains, chain_len = own
    found = {"n_chains": (chain_len > 0).sum(1).float()}
    for suffix in SUFFIXES:
        distinct = suffix == "_distinct"
        weights = chain_weights(probs, steps, *own, ratio, distinct)  # (B, M)
        row, best = torch.arange(len(probs)), weights.argmax(-1)  # the chain that the model follows most
        alone = one_path(probs.shape, steps, chains[row, best], chain_len[row, best], ratio)
        one = parallelism(chain_weights(alone, steps, *own, ratio, distinct))
        control = parallelism(chain_weights(probs, steps, *others, ratio, distinct))
        for key, value in parallelism(weights).items():
            found[key + suffix] = value
        found["n_eff_one_path" + suffix], found["n_eff_control" + suffix] = one["n_eff"], control["n_eff"]
    return found


# ------------------------------------------------------------------ as text


def table(head: list[str], rows: list[list[str]]) -> str:
    """Columns aligned: the first to the left, numbers to the right."""
    width, *widths = [max(map(len, column)) for column in zip(head, *rows)]
    text = ""
    for first, *numbers in (head, *rows):
        cells = [cell.rjust(n) for cell, n in zip(numbers, widths)]
        text += "  ".join([first.ljust(width), *cells]).rstrip() + "\n"
    return text.rstrip("\n")


def show(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return show(value if value is None else 100 * value, 1)


def label(result: dict) -> str:
    """The data set, and CoLaR's speed."""
    return result["data"] + (f" ×{result['speed']}" if "speed" in result else "")


def report(results: list[dict]) -> str:
    """The tables that eval.py prints."""
    rows, ecrs, chains, ks = [], [], [], ("1", "10", "50", "100", "300")
    for r in results:
        row = [label(r), str(r["n"]), percent(r["accuracy"]), "-".join(map(percent, r["ci95"]))]
        row += [show(r["mean_len"], 1), percent(r["closed"]), show(r["entropy"])]
        rows.append([*row, show(r["questions_per_second"], 0)])
        for key, what in (("ecr", ""), ("ecr_control", ", frequent tokens")):
            ecrs.append([label(r) + what, *(show((r[key] or {}).get(k)) for k in ks)])
        for suffix, what in SUFFIXES.items():
            numbers = [show(r[key + suffix]) for key in N_EFF]
            chains.append([label(r) + what, str(r["n_multi"]), show(r["n_chains"], 1), *numbers])
    head = ["data", "n", "acc %", "95 %", "#L", "closed %", "entropy", "q/s"]
    tables = [table(head, rows)]
    if any(r["ecr"] for r in results):
        tables.append(table(["ECR", *("@" + k for k in ks)], ecrs))
    if any(r["n_multi"] for r in results):
        head = ["N_eff", "n", "chains", "1/Σw²", "top-2", "others' chains", "one chain"]
        tables.append(table(head, chains))
    if skipped := [f"{label(r)} {r['skipped']}" for r in results if r["skipped"]]:
        tables.append(f"left out, too long for the context: {', '.join(skipped)}")
    return "\n\n".join(tables)
