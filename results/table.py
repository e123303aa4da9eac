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
import itertools
import json
import re
import sys
from functools import lru_cache
from pathlib import Path

from minilatent.config import Parser, UserError, run_script
from minilatent.files import replace_file
from minilatent.study.measures import from_hex

from .comparison.entries import ROWS

HERE = Path(__file__).parent
PAGES = (HERE.parent / "README.md", HERE / "README.md", HERE / "smollm2" / "README.md")
BLOCK = re.compile(r"(?m)^<!-- begin generated: (\w+) -->\n(.*?)^<!-- end generated -->$", re.DOTALL)
NONE = "–"


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


def grid(header: str, rows: list[list[str]]) -> str:
    """A Markdown table. header: `a | b | c`"""
    columns = header.count("|") + 1
    lines = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([f"| {header} |", "|---" * columns + "|", *lines])


def accuracies(name: str) -> list[str]:
    """Of a file that eval.py wrote: one cell for each data set."""
    return [percent(result["accuracy"]) for result in read(name)]


# ------------------------------------------------------------------ mini


SETS = ("mini", "mini_hard", "mini_svamp", "mini_multiarith", "mini_long")
MOST = 6  # operations
Results = dict[str, list[dict]]  # for each data set: one result for each seed


def rows_of(*groups: str, world: str = "mini") -> dict[str, Results]:
    """The rows of WORLD/rows.jsonl, which `python -m results.comparison` writes, by their titles, in
    the order of its entries: those of the groups (main, ablation), trained with the common budget."""
    lines = read(f"{world}/rows.jsonl") if (HERE / world / "rows.jsonl").exists() else []
    found: dict[str, Results] = {}
    for row in ROWS:
        for line in lines:
            if line["row"] == row and line["group"] in groups:
                found.setdefault(line["title"], {}).setdefault(line["data"], []).append(line)
    return found


def mean_of(results: list[dict], *keys: str) -> float | None:
    """The average of one entry over seeds."""
    values = []
    for result in results:
        for key in keys:
            result = result[key]
        values.append(result)
    return average(values) if values else None


def accuracy_table(*groups: str) -> str:
    rows = []
    for title, found in rows_of(*groups).items():
        cells = [percent(mean_of(found.get(name, []), "accuracy")) for name in SETS]
        compute, length = mean_of(found["mini"], "flops") / 1e13, mean_of(found["mini"], "mean_len")
        rows.append([title, str(len(found["mini"])), f"{compute:.1f}", *cells, f"{length:.1f}"])
    return grid("method | seeds | compute | " + " | ".join(SETS) + " | #L", rows)


def methods() -> str:
    """Methods on mini

    Accuracy in % on 1,334 questions of each test set, and #L on mini: latents, or tokens of the chain, before
    the answer. `mini_long` has seven and eight operations, more than training shows. Compute is that of the
    training, in 10¹³ FLOPs. All but the first row start from mini-base, whose compute comes on top, or from
    random weights where the row says so (then their compute includes as much as mini-base's).
    """
    return accuracy_table("main")


def ablations() -> str:
    """Parts of the methods

    As the table of the methods: the same compute, with one thing changed; and what RL starts from.
    """
    return accuracy_table("ablation")


def operations() -> str:
    """Accuracy by the number of operations

    Accuracy in % on mini's test questions with 1 to 6 operations.
    """
    rows = []
    for title, found in rows_of("main", "ablation").items():
        each = [mean_of(found["mini"], "by_steps", str(n)) for n in range(1, MOST + 1)]
        rows.append([title, *map(percent, each)])
    return grid("method | " + " | ".join(str(n) for n in range(1, MOST + 1)), rows)


def interventions() -> str:
    """What happens when latents are replaced

    Accuracy in % on mini with the model's own latents, and with others in their place: noise of the same norm
    or another question's. `answers that question`: how often the answer becomes that of the question whose
    latents they are. A chain in words is replaced in the same way, token by token.
    """
    shown = [
        ("accuracy",),
        ("interventions", "noise", "accuracy"),
        ("interventions", "swap", "accuracy"),
        ("interventions", "swap", "follows_donor"),
    ]
    rows = []
    for title, found in rows_of("main", "ablation").items():
        results = [result for result in found["mini"] if result.get("interventions")]
        if results:
            rows.append([title, *(percent(mean_of(results, *keys)) for keys in shown)])
    return grid("method | own | noise | another question's | answers that question", rows)


def paths() -> str:
    """Do latents hold several chains?

    N_eff of mini's test questions with several valid chains, counted by the tokens in which these differ.
    Latents hold several chains if it is above both controls: latents of one chain alone, and the chains of
    another question. Latents that know nothing come near the number of chains.
    """
    keys = ("n_chains", "n_eff_distinct", "n_eff_one_path_distinct", "n_eff_control_distinct")
    rows = []
    for title, found in rows_of("main", "ablation").items():
        results = [result for result in found["mini"] if result.get("n_eff_distinct") is not None]
        if results:
            rows.append([title, *(f"{mean_of(results, key):.2f}" for key in keys)])
    return grid("method | valid chains | N_eff | one chain alone | another question's chains", rows)


def right_where(results: list[dict], marks: list[bool], wanted: bool) -> float | None:
    """The share of right answers to the questions whose mark is `wanted`."""
    hits = []
    for result in results:
        right = from_hex(result["questions"]["correct"], result["n"])
        hits += [r for r, mark in zip(right, marks) if mark == wanted]
    return average(hits) if hits else None


def mini_prosqa() -> str:
    """mini_prosqa: to which of two people does a path lead?

    Accuracy in %, where a guess has 50: on all test questions, on those with one valid chain, on those with
    several; then with noise or another question's latents in the place of the model's own. N_eff as in the
    table of mini's paths. All start from the first row, a CoT-SFT model of these problems.
    """
    found = {t: r["mini_prosqa"] for t, r in rows_of("main", "ablation", world="mini_prosqa").items()}
    several = []  # whether a question has several valid chains: rows that think say so, and all share them
    for result in itertools.chain(*found.values()):
        if marks := result["questions"].get("n_eff_judged"):
            several = from_hex(marks, result["n"])
    rows = []
    for title, results in found.items():
        cells = [percent(mean_of(results, "accuracy"))]
        cells += [percent(right_where(results, several, many)) for many in (False, True)]
        if all(result.get("interventions") for result in results):
            cells += [percent(mean_of(results, "interventions", n, "accuracy")) for n in ("noise", "swap")]
            keys = ("n_eff_distinct", "n_eff_one_path_distinct", "n_eff_control_distinct")
            cells += [f"{mean_of(results, key):.2f}" for key in keys]
        else:
            cells += [NONE] * 5
        rows.append([title, str(len(results)), *cells, f"{mean_of(results, 'mean_len'):.1f}"])
    head = "method | seeds | accuracy | one chain | several | noise | another question's | "
    return grid(head + "N_eff | one chain alone | another question's chains | #L", rows)


def speeds() -> str:
    """One CoLaR model at every speed

    Accuracy in % on 1,000 questions of mini when the prompt asks for the speed c, and #L. A step has six
    tokens; up to c = 3 no block holds both an operand and the result of a step.
    """
    seeds = [load(path) for path in sorted((HERE / "mini").glob("colar-seed[0-9].json"))]
    if not seeds:
        return ""
    by_speed = list(zip(*seeds))
    header = "seeds | | " + " | ".join(f"c = {same[0]['speed']}" for same in by_speed)
    rows = [[str(len(seeds)), "accuracy", *(percent(mean_of(same, "accuracy")) for same in by_speed)]]
    rows.append(["", "#L", *(f"{mean_of(same, 'mean_len'):.1f}" for same in by_speed)])
    return grid(header, rows)


GUESSERS = (
    "a constant",
    "given the last two sentences",
    "given the last two operations",
    "a linear function",
)


def guesses() -> str:
    """How often mini's answers are right by guessing

    Accuracy in % on 3,000 validation problems, over all and by the number of operations: the most frequent
    answer of 40,000 training problems, overall or among those that agree in what the guesser sees, and the
    best linear function of the operations and numbers, rounded. Made by `python -m results.guesses`.
    """
    found = read("mini/guesses.json")
    rows = [[name, *map(percent, found[name].values())] for name in GUESSERS]
    return grid("guess | all | " + " | ".join(str(n) for n in range(1, MOST + 1)), rows)


# ------------------------------------------------------------------ other tasks


GSM8K = {
    "CoT-SFT, from which all others start": ("cot_sft", "440"),
    "CoT-SFT, trained further": ("cot_sft_more", "991"),
    "No-CoT": ("no_cot", "991"),
    "Latent-SFT(2)": ("latent_sft_r2", "300 + 391"),
    "Latent-SFT(4)": ("latent_sft_r4", "300 + 391"),
    "Latent-SFT(2), no encoder": ("latent_sft_r2_uniform", "991"),
    "CoLaR-2, which does not follow the speed yet": ("colar_c2", "991"),
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


REDRAWN = {  # files of gsm8k/: NAME-seedS.json, and the speed
    "CoT-SFT": ("cot_sft", None),
    "No-CoT": ("no_cot", None),
    "Latent-SFT(2)": ("latent_sft_2", None),
    "Latent-SFT(4)": ("latent_sft_4", None),
    "Latent-SFT(2), no encoder": ("latent_sft_2_uniform", None),
    "CoLaR-2": ("colar", 2),
    "CoLaR-5": ("colar", 5),
    "Coconut": ("coconut", None),
}
SIZES = {"7,000": "_7000", "30,000": "_30000", "120,000": "", "400,000": "_400000"}  # examples
CURVED = ("CoT-SFT", "No-CoT", "Latent-SFT(2)")


def judged(run: str, folder: str) -> Results:
    """What eval.py wrote into FOLDER/RUN-seedS.json; {} if there is no such run."""
    found: Results = {}
    for path in sorted((HERE / folder).glob(f"{run}-seed[0-9].json")):
        for result in load(path):
            found.setdefault(result["data"], []).append(result)
    return found


def gsm8k_redrawn() -> str:
    """SmolLM2-135M on redrawn GSM8K

    Accuracy in % on the whole test sets, with the lowest and the highest of several seeds on GSM8K's; #L of
    its chains; and, on some of its questions, how often the answer becomes that of the question whose latents
    they are. Made by `python -m results.gsm8k`.
    """
    rows = []
    for title, (run, speed) in REDRAWN.items():
        found = judged(run, "gsm8k")
        found = {name: [r for r in results if r.get("speed") == speed] for name, results in found.items()}
        if found:
            cells = [percent(mean_of(results, "accuracy")) for results in found.values()]
            seeds = [result["accuracy"] for result in found["gsm8k"]]
            if len(seeds) > 1:
                cells[0] += f" ({percent(min(seeds))} to {percent(max(seeds))})"
            moved = [r for r in found["gsm8k"] if "interventions" in r]
            cells += [f"{mean_of(found['gsm8k'], 'mean_len'):.1f}"]
            cells += [percent(mean_of(moved, "interventions", "swap", "follows_donor"))]
            rows.append([title, str(len(seeds)), *cells])
    return grid(f"run | seeds | {FAMILY} | #L | follows another's latents", rows) if rows else ""


def gsm8k_curve() -> str:
    """Redrawn GSM8K: how many examples are needed

    Accuracy in % on GSM8K's test set after the same number of steps on that many redrawn examples.
    """
    rows = []
    for title in CURVED:
        found = [judged(REDRAWN[title][0] + size, "gsm8k").get("gsm8k", []) for size in SIZES.values()]
        if any(found):
            rows.append([title, *(percent(mean_of(results, "accuracy")) for results in found)])
    return grid("run | " + " | ".join(SIZES), rows) if rows else ""


def gsm8k_curve_cpu() -> str:
    """Redrawn GSM8K: the beginning of the curve, on a CPU

    Accuracy in % on GSM8K's test set, with #L in brackets. CoT-SFT has one pass over the examples, and each
    other method after it the same number of steps. Made by `python -m results.gsm8k --cpu`.
    """
    rows, sizes = [], list(SIZES)[:2]
    for title in CURVED:
        found = [judged(REDRAWN[title][0] + SIZES[n], "gsm8k_cpu").get("gsm8k", []) for n in sizes]
        cells = [f"{percent(r[0]['accuracy'])} ({r[0]['mean_len']:.1f})" if r else NONE for r in found]
        if any(found):
            rows.append([title, *cells])
    return grid("run | " + " | ".join(sizes), rows) if rows else ""


# ------------------------------------------------------------------ speed


PEAK = 989  # TFLOP/s of an H200 in bfloat16, dense


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
        on_gpu = result["device"] == "cuda"
        mfu.append(percent(result["train_step"]["tflops"] / PEAK) if on_gpu else NONE)
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
        *(methods, ablations, operations, interventions, paths, mini_prosqa, speeds, guesses),
        *(gsm8k, gsm8k_cpu, benchmark, gsm8k_redrawn, gsm8k_curve, gsm8k_curve_cpu),
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
