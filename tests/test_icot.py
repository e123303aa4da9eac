"""iCoT: what each stage has left of the chain, and that the stages come in their time."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model

from minilatent.batch import Row, cut, encode
from minilatent.config import UserError, resolve
from minilatent.methods import METHODS, icot
from minilatent.tasks import words


@pytest.fixture(scope="module")
def rows(tok):
    return encode(words.load("mini", "train", 7), tok, 512)[0]


def make(tok, removed=None, **changes):
    model = tiny_model(tok.vocab_size, scale=3.0, context=160, tied=False).double()
    config = resolve({"method": "icot", "max_chain": 8, "max_answer": 4, "smoothing": 0.0, **changes})
    method = METHODS["icot"](config, tok, model)
    method.removed = removed
    return method


def naive(method, rows, gone: list[int]) -> torch.Tensor:
    tok, nll = method.tok, []
    for row, n in zip(rows, gone):
        start, ids = (
            len(row.question) + 1,
            [*row.question, tok.think, *row.chain[n:], tok.end_think, *row.answer],
        )
        logits = method.model.logits(method.model(torch.tensor([ids])))[0]
        nll += [F.cross_entropy(logits[i - 1], torch.tensor(ids[i])) for i in range(start, len(ids))]
    return torch.stack(nll).mean()


@pytest.mark.parametrize("removed", [0, 4, 17, 100, None])
def test_the_loss_is_that_of_every_row_by_itself_without_its_first_tokens(tok, rows, removed):
    method = make(tok, removed)
    gone = [len(r.chain) if removed is None else min(removed, len(r.chain)) for r in rows]
    assert removed != 17 or len({len(r.chain) - n for r, n in zip(rows, gone)}) > 2  # some have nothing left
    loss, _ = method.loss(method.collate(rows), torch.Generator(), 0.0)
    torch.testing.assert_close(loss, naive(method, rows, gone), rtol=0, atol=1e-10)


def test_smoothing_removes_more_for_some_rows_never_beyond_the_chain_and_the_loss_is_of_what_is_left(
    tok, rows, monkeypatch
):
    method, more = make(tok, 4, smoothing=0.15), []
    monkeypatch.setattr(
        icot, "cut", lambda ids, start, count, value: (more.append(count), cut(ids, start, count, value))[1]
    )
    for seed in range(3):
        loss, _ = method.loss(method.collate(rows), torch.Generator().manual_seed(seed), 0.0)
        gone = [4 + n for n in more[-1].tolist()]
        torch.testing.assert_close(loss, naive(method, rows, gone), rtol=0, atol=1e-10)
        assert all(n <= len(r.chain) for n, r in zip(gone, rows)) and len(set(gone)) > 2
    again, _ = method.loss(method.collate(rows), torch.Generator().manual_seed(2), 0.0)
    assert again == loss and not torch.equal(more[0], more[1])
    method.removed = None  # nothing is left to remove
    method.loss(method.collate(rows), torch.Generator().manual_seed(0), 0.0)
    assert not more[-1].any()


def test_smoothing_draws_from_the_papers_distribution(tok, monkeypatch):
    """P(o) = (1 - e^-λ) e^(-λ o): with λ = 4, 98 % of the examples lose nothing more."""
    for scale in (4.0, 0.7):
        method, drawn = make(tok, 0, smoothing=scale), []
        monkeypatch.setattr(icot, "cut", lambda ids, start, count, value: (drawn.append(count), ids)[1])
        batch = {
            "ids": torch.full((20_000, 3), tok.eos),
            "start": torch.full((20_000,), 1),
            "left": torch.full((20_000,), 1000),
        }
        method.loss(batch, torch.Generator().manual_seed(0), 0.0)
        n = len(drawn[0])
        for o in range(4):
            p = (1 - math.exp(-scale)) * math.exp(-scale * o)
            assert (drawn[0] == o).double().mean().item() == pytest.approx(
                p, abs=4 * math.sqrt(p * (1 - p) / n) + 1e-4
            )


@pytest.mark.parametrize("start, count", [(0, 0), (0, 3), (2, 1), (3, 2), (5, 1), (1, 5), (6, 0)])
def test_cutting_tokens_out_is_what_slicing_does(start, count):
    rows = [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]]
    other = [4, 1]  # the second row loses one token at 4, each time
    out = cut(torch.tensor(rows), torch.tensor([start, other[0]]), torch.tensor([count, other[1]]), 0)
    for row, (at, n), got in zip(rows, ((start, count), other), out.tolist()):
        left = row[:at] + row[at + n :]
        assert got == left + [0] * (6 - len(left))


def test_the_curriculum_advances_stage_by_stage_no_slower_and_no_faster(tok, rows):
    """A schedule that never advances trains CoT, one that jumps trains No-CoT: both went unnoticed elsewhere."""
    longest = max(len(r.chain) for r in rows)
    assert longest == 31
    method = make(tok, steps=100, remove=8, curriculum=0.6)
    assert method.schedule(rows) == [
        ("icot-8", 8, 20),
        ("icot-16", 16, 20),
        ("icot-24", 24, 20),
        ("icot-all", None, 40),
    ]
    assert make(tok, steps=100, remove=8, first_stage=0).schedule(rows)[0] == ("icot-0", 0, 12)
    assert make(tok, steps=100, remove=40).schedule(rows) == [("icot-all", None, 100)]
    left = []
    for stage in method.stages(rows, []):
        batch = stage.collate(rows)
        left.append(batch["left"].tolist())
        assert stage.lengths == [len(r.question) + n + len(r.answer) + 2 for r, n in zip(rows, left[-1])]
        assert (
            (stage.name == "icot-all")
            == (method.prompt("Ava")[-1] == tok.end_think)
            == (method.thinker() is None)
        )
    for before, after in itertools.pairwise(left):
        assert all(b == max(0, a - 8) for a, b in zip(before, after))
    assert left[0] == [len(r.chain) - 8 for r in rows] and left[-1] == [0] * len(rows)


def test_a_few_long_chains_make_no_stages_of_their_own(tok, rows):
    """GSM8K's longest chain has ten times the tokens of its median: the paper, too, removes all from some length on."""
    outlier = Row([1], list(range(1, 200)), [2])
    assert len(make(tok).schedule(rows * 10 + [outlier])) == len(make(tok).schedule(rows))


def test_at_inference_it_answers_at_once_and_before_the_last_stage_it_says_what_is_left(tok):
    questions = [e.question for e in words.load("mini", "test", 8)]
    out = make(tok).eval().solve(questions)
    assert out.lengths.tolist() == [0] * 8 and out.latents is None
    out = make(tok, 8).eval().solve(questions)
    assert out.lengths.sum() > 0 and out.latents is not None


def test_a_removal_of_nothing_is_refused(tok):
    with pytest.raises(UserError, match="--remove 0 is out of range: 1 or more"):
        make(tok, remove=0)
