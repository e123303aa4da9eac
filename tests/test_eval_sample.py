"""eval.py and sample.py from the command line to the files, on tiny models with random weights."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import PNG, ROOT, chatty, save, script, the_message
from pytest import approx

from minilatent import tasks
from minilatent.config import UserError
from minilatent.decode import Decoded
from minilatent.evaluate import fitting, solve_all
from minilatent.study.evaluation import evaluate, frequent_tokens, other_chains, report
from minilatent.study.interventions import report_interventions
from minilatent.study.measures import from_hex
from minilatent.study.trace import describe, trace, visible
from results import speeds

# ------------------------------------------------------------------ evaluate


@pytest.mark.parametrize("name", ["latent_sft", "cot_sft"])
def test_the_batch_size_changes_no_number(tok, examples, name):
    method, frequent = chatty(tok, name).double(), frequent_tokens(tok, examples)  # no near-ties
    whole, parts = (evaluate(method, examples, "mini", frequent=frequent, batch=b) for b in (40, 7))
    for key in "n accuracy mean_len closed ecr ecr_control entropy n_eff n_eff_control top2".split():
        assert whole[key] == approx(parts[key], rel=1e-4), key
    assert json.loads(json.dumps(whole)) == whole


def test_evaluate_agrees_with_solve_all_and_has_the_contracts_keys(tok, examples, monkeypatch):
    method, kept = chatty(tok, "latent_sft"), []
    solve, simple = method.solve, solve_all(method, examples)

    def watched(questions, **options):
        kept.append(options["keep_probs"])
        return solve(questions, **options)

    monkeypatch.setattr(method, "solve", watched)
    whole, brief = evaluate(method, examples, "mini"), evaluate(method, examples, "mini", brief=True)
    contract = {"method", "data", "n", "accuracy", "ci95", "mean_len", "seconds", "questions_per_second"}
    assert contract | {"ecr", "n_eff", "top2"} <= whole.keys() == brief.keys()
    for key in ("n", "accuracy", "ci95", "mean_len"):
        assert whole[key] == brief[key] == simple[key]
    assert 0 < whole["mean_len"] <= 12 and whole["n_multi"] > 0 and "10" in whole["ecr"]
    half = len(kept) // 2  # a brief one keeps no distribution
    assert kept == [True] * half + [False] * half
    assert brief["ecr"] is None and brief["n_eff"] is None and brief["entropy"] is None
    assert "ECR" not in report([brief])


@pytest.mark.parametrize("kind, gains", [("all alike", False), ("one chain", False), ("own chains", True)])
def test_n_eff_is_gained_by_a_mixture_of_the_questions_own_chains_and_by_nothing_else(
    tok, monkeypatch, kind, gains
):
    """Latents that know nothing follow all chains alike, another question's too; latents of one chain follow
    no other. The gain is small even for a perfect mixture: its chains share most of their tokens, and what is
    not theirs is followed by chance."""
    method, examples = chatty(tok, "latent_sft"), tasks.load("mini", "test", limit=120)
    by_question = {e.question: e for e in examples}

    def solve(questions, **options):
        chains = [[tok.encode_chain(" ".join(c)) for c in by_question[q].chains] for q in questions]
        chains = [c[:1] if kind == "one chain" else c for c in chains]
        steps, V = torch.tensor([-(-len(c[0]) // 2) for c in chains]), tok.vocab_size
        probs = torch.full((len(questions), int(steps.max()), V), 1.0 / V)
        for b, own in enumerate(chains if kind != "all alike" else []):
            probs[b] = 1e-6
            for chain in own:
                for t, token in enumerate(chain):
                    probs[b, t // 2, token] += 1 / (2 * len(own))
            probs[b] /= probs[b].sum(-1, keepdim=True)
        n, tokens = len(questions), torch.zeros(len(questions), 1, dtype=torch.long)
        return Decoded(steps, [""] * n, tokens, probs=probs, closed=torch.ones(n, dtype=torch.bool))

    monkeypatch.setattr(method, "solve", solve)
    found = evaluate(method, examples, "mini", per_question=True)["questions"]
    judged = torch.tensor(found["n_eff_above"])
    others = other_chains(tok, examples)  # a question needs another one with as many chains
    assert from_hex(found["n_eff_judged"], len(examples)) == [
        bool(others.get(i)) for i in range(len(examples))
    ]
    assert len(judged) > 15 and (judged.mean() > 0.04) == gains and (gains or judged.mean() < 0.02)


def test_explicit_cot_has_an_ecr_of_one(tok, examples):
    result = evaluate(chatty(tok, "cot_sft"), examples, "mini")
    assert set(result["ecr"].values()) == {1.0}


def test_what_does_not_apply_is_null(tok, examples):
    result = evaluate(chatty(tok, "no_cot"), examples, "mini")
    assert result["mean_len"] == 0 and result["n_multi"] == 0
    for key in ("ecr", "n_eff", "n_eff_control", "top2", "entropy", "closed"):
        assert result[key] is None, key
    bare = [type(e)(e.question, (), e.answer) for e in examples]  # SVAMP, say: no chains at all
    result = evaluate(chatty(tok, "latent_sft"), bare, "bare")
    assert result["ecr"] is None and result["n_eff"] is None and result["entropy"] > 0
    assert "bare" in report([result])


def test_questions_over_the_context_are_left_out_and_counted(tok, examples):
    method, long = chatty(tok, "latent_sft"), type(examples[0])("apples " * 400, (), "1")
    result = evaluate(method, [*examples, long], "mini", brief=True)
    assert (result["n"], result["skipped"]) == (40, 1) and "too long" in report([result])
    with pytest.raises(UserError):
        fitting(method, [long])


def test_the_controls_chains_are_another_questions_and_as_many(tok):
    examples = tasks.load("mini", "test", limit=80)
    others = other_chains(tok, examples)
    assert len(others) == sum(len(e.chains) > 1 for e in examples)
    for i, chains in others.items():
        if chains:  # there is such a question
            assert len(chains) == len(examples[i].chains) and tok.decode(chains[0]) != examples[i].chain


# ------------------------------------------------------------------ one question


@pytest.mark.parametrize("name", ["latent_sft", "latent_rl", "cot_sft"])
def test_a_trace_is_the_free_chain_step_by_step(tok, examples, name):
    method = chatty(tok, name)
    method.model.double()
    for example in examples[:5]:
        out, found = method.solve([example.question], keep_probs=True), trace(method, example.question)
        n = int(out.lengths)
        assert found.answer == out.answers[0] and found.probs.shape[0] == n + 1
        assert found.probs[:n].argmax(-1).tolist() == found.chain == out.chain[0, :n].tolist()
        assert torch.allclose(found.probs[:n], out.probs[0, :n], atol=1e-4)
        assert found.closed == (found.probs[n].argmax() == tok.end_think), "the last row is the collapse"


@pytest.mark.parametrize("name", ["latent_sft", "cot_sft", "no_cot"])
def test_what_is_printed_fits_a_terminal_and_ends_with_the_answer(tok, examples, name):
    found = trace(chatty(tok, name), examples[0].question)
    text = describe(found, tok, 5)
    lines = text.splitlines()
    assert lines[-1] == f"answer    {visible(found.answer.strip()) or '(none)'}"
    assert max(map(len, lines)) <= 100
    assert " ".join(text.split()).startswith(f"question {found.question} ")
    if name == "latent_sft":
        table = text.split("\n\n")[1].splitlines()
        assert sum("collapse" in line for line in table) == 1
        wide = describe(found, tok, 12).splitlines()  # more tokens take more lines, none is lost
        assert max(map(len, wide)) <= 100
        cells = [len(line[21:].split()) for line in wide if line.startswith("   1") or line[:21].isspace()]
        assert sum(cells[:3]) == 24


# ------------------------------------------------------------------ the scripts


def test_eval_writes_a_table_and_a_list(runs, tmp_path, capsys):
    out = tmp_path / "new" / "r.json"
    argv = f"--ckpt {runs['latent_rl']} --data mini mini_svamp --limit=12 --json {out}"
    script("eval")([*argv.split(), "--intervene"])
    results = json.loads(out.read_text(encoding="utf-8"))
    assert [r["data"] for r in results] == ["mini", "mini_svamp"] and results[0]["method"] == "latent_rl"
    assert list(results[0]["interventions"]) == ["noise", "swap"] and results[0]["ecr_control"]["10"] > 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("acc %", "mini_svamp", "ECR", "@10", "N_eff", "noise", "donor"))
    assert not list(tmp_path.rglob("*.tmp"))
    longest = {**results[0], "data": "mini_multiarith", "speed": "auto", "n": 1000, "n_multi": 1000}
    assert max(map(len, report([longest]).splitlines())) <= 100 and "N_eff" in report([longest])
    for shown in (printed, report_interventions(longest)):
        assert max(map(len, shown.splitlines())) <= 100


def test_two_files_of_one_name_stay_apart(runs, tmp_path, capsys):
    paths = [tmp_path / name for name in ("a/test.jsonl", "b/test.jsonl", "b/other.jsonl")]
    for n, path in enumerate(paths, 1):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"question": "Ava has 3 apples?", "answer": n}), encoding="utf-8")
    argv = ["--ckpt", str(runs["no_cot"]), "--brief", "--data", *map(str, paths)]
    script("eval")([*argv, "--json", str(tmp_path / "r.json")])
    results = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [r["data"] for r in results] == [str(paths[0]), str(paths[1]), "other.jsonl"]


def test_eval_judges_the_runs_own_data_when_none_is_named(runs, capsys):
    script("eval")(["--ckpt", str(runs["no_cot"]), "--limit", "5"])
    assert capsys.readouterr().out.splitlines()[1].startswith("mini ")


def test_one_colar_run_is_judged_at_many_speeds(runs, tmp_path, capsys):
    out, figure = tmp_path / "r.json", tmp_path / "s.png"
    argv = f"--ckpt {runs['colar']} --data mini mini_hard --limit 12 --speed 1 5 auto --json {out}"
    script("eval")(argv.split())
    speeds.main([str(out), "--figure", str(figure)])
    found = json.loads(out.read_text(encoding="utf-8"))
    assert [(r["data"], r["speed"]) for r in found] == [
        (name, speed) for name in ("mini", "mini_hard") for speed in (1, 5, "auto")
    ]
    assert len({r["mean_len"] for r in found[:3]}) > 1  # the prompt says it, so the model behaves otherwise
    assert "mini ×5" in capsys.readouterr().out and figure.read_bytes()[:4] == PNG


def test_sample_shows_what_a_merged_latent_is_near_to_and_where_the_chain_ends(tok, runs, capsys):
    question, method = "Ava has 12 apples.", chatty(tok, "colar", speed="3")
    argv = ["--ckpt", str(runs["colar"]), "--question", question, "--speed", "3", "--top", "4"]
    script("sample")(argv)
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("latent  σ"))
    out, table = method.solve([question]), method.model.embed.weight.clone()
    rows = lines[head + 1 : head + 1 + int(out.lengths)]
    assert [int(row.split()[0]) for row in rows] == list(range(1, int(out.lengths) + 1))
    table[tok.never] = 0
    cosine = torch.nn.functional.cosine_similarity(out.latents[0, :, None], table, dim=-1)
    for row, values in zip(rows, cosine):
        assert f"{values.max():.2f}" in row


def test_sample_draws_the_chain(runs, tmp_path, capsys):
    chain = tmp_path / "chain.png"
    script("sample")(["--ckpt", str(runs["latent_sft"]), "--figure", str(chain), "--top=3"])
    assert chain.read_bytes()[:4] == PNG
    assert "answer" in capsys.readouterr().out
    script("sample")(["--ckpt", str(runs["cot_sft"]), "--figure", str(tmp_path / "words.pdf")])
    script("sample")(["--ckpt", str(runs["no_cot"]), "--question", "What is $5 and $6?"])


@pytest.mark.parametrize(
    "name, run, extra, message",
    [
        ("eval", "latent_sft", ["--data", "minni"], "mini"),
        ("eval", "latent_sft", ["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        ("eval", "latent_sft", ["--data", "mini", "nowhere.jsonl", "--limit", "4"], "nowhere.jsonl"),
        ("eval", "latent_sft", ["--limitt", "5"], "--limit"),
        ("eval", "latent_sft", ["--limit", "few"], "few"),
        ("eval", "latent_sft", ["--batch", "0"], "--batch"),
        ("eval", "latent_sft", ["--intervene", "nose"], "noise"),
        ("eval", "no_cot", ["--intervene"], "does not think"),
        ("eval", "latent_sft", ["--device", "cuda:99"], "cuda"),
        ("eval", "latent_sft", ["--speed", "2"], "--speed belongs to colar and colar_rl"),
        ("eval", "latent_sft", ["--sample_end"], "--sample_end belongs to colar"),
        ("eval", "colar", ["--speed", "0"], "--speed 0"),
        ("eval", "colar", ["--speed", "2", "fast"], "--speed fast"),
        ("sample", "latent_sft", ["--question", "apples " * 400], "leave no room"),
        ("sample", "latent_sft", ["--question", " "], "empty"),
        ("sample", "latent_sft", ["--top", "0"], "--top"),
        ("sample", "latent_sft", ["--figure", "chain.gif"], ".png"),
        ("sample", "latent_sft", ["--quest", "x"], "--question"),
        ("sample", "cot_sft", ["--latent_temperature", "1"], "--latent_temperature belongs to colar"),
    ],
)
def test_a_wrong_call_is_one_clear_line_before_anything_is_judged(
    runs, monkeypatch, name, run, extra, message
):
    monkeypatch.setattr("minilatent.study.evaluation.solve_batches", lambda *_, **__: pytest.fail("judged"))
    with pytest.raises(UserError) as caught:
        script(name)(["--ckpt", str(runs[run]), *extra])
    assert message in str(caught.value) and "\n" not in str(caught.value)


def no_folder(folder):
    folder.rename(folder.with_name("elsewhere"))


def no_model(folder):
    (folder / "model.safetensors").unlink()


def no_tokenizer(folder):
    (folder / "minilatent_tokenizer.json").unlink()


def truncated(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])


def flipped(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1000] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def foreign_config(folder):
    (folder / "config.json").write_text("{}", encoding="utf-8")


def half_a_config(folder):
    (folder / "config.json").write_text(
        (folder / "config.json").read_text(encoding="utf-8")[:100], encoding="utf-8"
    )


def few_tokens(folder):
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings["model"]["vocab_size"] = 9
    (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")


@pytest.mark.parametrize(
    "harm", [no_folder, no_model, no_tokenizer, truncated, flipped, foreign_config, half_a_config, few_tokens]
)
def test_a_bad_checkpoint_is_one_clear_line(tok, tmp_path, harm):
    folder = save(chatty(tok, "latent_sft"), tmp_path / "run")
    harm(folder)
    for name in ("eval", "sample"):
        with pytest.raises(UserError) as caught:
            script(name)(["--ckpt", str(folder)])
        assert "\n" not in str(caught.value)


def test_the_exit_code_of_bad_input_is_two(tmp_path):
    command = [sys.executable, "eval.py", "--ckpt", str(tmp_path / "nothing")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 2 and done.stdout == ""
    assert "not a run folder" in the_message(done.stderr) or "no run folder" in the_message(done.stderr)
