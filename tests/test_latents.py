"""What latents look like, on cases worked out by hand; and the command that reports it."""

import json
import math

import pytest
import torch
from conftest import PNG, chatty, script
from pytest import approx

from minilatent.config import UserError
from minilatent.study.latents import describe_latents, effective_rank, mean_cosine, spectrum, usable
from results import space


def test_the_effective_rank_of_what_one_can_count():
    g = torch.Generator().manual_seed(0)
    parallel = torch.randn(1, 8, generator=g) * torch.randn(50, 1, generator=g)
    assert effective_rank(parallel) == approx(1, abs=1e-3)  # or opposite
    orthogonal = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    for n in (2, 5, 8):
        assert effective_rank(orthogonal[:n]) == approx(n, rel=1e-4)
    assert effective_rank(3 * torch.eye(8).repeat(4, 1)) == approx(8)  # each four times; scale is no matter
    # Two directions whose energies are 9 : 1.
    H = -(0.9 * math.log(0.9) + 0.1 * math.log(0.1))
    assert effective_rank(torch.tensor([[3.0, 0, 0], [0, 1.0, 0]])) == approx(math.exp(H))
    x = torch.randn(40, 8, generator=g)
    energy = torch.linalg.svdvals(x.double()) ** 2
    assert torch.allclose(spectrum(x), energy / energy.sum()) and torch.allclose(spectrum(x.T), spectrum(x))


def test_mean_cosines_of_pairs_against_a_loop():
    g = torch.Generator().manual_seed(1)
    count = torch.tensor([3, 0, 4, 1])
    x = torch.randn(4, 4, 6, generator=g) * (torch.arange(4) < count[:, None])[:, :, None]
    pairs = []
    for row, n in zip(x, count.tolist()):
        for i in range(n):
            pairs += [torch.cosine_similarity(row[i], row[j], dim=0).item() for j in range(n) if j != i]
    assert mean_cosine(x, count) == approx(sum(pairs) / len(pairs), abs=1e-6)
    three = torch.tensor([3, 3])
    assert mean_cosine(torch.ones(2, 3, 6), three) == approx(1)
    assert mean_cosine(torch.eye(6).view(2, 3, 6), three) == approx(0)
    assert mean_cosine(torch.ones(1, 1, 6), torch.tensor([1])) is None  # no pairs


def test_the_latents_of_explicit_cot_are_embeddings(tok, examples):
    method = chatty(tok, "cot_sft")
    chains, table = [], method.model.embed.weight.detach()
    for example in examples:
        out = method.solve([example.question])
        chains.append(table[out.chain[0, : int(out.lengths)]])
    found, fed, norms = (
        describe_latents(method, examples, batch=7),
        torch.cat(chains),
        usable(method).norm(dim=-1),
    )
    assert found["latents"] == len(fed) and found["rank"] == approx(effective_rank(fed), rel=1e-4)
    assert found["norm_ratio"] == approx((fed.norm(dim=-1).mean() / norms.mean()).item(), rel=1e-4)
    z, count = torch.nn.utils.rnn.pad_sequence(chains, True), torch.tensor([len(c) for c in chains])
    assert found["cosine_within"] == approx(mean_cosine(z, count), abs=1e-4)
    having = torch.tensor([int((count > i).sum()) for i in range(z.shape[1])])
    assert found["cosine_between"] == approx(mean_cosine(z.transpose(0, 1), having), abs=1e-4)
    assert len(usable(method)) == tok.vocab_size - len(tok.never)


def test_eval_reports_them_and_refuses_a_method_without_latents(runs, tmp_path, capsys):
    out, evaluate = tmp_path / "r.json", script("eval")
    argv = f"--ckpt {runs['latent_sft']} --data mini mini_svamp --limit 8 --latents --json {out}"
    evaluate(argv.split())
    assert all(result["latents"]["rank"] > 1 for result in json.loads(out.read_text(encoding="utf-8")))
    assert "effective rank" in capsys.readouterr().out
    with pytest.raises(UserError, match="no latents to describe"):
        evaluate(["--ckpt", str(runs["no_cot"]), "--limit", "4", "--latents"])


# ------------------------------------------------------------------ results/space.py


def test_the_states_of_the_space_are_those_that_predict_the_chain_and_its_end(tok, examples):
    method = chatty(tok, "cot_sft")
    states = space.hidden_states(method, examples[:1])
    out = method.solve([examples[0].question])
    logits = method.model.logits(states)
    logits[:, tok.never] = float("-inf")
    expected = out.chain[0, : int(out.lengths)].tolist() + [tok.end_think] * int(out.closed)
    assert logits.argmax(-1).tolist()[: len(expected)] == expected and len(states) == int(out.lengths) + 1
    assert len(space.hidden_states(chatty(tok, "no_cot"), examples[:5])) == 5  # it has only an end


def test_the_space_is_drawn(runs, tmp_path):
    figure = tmp_path / "space.png"
    space.main(["--ckpt", str(runs["latent_sft"]), "--limit", "8", "--figure", str(figure)])
    assert figure.read_bytes()[:4] == PNG
