"""iCoT: what each stage has left of the chain, and the curriculum's stages."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import small_row, tiny_model

from minilatent import tasks
from minilatent.batch import encode
from minilatent.config import UserError
from minilatent.methods import METHODS, icot
from minilatent.methods.icot import remove_tokens
from minilatent.run import resolve


@pytest.fixture(scope="module")
def rows(tok):
    return encode(tasks.load("mini", "train", limit=7), tok, 512)[0]


def make(tok, removed=None, **changes):
    model = tiny_model(tok.vocab_size, scale=3.0, context=160, tied=False).double()
    options = {"max_chain": 8, "max_answer": 4, "smoothing": 0.0, "curriculum": 0.5, **changes}
    config = resolve({"method": "icot", **options})
    method = METHODS["icot"](config, tok, model)
    method.removed = removed
    return method


def naive(method, rows, gone: list[int]) -> torch.Tensor:
    nll = []
    for row, n in zip(rows, gone):
        target = row.chain[n:] + row.tail
        logits = method.model.logits(method.model(torch.tensor([row.prompt + target])))[0]
        for i, y in enumerate(target, len(row.prompt) - 1):
            nll.append(F.cross_entropy(logits[i], torch.tensor(y)))
    return torch.stack(nll).mean()


@pytest.mark.parametrize("removed", [0, 4, 17, 100, None])
def test_the_loss_is_that_of_every_row_by_itself_without_its_first_tokens(tok, rows, removed):
    method = make(tok, removed)
    gone = [len(r.chain) if removed is None else min(removed, len(r.chain)) for r in rows]
    assert removed != 17 or len({len(r.chain) - n for r, n in zip(rows, gone)}) > 2  # some have nothing left
    loss, _ = method.loss(method.collate(rows), torch.Generator())
    torch.testing.assert_close(loss, naive(method, rows, gone), rtol=0, atol=1e-10)


def test_smoothing_removes_more_for_some_rows_never_beyond_the_chain_and_the_loss_is_of_what_is_left(
    tok, rows, monkeypatch
):
    method, more = make(tok, 4, smoothing=0.15), []

    def spy(ids, start, count, value):
        more.append(count)
        return remove_tokens(ids, start, count, value)

    monkeypatch.setattr(icot, "remove_tokens", spy)
    loss = lambda seed: method.loss(method.collate(rows), torch.Generator().manual_seed(seed))[0]
    for seed in range(3):
        found, gone = loss(seed), [4 + n for n in more[-1].tolist()]
        torch.testing.assert_close(found, naive(method, rows, gone), rtol=0, atol=1e-10)
        assert all(n <= len(r.chain) for n, r in zip(gone, rows)) and len(set(gone)) > 2
    assert loss(2) == found and not torch.equal(more[0], more[1])
    method.removed = None  # nothing is left to remove
    loss(0)
    assert not more[-1].any()


def test_smoothing_samples_from_the_papers_distribution(tok, monkeypatch):
    """P(o) = (1 - e^-λ) e^(-λ o): with λ = 4, 98 % of the examples lose nothing more."""
    n = 20_000
    batch = {"ids": torch.full((n, 3), tok.eos), "start": torch.ones(n).long(), "left": torch.full((n,), 99)}

    class Removed(Exception):
        pass

    def spy(ids, start, count, value):
        raise Removed(count)  # the loss itself is not needed

    monkeypatch.setattr(icot, "remove_tokens", spy)
    for scale in (4.0, 0.7):
        with pytest.raises(Removed) as found:
            make(tok, 0, smoothing=scale).loss(batch, torch.Generator().manual_seed(0))
        for o in range(4):
            p = (1 - math.exp(-scale)) * math.exp(-scale * o)
            share = (found.value.args[0] == o).double().mean().item()
            assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / n) + 1e-4)


@pytest.mark.parametrize("start, count", [(0, 0), (0, 3), (2, 1), (3, 2), (5, 1), (1, 5), (6, 0)])
def test_removing_tokens_is_what_slicing_does(start, count):
    rows, places = [[1, 2, 3, 4, 5, 6], [7, 8, 9, 10, 11, 12]], [(start, count), (4, 1)]
    out = remove_tokens(torch.tensor(rows), *torch.tensor(places).T, 0)
    for row, (at, n), found in zip(rows, places, out.tolist()):
        left = row[:at] + row[at + n :]
        assert found == left + [0] * (6 - len(left))


def test_the_curriculum_advances_stage_by_stage_no_slower_and_no_faster(tok, rows):
    """A schedule that never advances trains CoT, one that jumps trains No-CoT: both went unnoticed
    elsewhere."""

    def plan(**changes):
        return [(stage.name, stage.steps) for stage in make(tok, steps=100, **changes).stages(rows)]

    assert max(len(r.chain) for r in rows) == 36
    by_eights = {"remove": 8, "curriculum": 0.6}
    assert plan(**by_eights) == [*((f"icot-{n}", 15) for n in (8, 16, 24, 32)), ("icot-all", 40)]
    assert plan(remove=8, first_stage=0)[0] == ("icot-0", 10)
    assert plan(remove=40) == plan(curriculum=0) == [("icot-all", 100)]
    method, left = make(tok, steps=100, **by_eights), []
    assert [stage.decay for stage in method.stages(rows)] == [False] * 4 + [True]
    for stage in method.stages(rows):
        stage.before()
        left.append(stage.collate(rows)["left"].tolist())
        assert stage.lengths == [len(r.prompt) + n + len(r.tail) for r, n in zip(rows, left[-1])]
        last = stage.name == "icot-all"
        assert last == (method.prompt("Ava")[-1] == tok.end_think) == (method.thinker() is None)
    for before, after in itertools.pairwise(left):
        assert all(b == max(0, a - 8) for a, b in zip(before, after))
    assert left[0] == [max(0, len(r.chain) - 8) for r in rows] and left[-1] == [0] * len(rows)


def test_a_few_long_chains_make_no_stages_of_their_own(tok, rows):
    """GSM8K's longest chain has ten times the tokens of its median: the paper, too, removes all from some
    length on."""
    outlier = small_row(tok, [1], list(range(1, 200)), [2])
    assert len(make(tok).stages(rows * 10 + [outlier])) == len(make(tok).stages(rows))


def test_at_inference_it_answers_at_once_and_before_the_last_stage_it_says_what_is_left(tok):
    questions = [e.question for e in tasks.load("mini", "test", limit=8)]
    out = make(tok).eval().solve(questions)
    assert out.lengths.tolist() == [0] * 8 and out.latents is None
    out = make(tok, 8).eval().solve(questions)
    assert out.lengths.sum() > 0 and out.latents is not None


def test_a_removal_of_nothing_is_refused(tok):
    with pytest.raises(UserError, match="--remove 0 is out of range: 1 or more"):
        make(tok, remove=0)
