"""eval.py and sample.py from the command line to the files, on tiny models with random weights."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import PNG, ROOT, chatty, save, script

from minilatent import tasks
from minilatent.config import UserError
from minilatent.decode import Decoded
from minilatent.evaluate import fitting, solve_all
from minilatent.study import interventions
from minilatent.study.evaluation import evaluate, frequent_tokens, other_chains, report
from minilatent.study.measures import from_hex
from minilatent.study.trace import describe, trace

# ------------------------------------------------------------------ evaluate


@pytest.mark.parametrize("name", ["latent_sft", "cot_sft"])
def test_the_batch_size_changes_no_number(tok, examples, name):
    method, frequent = chatty(tok, name), frequent_tokens(tok, examples)
    whole, parts = (evaluate(method, examples, "mini", frequent=frequent, batch=b) for b in (40, 7))
    for key in (
        "n",
        "accuracy",
        "mean_len",
        "closed",
        "ecr",
        "ecr_control",
        "entropy",
        "n_eff",
        "n_eff_control",
        "top2",
    ):
        assert whole[key] == pytest.approx(parts[key], rel=1e-4), key
    assert json.loads(json.dumps(whole)) == whole


def test_evaluate_agrees_with_solve_all_and_has_the_contracts_keys(tok, examples):
    method = chatty(tok, "latent_sft")
    result, simple = evaluate(method, examples, "mini"), solve_all(method, examples)
    assert {
        "method",
        "data",
        "n",
        "accuracy",
        "ci95",
        "mean_len",
        "seconds",
        "questions_per_second",
        "ecr",
        "n_eff",
        "top2",
    } <= result.keys()
    assert all(result[key] == simple[key] for key in ("n", "accuracy", "ci95", "mean_len"))
    assert 0 < result["mean_len"] <= 12 and result["n_multi"] > 0 and "10" in result["ecr"]


def test_a_brief_judgement_has_the_same_accuracy_and_keeps_no_distribution(tok, examples, monkeypatch):
    method, kept = chatty(tok, "latent_sft"), []
    solve = method.solve
    monkeypatch.setattr(
        method,
        "solve",
        lambda questions, **options: kept.append(options["keep_probs"]) or solve(questions, **options),
    )
    whole, brief = evaluate(method, examples, "mini"), evaluate(method, examples, "mini", brief=True)
    assert all(brief[key] == whole[key] for key in ("n", "accuracy", "ci95", "mean_len"))
    assert kept == [True] * (len(kept) // 2) + [False] * (len(kept) // 2)
    assert brief["ecr"] is None and brief["n_eff"] is None and brief["entropy"] is None
    assert "ECR" not in report([brief])


@pytest.mark.parametrize("kind, gains", [("all alike", False), ("one chain", False), ("own chains", True)])
def test_n_eff_is_gained_by_a_mixture_of_the_questions_own_chains_and_by_nothing_else(
    tok, monkeypatch, kind, gains
):
    """Latents that know nothing follow all chains alike, another question's too; latents of one chain follow no other. The gain is small
    even for a perfect mixture: its chains share most of their tokens, and what is not theirs is followed by chance."""
    method, examples = chatty(tok, "latent_sft"), tasks.load("mini", "test", limit=120)
    by_prompt = {e.question: e for e in examples}

    def solve(questions, **options):
        chains = [[tok.encode(" ".join(c)) for c in by_prompt[q].chains] for q in questions]
        chains = [c[:1] if kind == "one chain" else c for c in chains]
        steps = torch.tensor([-(-len(c[0]) // 2) for c in chains])
        probs = torch.full((len(questions), int(steps.max()), tok.vocab_size), 1.0 / tok.vocab_size)
        for b, own in enumerate(chains if kind != "all alike" else []):
            probs[b] = 1e-6
            for c in own:
                for t, token in enumerate(c):
                    probs[b, t // 2, token] += 1 / (2 * len(own))
            probs[b] /= probs[b].sum(-1, keepdim=True)
        return Decoded(
            steps,
            [""] * len(questions),
            torch.zeros(len(questions), 1, dtype=torch.long),
            probs=probs,
            closed=torch.ones(len(questions), dtype=torch.bool),
        )

    monkeypatch.setattr(method, "solve", solve)
    found = evaluate(method, examples, "mini", ks=(), per_question=True)["questions"]
    judged = torch.tensor(found["n_eff_above"])
    assert from_hex(found["n_eff_judged"], len(examples)) == [len(e.chains) > 1 for e in examples]
    assert len(judged) > 15 and (judged.mean() > 0.04) == gains and (gains or judged.mean() < 0.02)


def test_explicit_cot_has_an_ecr_of_one(tok, examples):
    result = evaluate(chatty(tok, "cot_sft"), examples, "mini", ks=(1, 10))
    assert (
        result["ecr"] == {"1": 1.0, "10": 1.0}
        and result["entropy_mixture"] is None
        and result["top1"] is None
    )


def test_what_does_not_apply_is_null(tok, examples):
    result = evaluate(chatty(tok, "no_cot"), examples, "mini")
    assert result["mean_len"] == 0 and result["n_multi"] == 0
    for key in ("acc_per_len", "ecr", "n_eff", "n_eff_control", "top2", "entropy", "closed"):
        assert result[key] is None, key
    bare = [type(e)(e.question, (), e.answer) for e in examples]  # SVAMP, say: no chains at all
    result = evaluate(chatty(tok, "latent_sft"), bare, "bare")
    assert result["ecr"] is None and result["n_eff"] is None and result["entropy"] > 0
    assert "bare" in report([result])


def test_questions_over_the_context_are_left_out_and_counted_or_refused(tok, examples):
    method = chatty(tok, "latent_sft")
    long = type(examples[0])("apples " * 400, (), "1")
    result = evaluate(method, [*examples, long], "mini")
    assert (result["n"], result["skipped"]) == (40, 1) and "too long" in report([result])
    with pytest.raises(UserError, match="1 of 41 questions"):
        fitting(method, [*examples, long], "error")
    with pytest.raises(UserError):
        fitting(method, [long])


def test_the_controls_chains_are_another_questions_and_as_many(tok):
    examples = tasks.load("mini", "test", limit=80)
    others = other_chains(tok, examples)
    assert len(others) == sum(len(e.chains) > 1 for e in examples)
    for i, chains in others.items():
        if chains is not None:
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
    method = chatty(tok, name)
    found = trace(method, examples[0].question)
    text = describe(found, tok, 12)
    assert text.splitlines()[-1] == f"answer    {interventions.visible(found.answer.strip()) or '(none)'}"
    if name == "latent_sft":
        table = text.split("\n\n")[1].splitlines()
        assert max(map(len, table)) <= 100 and sum("collapse" in line for line in table) == 1


# ------------------------------------------------------------------ the scripts


@pytest.mark.parametrize("name", ["latent_sft", "latent_rl"])
def test_eval_writes_a_table_a_list_and_a_figure(runs, tmp_path, capsys, name):
    out, figure = tmp_path / "new" / "r.json", tmp_path / "f.png"
    script("eval")(
        [
            "--ckpt",
            str(runs[name]),
            "--data",
            "mini",
            "mini_svamp",
            "--limit=12",
            "--json",
            str(out),
            "--figure",
            str(figure),
            "--intervene",
        ]
    )
    results = json.loads(out.read_text())
    assert [r["data"] for r in results] == ["mini", "mini_svamp"] and results[0]["method"] == name
    assert list(results[0]["interventions"]) == ["noise", "swap"] and results[0]["ecr_control"]["10"] > 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("acc %", "mini_svamp", "ECR", "@10", "N_eff", "noise", "donor"))
    assert figure.read_bytes()[:4] == PNG and not list(tmp_path.rglob("*.tmp"))


def test_eval_judges_the_runs_own_data_when_none_is_named(runs, capsys):
    script("eval")(["--ckpt", str(runs["no_cot"]), "--limit", "5"])
    assert capsys.readouterr().out.splitlines()[1].startswith("mini ")


def test_one_colar_run_is_judged_at_many_speeds(runs, tmp_path, capsys):
    script("eval")(
        [
            "--ckpt",
            str(runs["colar"]),
            "--data",
            "mini",
            "mini_hard",
            "--limit",
            "12",
            "--speed",
            "1",
            "5",
            "auto",
            "--json",
            str(tmp_path / "r.json"),
            "--speed_figure",
            str(tmp_path / "s.png"),
        ]
    )
    found = json.loads((tmp_path / "r.json").read_text())
    assert [(r["data"], r["speed"]) for r in found] == [
        (d, s) for d in ("mini", "mini_hard") for s in (1, 5, "auto")
    ]
    assert len({r["mean_len"] for r in found[:3]}) > 1  # the prompt says it, so the model behaves otherwise
    assert "mini ×5" in capsys.readouterr().out and (tmp_path / "s.png").read_bytes()[:4] == PNG
    for argv, said in ((["--speed", "0"], "--speed 0"), (["--speed", "fast"], "--speed fast")):
        with pytest.raises(UserError, match=said):
            script("eval")(["--ckpt", str(runs["colar"]), *argv])
    with pytest.raises(UserError, match="CoLaR's"):
        script("eval")(["--ckpt", str(runs["latent_sft"]), "--speed", "2"])


def test_sample_shows_what_a_merged_latent_is_near_to_and_where_the_chain_ends(tok, runs, capsys):
    script("sample")(
        ["--ckpt", str(runs["colar"]), "--question", "Ava has 12 apples.", "--speed", "3", "--top", "4"]
    )
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("latent  σ"))
    method = chatty(tok, "colar", speed="3")
    out = method.solve(["Ava has 12 apples."])
    rows = lines[head + 1 : head + 1 + int(out.lengths)]
    assert [int(row.split()[0]) for row in rows] == list(range(1, int(out.lengths) + 1))
    table = method.model.embed.weight.clone()
    table[tok.never] = 0
    cosine = torch.nn.functional.cosine_similarity(out.latents[0, :, None], table, dim=-1)
    for row, values in zip(rows, cosine):
        assert f"{values.max():.2f}" in row


def test_sample_draws_the_chain_and_the_masks(runs, tmp_path, capsys):
    for name in ("latent_sft", "cot_sft"):
        chain, masks = tmp_path / f"{name}.png", tmp_path / f"{name}_masks.svg"
        script("sample")(
            ["--ckpt", str(runs[name]), "--figure", str(chain), "--masks", str(masks), "--top=3"]
        )
        assert chain.read_bytes()[:4] == PNG and b"<svg" in masks.read_bytes()
        assert "answer" in capsys.readouterr().out
    script("sample")(["--ckpt", str(runs["no_cot"]), "--question", "What is $5 and $6?"])


@pytest.mark.parametrize(
    "name, extra, message",
    [
        ("eval", ["--data", "minni"], "mini"),
        ("eval", ["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        ("eval", ["--limitt", "5"], "--limit"),
        ("eval", ["--limit", "few"], "few"),
        ("eval", ["--intervene", "nose"], "noise"),
        ("eval", ["--device", "cuda:99"], "cuda"),
        ("sample", ["--question", "apples " * 400], "context"),
        ("sample", ["--question", " "], "empty"),
        ("sample", ["--top", "0"], "--top"),
        ("sample", ["--figure", "chain.gif"], ".png"),
        ("sample", ["--quest", "x"], "--question"),
    ],
)
def test_a_wrong_call_is_one_clear_line(runs, name, extra, message):
    with pytest.raises(UserError) as caught:
        script(name)(["--ckpt", str(runs["latent_sft"]), *extra])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "run, extra",
    [
        ("latent_sft", ["--data", "mini", "nowhere.jsonl"]),
        ("latent_sft", ["--figure", "f.xyz"]),
        ("latent_sft", ["--look_figure", "f"]),
        ("no_cot", ["--intervene"]),
    ],
)
def test_eval_looks_at_all_that_it_is_given_before_it_judges_anything(runs, monkeypatch, run, extra):
    monkeypatch.setattr("minilatent.evaluate.evaluate", lambda *_, **__: pytest.fail("judged"))
    with pytest.raises(UserError):
        script("eval")(["--ckpt", str(runs[run]), "--limit", "4", *extra])


@pytest.mark.parametrize(
    "harm",
    [
        "no folder",
        "no model",
        "no tokenizer",
        "truncated",
        "flipped",
        "foreign config",
        "half a config",
        "unknown part",
        "few tokens",
    ],
)
def test_a_bad_checkpoint_is_one_clear_line(tok, tmp_path, harm):
    folder = save(chatty(tok, "latent_sft"), tmp_path / "run")
    weights, config = folder / "model.safetensors", folder / "config.json"
    if harm == "no folder":
        folder = tmp_path / "nothing"
    elif harm in ("no model", "no tokenizer"):
        (weights if harm == "no model" else folder / "minilatent_tokenizer.json").unlink()
    elif harm == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
    elif harm == "flipped":
        content = bytearray(weights.read_bytes())
        content[-1000] ^= 1
        weights.write_bytes(content)
    elif harm in ("unknown part", "few tokens"):
        settings = json.loads(config.read_text())
        settings["model"] |= {"attention": "sdpb"} if harm == "unknown part" else {"vocab_size": 9}
        config.write_text(json.dumps(settings))
    else:
        config.write_text("{}" if harm == "foreign config" else config.read_text()[:100])
    for name in ("eval", "sample"):
        with pytest.raises(UserError) as caught:
            script(name)(["--ckpt", str(folder)])
        assert "\n" not in str(caught.value)


def test_the_exit_code_of_bad_input_is_two(tmp_path):
    done = subprocess.run(
        [sys.executable, "eval.py", "--ckpt", str(tmp_path / "nothing")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr.startswith("error: ")
        and done.stderr.count("\n") == 1
    )
