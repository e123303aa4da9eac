"""eval.py and sample.py from the command line to the files, on tiny models with random weights."""
import importlib.util
import json
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

from minilatent import analysis, checkpoint, data
from minilatent.analysis import INTERVENTIONS, Chains, answers_given, describe, intervene, trace
from minilatent.config import Config, UserError
from minilatent.decode import Decoded
from minilatent.evaluate import evaluate, fitting, frequent_tokens, other_chains, report, solve_all
from minilatent.methods import METHODS
from minilatent.metrics import from_hex
from minilatent.model import ModelConfig, Transformer
from minilatent.tokenizer import mini_tokenizer

ROOT = Path(__file__).parent.parent
PNG = b"\x89PNG"


def script(name: str):
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def tok():
    return mini_tokenizer()


def tiny(tok, name: str, seed: int = 0, **settings):
    """A method with random weights, so large that the question matters: its chains end at different lengths and its
    answers are often numbers. (With a tied head, a random model repeats its last token for ever.)"""
    model = Transformer(ModelConfig(vocab_size=tok.vocab_size, n_layer=1, width=32, n_head=2, n_kv_head=2, head_dim=16,
                                    hidden=32, context=256, tied=False))
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() > 1:
                p.mul_(12)
        model.head.weight[[tok.end_think, tok.eos]] *= 2
        model.head.weight[tok.encode(" ".join(map(str, range(100))))[::2]] *= 1.5
    options = {"max_chain": 12, "max_answer": 4, "eval_batch": 8, **settings}
    return METHODS[name](Config(method=name, **options), tok, model).eval()


def save(method, folder: Path) -> Path:
    folder.mkdir(parents=True)
    checkpoint.write_config(folder, method.config, method.model.config)
    method.tok.save(folder)
    checkpoint.save_tensors(folder / "model.safetensors", method.state_dict())
    return folder


@pytest.fixture(scope="module")
def runs(tok, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return {name: save(tiny(tok, name), root / name) for name in ("latent_sft", "latent_rl", "cot_sft", "no_cot", "colar")}


@pytest.fixture(scope="module")
def examples():
    return data.load("mini", "test", limit=40)


# ------------------------------------------------------------------ evaluate

@pytest.mark.parametrize("name", ["latent_sft", "cot_sft"])
def test_the_batch_size_changes_no_number(tok, examples, name):
    method, frequent = tiny(tok, name), frequent_tokens(tok, examples)
    whole, parts = (evaluate(method, examples, "mini", frequent=frequent, batch=b) for b in (40, 7))
    for key in ("n", "accuracy", "mean_len", "closed", "ecr", "ecr_control", "entropy", "n_eff", "n_eff_control", "top2"):
        assert whole[key] == pytest.approx(parts[key], rel=1e-4), key
    assert json.loads(json.dumps(whole)) == whole


def test_evaluate_agrees_with_solve_all_and_has_the_contracts_keys(tok, examples):
    method = tiny(tok, "latent_sft")
    result, simple = evaluate(method, examples, "mini"), solve_all(method, examples)
    assert {"method", "data", "n", "accuracy", "ci95", "mean_len", "seconds", "questions_per_second", "ecr", "n_eff",
            "top2"} <= result.keys()
    assert all(result[key] == simple[key] for key in ("n", "accuracy", "ci95", "mean_len"))
    assert 0 < result["mean_len"] <= 12 and result["n_multi"] > 0 and "10" in result["ecr"]


def test_a_brief_judgement_has_the_same_accuracy_and_keeps_no_distribution(tok, examples, monkeypatch):
    method, kept = tiny(tok, "latent_sft"), []
    solve = method.solve
    monkeypatch.setattr(method, "solve", lambda questions, **options: kept.append(options["keep_probs"]) or solve(questions, **options))
    whole, brief = evaluate(method, examples, "mini"), evaluate(method, examples, "mini", brief=True)
    assert all(brief[key] == whole[key] for key in ("n", "accuracy", "ci95", "mean_len"))
    assert kept == [True] * (len(kept) // 2) + [False] * (len(kept) // 2)
    assert brief["ecr"] is None and brief["n_eff"] is None and brief["entropy"] is None
    assert "ECR" not in report([brief])


@pytest.mark.parametrize("kind, gains", [("all alike", False), ("one chain", False), ("own chains", True)])
def test_n_eff_is_gained_by_a_mixture_of_the_questions_own_chains_and_by_nothing_else(tok, monkeypatch, kind, gains):
    """Latents that know nothing follow all chains alike, another question's too; latents of one chain follow no other. The gain is small
    even for a perfect mixture: its chains share most of their tokens, and what is not theirs is followed by chance."""
    method, examples = tiny(tok, "latent_sft"), data.load("mini", "test", limit=120)
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
        return Decoded(steps, [""] * len(questions), torch.zeros(len(questions), 1, dtype=torch.long), probs=probs,
                       closed=torch.ones(len(questions), dtype=torch.bool))

    monkeypatch.setattr(method, "solve", solve)
    found = evaluate(method, examples, "mini", ks=(), per_question=True)["questions"]
    judged = torch.tensor(found["n_eff_above"])
    assert from_hex(found["n_eff_judged"], len(examples)) == [len(e.chains) > 1 for e in examples]
    assert len(judged) > 15 and (judged.mean() > 0.04) == gains and (gains or judged.mean() < 0.02)


def test_explicit_cot_has_an_ecr_of_one(tok, examples):
    result = evaluate(tiny(tok, "cot_sft"), examples, "mini", ks=(1, 10))
    assert result["ecr"] == {"1": 1.0, "10": 1.0} and result["entropy_mixture"] is None and result["top1"] is None


def test_what_does_not_apply_is_null(tok, examples):
    result = evaluate(tiny(tok, "no_cot"), examples, "mini")
    assert result["mean_len"] == 0 and result["n_multi"] == 0
    for key in ("acc_per_len", "ecr", "n_eff", "n_eff_control", "top2", "entropy", "closed"):
        assert result[key] is None, key
    bare = [type(e)(e.question, (), e.answer) for e in examples]                   # SVAMP, say: no chains at all
    result = evaluate(tiny(tok, "latent_sft"), bare, "bare")
    assert result["ecr"] is None and result["n_eff"] is None and result["entropy"] > 0
    assert "bare" in report([result])


def test_questions_over_the_context_are_left_out_and_counted_or_refused(tok, examples):
    method = tiny(tok, "latent_sft")
    long = type(examples[0])("apples " * 400, (), "1")
    result = evaluate(method, [*examples, long], "mini")
    assert (result["n"], result["skipped"]) == (40, 1) and "too long" in report([result])
    with pytest.raises(UserError, match="1 of 41 questions"):
        fitting(method, [*examples, long], "error")
    with pytest.raises(UserError):
        fitting(method, [long])


def test_the_controls_chains_are_another_questions_and_as_many(tok):
    examples = data.load("mini", "test", limit=80)
    others = other_chains(tok, examples)
    assert len(others) == sum(len(e.chains) > 1 for e in examples)
    for i, chains in others.items():
        if chains is not None:
            assert len(chains) == len(examples[i].chains) and tok.decode(chains[0]) != examples[i].chain


# ------------------------------------------------------------------ interventions

@pytest.mark.parametrize("name", ["latent_sft", "cot_sft"])
def test_latents_replaced_by_themselves_change_nothing(tok, examples, name):
    method = tiny(tok, name)
    method.model.double()
    questions = [e.question for e in examples[:8]]
    out = method.solve(questions)
    assert len(set(out.lengths.tolist())) > 1, "ragged chains, or the test tests little"
    assert answers_given(method, questions, out.latents, out.lengths) == out.answers


def test_interventions_do_what_they_say(tok, examples):
    method = tiny(tok, "latent_sft")
    names = [*INTERVENTIONS]
    found = intervene(method, examples, names)
    assert found == intervene(method, examples, names), "seeded"
    assert found["keep"]["unchanged"] == 1.0 and found["keep"]["n"] == len(examples)
    assert set(found["swap"]) == {"n", "accuracy", "ci95", "unchanged", "follows_donor"}
    each = intervene(method, examples, ["keep", "swap"], batch=7, per_question=True)
    judged, correct = (from_hex(each["swap"]["questions"][key], len(examples)) for key in ("judged", "correct"))
    assert sum(judged) == each["swap"]["n"] and sum(correct) == round(each["swap"]["accuracy"] * each["swap"]["n"])
    assert from_hex(each["keep"]["questions"]["correct"], len(examples)) == solve_all(method, examples)["correct"]

    out = method.solve([e.question for e in examples[:6]])
    z, n, g = out.latents, out.lengths, torch.Generator().manual_seed(0)
    donor = torch.tensor([1, 2, 3, 4, 5, 0])
    chains = Chains(z, n, donor, method.model.embed(out.chain), z[0, 0] + 1, g)
    noisy, _ = INTERVENTIONS["noise"](chains)
    assert torch.allclose(noisy.norm(dim=-1), z.norm(dim=-1), rtol=1e-4) and (noisy - z).norm() > 0.5 * z.norm()
    swapped, steps = INTERVENTIONS["swap"](chains)
    assert torch.equal(swapped[0], z[1]) and torch.equal(steps, n[donor])
    mixed, _ = INTERVENTIONS["shuffle"](chains)
    for row, (a, b) in enumerate(zip(mixed, z)):                                   # the same latents, none from padding
        assert torch.allclose(a[:n[row]].sum(0), b[:n[row]].sum(0), atol=1e-3) and not a[n[row]:].any()
    assert not torch.equal(mixed, z)
    average, steps = INTERVENTIONS["mean"](chains)
    assert (average == z[0, 0] + 1).all() and average.shape == z.shape and torch.equal(steps, n)
    zeros, steps = INTERVENTIONS["zeros"](chains)
    assert zeros.shape == z.shape and not zeros.any() and torch.equal(steps, n)
    assert torch.equal(INTERVENTIONS["truncate"](chains)[1], n // 2) and torch.equal(INTERVENTIONS["truncate"](chains)[0], z)
    assert torch.equal(analysis.intervention("truncate:2")(chains)[1], n.clamp(max=2))
    assert torch.equal(analysis.intervention("truncate:-2")(chains)[1], (n - 2).clamp(min=0))
    for wrong in ("truncate:", "truncate:-", "truncate:1.5", "truncates"):
        with pytest.raises(UserError, match="unknown intervention"):
            analysis.intervention(wrong)
    loud, _ = INTERVENTIONS["loud"](chains)
    assert torch.allclose(loud.norm(dim=-1), 10 * z.norm(dim=-1), rtol=1e-4)
    longer, steps = INTERVENTIONS["extend"](chains)
    assert torch.equal(steps, n + 4)
    for row, (a, b, k) in enumerate(zip(longer, z, n)):
        assert torch.equal(a[:k], b[:k]) and torch.equal(a[k:k + 4], b[k - 1].expand(4, -1))
    one, _ = INTERVENTIONS["top1"](chains)
    assert torch.equal(one[0, 0], method.model.embed.weight[out.chain[0, 0]])


def answering(method, monkeypatch, answers):
    """The method, but its answers are answers(questions, latents), with its own latents or with others."""
    free = method.solve

    def solve(questions, **options):
        out = free(questions, **options)
        out.answers = answers(questions, out.latents)
        return out

    monkeypatch.setattr(analysis, "answers_given", lambda method, questions, latents, steps: answers(questions, latents))
    monkeypatch.setattr(method, "solve", solve)
    return method


def test_a_model_that_answers_from_its_chain_follows_the_donor(tok, examples, monkeypatch):
    """A fake whose answer is read off the first latent: swap must then give the donor's answer, always."""
    method = answering(tiny(tok, "latent_sft"), monkeypatch,
                       lambda questions, latents: [str(round(abs(z[0].sum().item()) * 1e4)) for z in latents])
    found = intervene(method, examples, ["swap", "keep"])
    assert found["swap"]["follows_donor"] == 1.0 and found["keep"]["unchanged"] == 1.0


def test_a_model_that_ignores_its_chain_is_found_out(tok, examples, monkeypatch):
    """The mirror of it: a fake that answers from the question alone never follows a donor."""
    method = answering(tiny(tok, "latent_sft"), monkeypatch,
                       lambda questions, latents: [str(zlib.crc32(q.encode()) % 10_000) for q in questions])
    found = intervene(method, examples, ["swap", "noise", "zeros"])
    assert found["swap"]["follows_donor"] == 0.0 and {f["unchanged"] for f in found.values()} == {1.0}


def test_the_mean_latent_is_the_data_sets_and_not_a_batchs(tok, examples, monkeypatch):
    method, seen = tiny(tok, "latent_sft"), []
    method.model.double()
    monkeypatch.setitem(INTERVENTIONS, "mean", lambda c: (seen.append(c.mean), (c.z, c.steps))[1])
    intervene(method, examples, ["mean"], batch=7)
    out = method.solve([e.question for e in examples])
    expected = out.latents.sum((0, 1)) / out.lengths.sum()
    assert len(seen) > 3 and all(torch.allclose(mean, expected, atol=1e-4) for mean in seen)


@pytest.mark.parametrize("name", ["latent_sft", "cot_sft", "colar", "coconut"])
def test_top1_is_of_tokens_and_their_mixtures_only(tok, examples, name):
    method = tiny(tok, name)
    assert method.mixed == (name == "latent_sft") and analysis.applies("top1", method) == (name in ("latent_sft", "cot_sft"))
    if analysis.applies("top1", method):
        found = intervene(method, examples[:4], ["top1"])["top1"]
        assert found["n"] == 4 and (found["unchanged"] == 1.0 or name == "latent_sft")
    else:
        with pytest.raises(UserError, match="top1.*feeds neither tokens nor mixtures"):
            intervene(method, examples[:4], ["top1"])


def test_no_cot_has_no_latents_to_replace(tok, examples):
    with pytest.raises(UserError, match="does not think"):
        intervene(tiny(tok, "no_cot"), examples, ["noise"])


# ------------------------------------------------------------------ one question

@pytest.mark.parametrize("name", ["latent_sft", "latent_rl", "cot_sft"])
def test_a_trace_is_the_free_chain_step_by_step(tok, examples, name):
    method = tiny(tok, name)
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
    method = tiny(tok, name)
    found = trace(method, examples[0].question)
    text = describe(found, tok, 12)
    assert text.splitlines()[-1] == f"answer    {analysis.visible(found.answer.strip()) or '(none)'}"
    if name == "latent_sft":
        table = text.split("\n\n")[1].splitlines()
        assert max(map(len, table)) <= 100 and sum("collapse" in line for line in table) == 1


# ------------------------------------------------------------------ the scripts

@pytest.mark.parametrize("name", ["latent_sft", "latent_rl"])
def test_eval_writes_a_table_a_list_and_a_figure(runs, tmp_path, capsys, name):
    out, figure = tmp_path / "new" / "r.json", tmp_path / "f.png"
    script("eval")(["--ckpt", str(runs[name]), "--data", "mini", "mini_svamp", "--limit=12", "--json", str(out),
                    "--figure", str(figure), "--intervene"])
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
    script("eval")(["--ckpt", str(runs["colar"]), "--data", "mini", "mini_hard", "--limit", "12", "--speed", "1", "5", "auto",
                    "--json", str(tmp_path / "r.json"), "--speed_figure", str(tmp_path / "s.png")])
    found = json.loads((tmp_path / "r.json").read_text())
    assert [(r["data"], r["speed"]) for r in found] == [(d, s) for d in ("mini", "mini_hard") for s in (1, 5, "auto")]
    assert len({r["mean_len"] for r in found[:3]}) > 1               # the prompt says it, so the model behaves otherwise
    assert "mini ×5" in capsys.readouterr().out and (tmp_path / "s.png").read_bytes()[:4] == PNG
    for argv, said in ((["--speed", "0"], "--speed 0"), (["--speed", "fast"], "--speed fast")):
        with pytest.raises(UserError, match=said):
            script("eval")(["--ckpt", str(runs["colar"]), *argv])
    with pytest.raises(UserError, match="CoLaR's"):
        script("eval")(["--ckpt", str(runs["latent_sft"]), "--speed", "2"])


def test_sample_shows_what_a_merged_latent_is_near_to_and_where_the_chain_ends(tok, runs, capsys):
    script("sample")(["--ckpt", str(runs["colar"]), "--question", "Ava has 12 apples.", "--speed", "3", "--top", "4"])
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("latent  σ"))
    method = tiny(tok, "colar", speed="3")
    out = method.solve(["Ava has 12 apples."])
    rows = lines[head + 1:head + 1 + int(out.lengths)]
    assert [int(row.split()[0]) for row in rows] == list(range(1, int(out.lengths) + 1))
    table = method.model.embed.weight.clone()
    table[tok.never] = 0
    cosine = torch.nn.functional.cosine_similarity(out.latents[0, :, None], table, dim=-1)
    for row, values in zip(rows, cosine):
        assert f"{values.max():.2f}" in row


def test_sample_draws_the_chain_and_the_masks(runs, tmp_path, capsys):
    for name in ("latent_sft", "cot_sft"):
        chain, masks = tmp_path / f"{name}.png", tmp_path / f"{name}_masks.svg"
        script("sample")(["--ckpt", str(runs[name]), "--figure", str(chain), "--masks", str(masks), "--top=3"])
        assert chain.read_bytes()[:4] == PNG and b"<svg" in masks.read_bytes()
        assert "answer" in capsys.readouterr().out
    script("sample")(["--ckpt", str(runs["no_cot"]), "--question", "What is $5 and $6?"])


@pytest.mark.parametrize("name, extra, message", [
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
])
def test_a_wrong_call_is_one_clear_line(runs, name, extra, message):
    with pytest.raises(UserError) as caught:
        script(name)(["--ckpt", str(runs["latent_sft"]), *extra])
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("run, extra", [("latent_sft", ["--data", "mini", "nowhere.jsonl"]), ("latent_sft", ["--figure", "f.xyz"]),
                                        ("latent_sft", ["--look_figure", "f"]), ("no_cot", ["--intervene"])])
def test_eval_looks_at_all_that_it_is_given_before_it_judges_anything(runs, monkeypatch, run, extra):
    monkeypatch.setattr("minilatent.evaluate.evaluate", lambda *_, **__: pytest.fail("judged"))
    with pytest.raises(UserError):
        script("eval")(["--ckpt", str(runs[run]), "--limit", "4", *extra])


@pytest.mark.parametrize("harm", ["no folder", "no model", "no tokenizer", "truncated", "flipped", "foreign config", "half a config", "unknown part", "few tokens"])
def test_a_bad_checkpoint_is_one_clear_line(tok, tmp_path, harm):
    folder = save(tiny(tok, "latent_sft"), tmp_path / "run")
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
    done = subprocess.run([sys.executable, "eval.py", "--ckpt", str(tmp_path / "nothing")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
