"""The tables of results/, made from the data beside them:

    python -m results.table [--check]

Each function named in TABLES makes one table. It is written to results/tables/NAME.md with the function's
docstring, and into every page of PAGES that has two lines for it:

    <!-- begin generated: NAME -->
    <!-- end generated -->

--check writes nothing and fails if a file differs from what would be written. Shares are given in %; several
seeds are given as their mean, with the lowest and the highest where a table says so.
"""

import inspect
import json
import re
import sys
from functools import lru_cache
from pathlib import Path

from minilatent.config import Parser, UserError, run_script
from minilatent.files import replace_file
from minilatent.study.verdicts import SETS, better, cell, estimate

HERE = Path(__file__).parent
PAGES = (
    HERE.parent / "README.md",
    HERE / "README.md",
    HERE / "mini_prosqa" / "README.md",
    HERE / "smollm2" / "README.md",
)
BLOCK = re.compile(r"(?m)^<!-- begin generated: (\w+) -->\n(.*?)^<!-- end generated -->$", re.DOTALL)
NONE = "–"
COLUMNS = " | ".join(SETS)


# ------------------------------------------------------------------ reading and writing cells


def read(name: str) -> list | dict:
    """A .json or .jsonl file of results/."""
    return load(HERE / name)


@lru_cache
def load(path: Path) -> list | dict:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"there is no {path}") from None
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in text.splitlines()]
    return json.loads(text)


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.1f}"


def average(values: list[float]) -> float:
    return sum(values) / len(values)


def spread(shares: list[float]) -> str:
    """The mean in %, and of several seeds the lowest and the highest."""
    if not shares:
        return NONE
    if len(shares) == 1:
        return percent(shares[0])
    return f"{percent(average(shares))} ({percent(min(shares))} to {percent(max(shares))})"


def grid(header: str, rows: list[list[str]]) -> str:
    """A Markdown table. header: `a | b | c`"""
    columns = header.count("|") + 1
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([f"| {header} |", "|---" * columns + "|", *lines])


def accuracies(name: str) -> list[str]:
    """Of a file that eval.py wrote: one cell for each data set."""
    return [percent(result["accuracy"]) for result in read(name)]


def of_row(lines: list[dict], row: str, data: str) -> list[dict]:
    """The lines of rows.jsonl that judge a row on a data set, one for each seed."""
    return [line for line in lines if line["row"] == row and line["data"] == data]


def row_names(lines: list[dict], group: str = "") -> list[str]:
    """The rows judged on all SETS, the best first."""
    names = {line["row"] for line in lines if group in ("", line["group"])}
    scores = {name: average_of(lines, name) for name in names}
    judged = [name for name in names if scores[name] is not None]
    return sorted(judged, key=lambda name: (-scores[name], name))


def average_of(lines: list[dict], row: str, seed: int | None = None) -> float | None:
    """The accuracy of a row, or of one seed of it, averaged over SETS; None where a set is missing."""
    means = []
    for data in SETS:
        judged = of_row(lines, row, data)
        shares = [line["accuracy"] for line in judged if seed in (None, line["seed"])]
        if not shares:
            return None
        means.append(average(shares))
    return average(means)


def seeds_of(lines: list[dict], row: str) -> set[int]:
    return {line["seed"] for line in lines if line["row"] == row}


# ------------------------------------------------------------------ mini


COMPUTE = {"full": "long", "a third": "mini"}  # and the folder whose rows have it


def methods() -> str:
    """Methods on mini

    Accuracy in % on 1,000 questions of each test set; the average ± half of its 95 % bootstrap interval over
    questions and seeds. #L: latents, or tokens of the chain, before the answer. Every row starts from
    mini-base and has the same further training compute, 1.70e14 FLOPs. More columns:
    [long/table.md](../long/table.md).
    """
    lines = better([line for line in read("long/rows.jsonl") if line["group"] == "main"])
    rows = []
    for row in row_names(lines):
        mine = [line for line in lines if line["row"] == row]
        rows.append(
            [
                mine[0]["title"],
                str(len(seeds_of(lines, row))),
                *(percent(average([l["accuracy"] for l in of_row(lines, row, name)])) for name in SETS),
                cell(estimate(lines, row)),
                f"{average([line['mean_len'] for line in mine]):.1f}",
            ]
        )
    return grid(f"method | seeds | {COLUMNS} | average | #L", rows)


def seeds() -> str:
    """The seeds of each row

    The average accuracy in % over the four test sets, seed by seed, of the rows that have several. A
    difference that is smaller than that between the seeds of a row is no finding.
    """
    rows = []
    for compute, folder in COMPUTE.items():
        lines = read(f"{folder}/rows.jsonl")
        for row in row_names(lines):
            if len(seeds_of(lines, row)) > 1:
                title = next(line["title"] for line in lines if line["row"] == row)
                shares = [average_of(lines, row, seed) for seed in (0, 1, 2)]
                rows.append([compute, title, *map(percent, shares)])
    return grid("compute | row | seed 0 | seed 1 | seed 2", rows)


# A row of mini/rows.jsonl, and the rows that change one thing in it.
ABLATIONS = {
    "latent_sft_2": ("no_ltim", "no_ltsum", "hidden", "uniform", "gumbel", "k1", "k5", "k50", "adaptive"),
    "latent_sft_4": ("no_ltim", "no_ltsum", "hidden", "adaptive"),
    "latent_sft_8_step": ("latent_sft_8_adaptive",),
    "latent_sft_half": ("latent_rl",),
    "colar_2": ("colar_mean_2", "colar_det_2", "colar_no_labels_2", "colar_nll_2"),
    "colar_5": ("colar_mean_5", "colar_det_5", "colar_no_labels_5", "colar_nll_5"),
    "colar_nll_half_2": ("colar_rl", "colar_rl_no_average", "colar_nll_more_2"),
    "no_cot": ("no_cot_scratch",),
    "pause": ("pause_scratch", "coconut", "codi"),
}


def ablations() -> str:
    """Ablations on mini

    A row in bold is followed by rows that change one thing in it. Average accuracy in % over the four test
    sets, the paired difference from the row in bold, in points, with its 95 % interval, and the difference on
    each set. Differences are over the seeds that both rows have (second column). With one seed, the interval
    is over questions only, and seeds differ by more than that: see [seeds.md](seeds.md).
    """
    lines, rows = read("mini/rows.jsonl"), []
    titles = {line["row"]: line["title"] for line in lines}
    for reference, changed in ABLATIONS.items():
        if reference not in titles:
            continue
        own = [str(len(seeds_of(lines, reference))), percent(average_of(lines, reference))]
        rows.append([f"**{titles[reference]}**", *own, *[""] * (2 + len(SETS))])
        for row in changed:
            row = row if row in titles else f"{reference}_{row}"
            if row not in titles:
                continue
            mean, low, high, shared, _ = estimate(lines, row, against=reference)
            both = seeds_of(lines, row) & seeds_of(lines, reference)
            differences = []
            for data in SETS:
                shares = {
                    (line["row"], line["seed"]): line["accuracy"]
                    for name in (row, reference)
                    for line in of_row(lines, name, data)
                }
                differences.append(average([shares[row, seed] - shares[reference, seed] for seed in both]))
            rows.append(
                [
                    titles[row],
                    str(shared),
                    percent(average_of(lines, row)),
                    f"{100 * mean:+.1f}",
                    f"{100 * low:+.1f} to {100 * high:+.1f}",
                    *(f"{100 * difference:+.1f}" for difference in differences),
                ]
            )
    return grid(f"row | seeds | average | difference | 95 % | {COLUMNS}", rows)


REPLACED = {  # an intervention and what is shown of it
    ("noise", "accuracy"): "noise",
    ("swap", "accuracy"): "another question's",
    ("swap", "follows_donor"): "answers that question",
    ("zeros", "accuracy"): "zeros",
    ("mean", "accuracy"): "their mean",
    ("shuffle", "accuracy"): "shuffled",
    ("truncate", "accuracy"): "first half",
    ("top1", "accuracy"): "likeliest token",
}


def interventions() -> str:
    """What happens when latents are replaced

    Accuracy in % on mini with the model's own latents, and with others in their place: noise of the same
    norm, another question's, zeros, the mean of all latents, their own shuffled, only their first half,
    and the embedding of the likeliest token alone instead of the mixture. `answers that question`: how often
    the answer becomes that of the question whose latents they are. In brackets: the lowest and the highest
    seed. A chain in words is replaced in the same way, token by token. All pause tokens are one embedding.
    """
    rows = []
    for compute, folder in COMPUTE.items():
        lines = read(f"{folder}/rows.jsonl")
        for row in row_names(lines, "main"):
            judged = [line for line in of_row(lines, row, "mini") if line.get("interventions")]
            if not judged:
                continue
            cells = [compute, judged[0]["title"], spread([line["accuracy"] for line in judged])]
            for name, key in REPLACED:
                found = [line["interventions"].get(name) for line in judged]
                cells.append(spread([result[key] for result in found if result]))
            rows.append(cells)
    return grid("compute | row | own | " + " | ".join(REPLACED.values()), rows)


def parallel() -> str:
    """How much a latent holds, and how many chains at once

    ECR@10, the effective compression rate: how many tokens of a latent's segment are among the 10 likeliest
    entries of its distribution; its control offers the 10 most frequent tokens everywhere. N_eff: the
    effective number of a question's valid chains that the latents follow, 1 / Σ w² for the shares w of the
    chains, counted by the tokens in which the chains differ. Its controls are latents that hold one chain and
    nothing else, and the same latents against another question's chains. On mini; N_eff over the questions
    that have several chains. Means over seeds.
    """
    keys = ("n_eff_distinct", "n_eff_one_path_distinct", "n_eff_control_distinct")
    rows = []
    for compute, folder in COMPUTE.items():
        lines = read(f"{folder}/rows.jsonl")
        for row in row_names(lines, "main"):
            judged = of_row(lines, row, "mini")
            if judged[0]["n_eff_distinct"] is None:
                continue
            compression = [average([line[key]["10"] for line in judged]) for key in ("ecr", "ecr_control")]
            chains = [average([line[key] for line in judged]) for key in keys]
            cells = [f"{value:.2f}" for value in compression + chains]
            rows.append([compute, judged[0]["title"], str(len(judged)), *cells])
    return grid("compute | row | seeds | ECR@10 | control | N_eff | one chain | another's chains", rows)


def learning_rates() -> str:
    """The trials that chose each method's learning rate

    Validation accuracy in % on mini after a quarter of the steps, one seed, for a third of the method's own
    learning rate, for that rate, and for three times it. The best one trains the method's row of `mini/`.
    """
    by_method: dict[str, dict[float, float]] = {}
    for trial in read("mini/trials.jsonl"):
        by_method.setdefault(trial["row"].partition("-lr")[0], {})[trial["lr"]] = trial["val_accuracy"]
    rows = []
    for method, scores in by_method.items():
        best = max(scores, key=scores.get)
        cells = [f"{lr:.2g}: {percent(scores[lr])}" for lr in sorted(scores)]
        rows.append([method, *cells, f"{best:.2g}"])
    return grid("row | a third | its own | three times | chosen", rows)


SCRATCH = {
    "mini-base as committed: CoT-SFT, 8,000 steps with AdamW": "base/test.json",
    "mini-base trained anew: CoT-SFT, 4,000 steps with Muon": "base/rebuilt.json",
    "CoT-SFT from scratch, 60,000 examples, 4,000 steps": "long/cot_scratch_60k.json",
    "No-CoT from scratch, 60,000 examples, 15,043 steps": "long/no_cot_scratch_60k.json",
    "No-CoT from scratch, 300,000 examples, 15,043 steps": "long/no_cot_scratch.json",
}


def scratch() -> str:
    """With and without a chain, from random weights

    Accuracy in % on 1,000 questions of each test set; `mini_long` has five and six steps. One seed each.
    No-CoT's 15,043 steps cost what the base and the main job cost together; CoT-SFT's 4,000 cost less than
    half of that.
    """
    rows = []
    for title, name in SCRATCH.items():
        by_set = {result["data"]: percent(result["accuracy"]) for result in read(name)}
        rows.append([title, *(by_set.get(data, NONE) for data in (*SETS, "mini_long"))])
    return grid(f"model | {COLUMNS} | mini_long", rows)


def where_lost() -> str:
    """Where a chain of latents goes wrong

    Accuracy in % on mini when the first m latents are those of stage 1's encoder, which reads the true chain,
    and the model continues by itself. Accuracy rises at the latents that the model predicts wrongly. At r = 2
    a step of the problem takes four latents, of which the third holds its result; at r = 4 it takes two. Made
    by `python -m results.where_lost`.
    """
    files = {
        "Latent-SFT(2), seed 2": "mini/lost_2.json",
        "Latent-SFT(2), hidden states, seed 0": "mini/lost_2_hidden.json",
        "Latent-SFT(4), hidden states, seed 0": "mini/lost_4_hidden.json",
    }
    curves = {title: read(name)["accuracy"] for title, name in files.items()}
    rows = []
    for m in range(max(map(len, curves.values()))):
        rows.append([str(m), *(percent(curve[m]) if m < len(curve) else "" for curve in curves.values())])
    return grid("latents given | " + " | ".join(curves), rows)


# ------------------------------------------------------------------ CoLaR


def speeds() -> str:
    """One CoLaR model at every speed

    Accuracy in % on 1,000 questions of mini, with #L in brackets, when the prompt asks for the speed c.
    Speeds 6 and 8 were never trained. The preset trains 2,200 steps (`python train.py --method colar`), the
    other rows 3,000. `another question's answer`: how often the answer becomes that of another question when
    its latents are used.
    """
    rows, asked = [], []
    for title, name in (("preset, 2,200 steps", "preset"), ("3,000 steps", "long")):
        results = [read(f"colar/{name}-seed{seed}.json") for seed in (0, 1, 2)]
        asked = [f"c = {result['speed']}" for result in results[0]]
        by_speed = list(zip(*results))
        choices = {"mean": by_speed}
        for seed in (0, 1, 2):
            choices[f"seed {seed}"] = [(results[seed][i],) for i in range(len(asked))]
        for who, chosen in choices.items():
            cells = []
            for some in chosen:
                length = average([result["mean_len"] for result in some])
                cells.append(f"{percent(average([result['accuracy'] for result in some]))} ({length:.1f})")
            rows.append([title, who, *cells])
        follows = []
        for some in by_speed:
            shares = [result["interventions"]["swap"]["follows_donor"] for result in some]
            follows.append(percent(average(shares)))
        rows.append([title, "another question's answer, mean", *follows])
    return grid("training | | " + " | ".join(asked), rows)


def rl() -> str:
    """RL for CoLaR

    Accuracy in % on 1,000 questions of mini: decoded greedily, and with latents and end of the chain sampled,
    as in RL. One seed. Everything starts from the NLL model of the first row.
    """
    runs = {
        "the NLL model": ("nll", "nll_c5"),
        "trained further by NLL, 2,000 steps, 12 minutes": ("nll_more", "nll_more_c5"),
        "RL": ("rl", "rl_c5"),
        "RL without averaging": ("rl_no_average", ""),
    }
    rows = []
    for title, (at_2, at_5) in runs.items():
        greedy, sampled = read(f"colar/{at_2}.json")[0], read(f"colar/{at_2}_sampled.json")[0]
        fast = percent(read(f"colar/{at_5}.json")[0]["accuracy"]) if at_5 else NONE
        cells = [percent(greedy["accuracy"]), f"{greedy['mean_len']:.1f}", percent(sampled["accuracy"])]
        rows.append([title, *cells, fast])
    return grid("model | c = 2, greedy | #L | c = 2, sampled | c = 5, greedy", rows)


def rl_signal() -> str:
    """How much of RL's gradient is signal

    The squared length of the mean gradient of one batch of 256 samples, as a share of its variance, ± a
    jackknife's standard error, for each part of the objective. `no gradient`: groups of samples that are all
    right or all wrong. CoLaR samples from a Gaussian whose σ is at least the floor; Latent-RL adds Gumbel
    noise. Made by `python -m results.rl_signal`.
    """
    rows = []
    for result in read("colar/rl_signal.json") + read("colar/latent_rl_signal.json"):
        title = "Latent-RL"
        if result["method"] == "colar_rl":
            title = f"CoLaR, c = {result['speed']}, σ at least {result['sigma_floor']}"
        parts = [result[name] for name in ("latents", "decisions", "answer")]
        signal = [f"{part['signal']:.4f} ± {part['error']:.4f}" for part in parts]
        rows.append([title, percent(result["accuracy"]), percent(result["silent"]), *signal])
    return grid("noise | samples right | no gradient | latents | end of chain | answer", rows)


# ------------------------------------------------------------------ other tasks


PROSQA = {
    "CoT-SFT, from which all others start": ("cot_sft", "1,500"),
    "No-CoT": ("no_cot", "800"),
    "Pause tokens, 6": ("pause", "800"),
    "CODI, 6 latents": ("codi", "800"),
    "Coconut, 6 latents": ("coconut", "800"),
    "Coconut, a longer curriculum": ("coconut_long", "1,800"),
    "Latent-SFT(2)": ("latent_sft", "250 + 800"),
}


def prosqa() -> str:
    """mini_prosqa

    Accuracy in % on 1,000 test problems; guessing has 50. With noise of the same norm, and with another
    problem's latents in place of the model's own; in brackets, how often the answer stays the same. One seed.
    """
    rows = []
    for title, (name, steps) in PROSQA.items():
        result = read(f"mini_prosqa/{name}.json")[0]
        minutes = read(f"mini_prosqa/{name}.jsonl")[-1]["seconds"] / 60
        replaced = [NONE] * 3
        if found := result.get("interventions"):
            noise, swap = found["noise"], found["swap"]
            replaced = [
                f"{percent(noise['accuracy'])} ({percent(noise['unchanged'])})",
                f"{percent(swap['accuracy'])} ({percent(swap['unchanged'])})",
                percent(found["shuffle"]["accuracy"]),
            ]
        length = f"{result['mean_len']:.1f}"
        rows.append([title, steps, percent(result["accuracy"]), length, *replaced, f"{minutes:.0f}"])
    return grid("run | steps | accuracy | #L | noise | another problem's | shuffled | minutes", rows)


GSM8K = {
    "CoT-SFT, from which all others start": ("cot_sft", "440"),
    "CoT-SFT, trained further": ("cot_sft_more", "991"),
    "No-CoT": ("no_cot", "991"),
    "Latent-SFT(2)": ("latent_sft_r2", "300 + 391"),
    "Latent-SFT(4)": ("latent_sft_r4", "300 + 391"),
    "Latent-SFT(2), no encoder": ("latent_sft_r2_uniform", "991"),
    "CoLaR-2": ("colar_c2", "991"),
    "CoLaR-5 (the same run)": ("colar_c5", "991"),
}
FAMILY = "GSM8K | MultiArith | SVAMP | GSM-Hard"


def gsm8k() -> str:
    """SmolLM2-135M on GSM8K

    Accuracy in % on the whole test sets, 1,319, 600, 1,000 and 1,319 questions, after training on GSM8K's
    training questions in steps of 32 questions; #L of GSM8K's chains. A step of stage 1 trains two models and
    counts as two: all rows but the first have the same further training. One seed.
    """
    rows = []
    for title, (name, steps) in GSM8K.items():
        length = read(f"smollm2/{name}.json")[0]["mean_len"]
        rows.append([title, steps, *accuracies(f"smollm2/{name}.json"), f"{length:.1f}"])
    return grid(f"run | steps | {FAMILY} | #L", rows)


def gsm8k_cpu() -> str:
    """SmolLM2-135M on GSM8K, trained on a CPU

    Accuracy in %, with #L in brackets, on the first 400 questions of GSM8K's test set (Latent-SFT: 300) and
    the first 300 of the others. Steps of 8 questions. Latent-SFT is not trained to its end.
    """
    sets = {
        "CoT-SFT, one epoch of 870 steps": ("cot_sft", ("gsm8k", "multiarith", "svamp", "gsm_hard")),
        "Latent-SFT(2) from it, 90 + 340 steps": ("latent_sft_r2", ("gsm8k", "multiarith")),
    }
    rows = []
    for title, (name, judged) in sets.items():
        results = [read(f"smollm2/cpu/{name}_{data}.json")[0] for data in judged]
        cells = [f"{percent(result['accuracy'])} ({result['mean_len']:.1f})" for result in results]
        rows.append([title, *cells, *[NONE] * (4 - len(cells))])
    return grid(f"run | {FAMILY}", rows)


# ------------------------------------------------------------------ speed


def machines() -> str:
    """How long `python train.py --method latent_sft` takes

    Whole runs of the preset, validation and test included; the last row is a short run of all stages. Memory
    is the peak of the process.
    """
    rows = []
    for run in read("long/main_job.json"):
        right = percent(run.get("mini_accuracy"))
        minutes, memory = run["wall_seconds"] / 60, run["peak_resident_bytes"] / 1e9
        rows.append([run["command"], run["hardware"], f"{minutes:.0f}", f"{memory:.2f}", right])
    return grid("command | machine | minutes | GB | accuracy on mini", rows)


def decoding() -> str:
    """Decoding in a batch with a cache, against one question at a time without

    Questions a second, on 256 questions of mini, 2 threads, three rounds, which differ up to twofold. Made by
    `python -m results.decode_speed`.
    """
    rows = []
    for title, name in (("Latent-SFT(2)", ""), ("CoT-SFT", "_cot")):
        for dtype in ("", "_bf16"):
            found = read(f"long/decode_speed{name}{dtype}.json")
            rounds = found["questions_per_second"]
            per_second = [" ".join(f"{r[how]:.0f}" for r in rounds) for how in ("batched", "naive")]
            ratio = " ".join(f"{r['ratio']:.1f}" for r in rounds)
            rows.append([title, found["dtype"], *per_second, ratio, str(found["rows_that_differ"])])
    return grid("model | precision | batched | one by one | times faster | rows that differ", rows)


def benchmark() -> str:
    """Speed against transformers

    SmolLM2-135M, their time divided by ours: above 1 we are faster. Memory: what loading takes, as a multiple
    of the model's size. The last row is the training step's share of the H200's 989 TFLOP/s (MFU).
    """
    columns = {
        "CPU, float32": "fp32",
        "CPU, bfloat16": "bf16",
        "H200, 8 rows": "h200_8",
        "H200, 128 rows": "h200_128",
    }
    found = [read(f"smollm2/benchmark_{name}.json") for name in columns.values()]

    def ratios(part: str) -> list[str]:
        return [f"{result[part]['ratio']:.2f}" if part in result else NONE for result in found]

    memory, mfu = [], []
    for result in found:
        load = result.get("load", {})
        grows = [load.get("memory_growth"), load.get("memory_growth_theirs")]
        memory.append(NONE if None in grows else f"{grows[0]:.2f} (theirs {grows[1]:.2f})")
        mfu.append(percent(result["train_step"].get("mfu")))
    rows = [
        ["loading into float32", *ratios("load")],
        ["memory that loading takes", *memory],
        ["tokenising", *ratios("tokenise")],
        ["a training step of CoT-SFT", *ratios("train_step")],
        ["greedy decoding", *ratios("decode")],
        ["MFU of the training step, %", *mfu],
    ]
    return grid(" | ".join(["part", *columns]), rows)


# ------------------------------------------------------------------ files


TABLES = {
    table.__name__: table
    for table in (
        methods,
        seeds,
        ablations,
        interventions,
        parallel,
        learning_rates,
        scratch,
        where_lost,
        speeds,
        rl,
        rl_signal,
        prosqa,
        gsm8k,
        gsm8k_cpu,
        machines,
        decoding,
        benchmark,
    )
}


def table_page(name: str) -> str:
    """results/tables/NAME.md: the docstring's first line as its heading, then the table, then the rest."""
    title, _, about = inspect.getdoc(TABLES[name]).partition("\n\n")
    return f"# {title}\n\n{TABLES[name]()}\n\n{about}\n\nWritten by `python -m results.table`.\n"


def fill(text: str, page: Path) -> str:
    """A page with the table in each of its blocks."""

    def block(found: re.Match) -> str:
        name = found[1]
        if name not in TABLES:
            raise UserError(f"{page}: there is no table '{name}' in results/table.py")
        return f"<!-- begin generated: {name} -->\n{TABLES[name]()}\n<!-- end generated -->"

    filled = BLOCK.sub(block, text)
    for mark in ("begin", "end"):
        if len(re.findall(f"<!-- {mark} generated", text)) != len(BLOCK.findall(text)):
            raise UserError(f"{page}: a generated block has no begin or no end on a line of its own")
    return filled


def stale() -> dict[Path, str]:
    """What each file should hold, of those that do not."""
    wanted = {HERE / "tables" / f"{name}.md": table_page(name) for name in TABLES}
    for page in PAGES:
        wanted[page] = fill(page.read_text(encoding="utf-8"), page)
    return {
        path: text
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    }


def main(argv: list[str]) -> None:
    parser = Parser(prog="python -m results.table", description="Write the tables of results/.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; fail if a table is not up to date"
    )
    args = parser.parse_args(argv)
    changed = stale()
    if changed and args.check:
        names = ", ".join(path.relative_to(HERE.parent).as_posix() for path in changed)
        raise UserError(f"not up to date: {names}; python -m results.table writes them anew")
    for path, text in changed.items():
        replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))  # noqa: B023
    print(f"{len(TABLES)} tables, {len(PAGES)} pages, {len(changed)} files written", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
