"""Coconut: the batched forward against one question at a time, and the curriculum's stages."""

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, small_row, tiny_model

from minilatent import tasks
from minilatent.batch import IGNORE, encode
from minilatent.config import UserError
from minilatent.methods import METHODS, coconut
from minilatent.run import resolve

EXACT = dict(rtol=0, atol=1e-10)
STAGES = (0, 1, 2, 3, 4)  # with 6 latents, 2 a step: 4 is the last


@pytest.fixture(scope="module")
def rows(tok):
    found = encode(tasks.load("mini", "train", limit=9), tok, 512)[0]
    assert len({len(r.prompt) for r in found}) > 3
    assert {len(r.ends) for r in found} == {2, 3, 4, 5, 6}  # stage 3 has problems with fewer steps
    return found


def make(tok, stage=4, family="mini", **changes):
    options = {"method": "coconut", "max_chain": 8, "max_answer": 4, "curriculum": 0.5, **changes}
    model = tiny_model(tok.vocab_size, scale=3.0, **{**FAMILIES[family], "context": 160, "tied": False})
    method = METHODS["coconut"](resolve(options), tok, model.double())
    method.current_stage = stage
    return method.train()


def words_left(tok, row, stage: int) -> list[int]:
    """The steps behind the first `stage`, of six tokens each."""
    return row.chain[6 * stage :] if stage < 4 else []


def naive(method, rows, stage: int, detached: bool = False) -> torch.Tensor:
    """No cache, no batch, no padding: the whole prefix is read again for every latent."""
    model, losses = method.model, []
    for row in rows:
        x = [model.embed.weight[i] for i in row.prompt]
        for _ in range(min(2 * stage, 6)):
            z = model(embeds=torch.stack(x)[None])[0, -1]
            x.append(z.detach() if detached else z)
        before, target = len(x) - 1, words_left(method.tok, row, stage) + row.tail
        x += [model.embed.weight[i] for i in target]
        logits = model.logits(model(embeds=torch.stack(x)[None])[0])
        losses += [F.cross_entropy(logits[before + i], torch.tensor(y)) for i, y in enumerate(target)]
    return torch.stack(losses).mean()


def gradients(method, loss) -> dict[str, torch.Tensor]:
    method.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in method.named_parameters()}


@pytest.mark.parametrize("stage, family", [*((s, "mini") for s in STAGES), (2, "gpt2"), (4, "gpt2")])
def test_a_batch_is_every_question_by_itself_without_a_cache_gradients_included(tok, rows, stage, family):
    """Padding attended to, positions that count it, a latent that cannot see the question because no cache
    was passed, a latent slot among the labels, a gradient that stops at a latent: each was found in public
    code, each shows here."""
    method, rows = make(tok, stage, family), rows[2:6]
    loss, _ = method.loss(method.collate(rows))
    expected = naive(method, rows, stage)
    torch.testing.assert_close(loss, expected, **EXACT)
    ours, theirs = gradients(method, loss), gradients(method, expected)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], **EXACT, msg=name)
    if stage == 4:  # without the gradient through the latents, the comparison above would fail
        cut_off = gradients(method, naive(method, rows, stage, detached=True))
        assert max((cut_off[n] - theirs[n]).abs().max() for n in theirs) > 1e-4


def test_the_loss_reaches_every_latent_of_every_row(tok, rows, monkeypatch):
    """Gradients flow through all the sequential passes, for every row of the batch."""
    method, fed, real = make(tok), [], coconut.think_through

    def spy(model, ids, latent, pad, feed):
        def keep(h):
            z = feed(h)
            z.retain_grad()
            fed.append(z)
            return z

        return real(model, ids, latent, pad, keep)

    monkeypatch.setattr(coconut, "think_through", spy)
    method.loss(method.collate(rows))[0].backward()
    assert [z.shape for z in fed] == [(len(rows), 1, 16)] * 6
    assert all((z.grad.abs().amax((1, 2)) > 1e-8).all() for z in fed)


@pytest.mark.parametrize("stage", STAGES)
def test_the_layout_of_each_stage(tok, stage):
    """Two steps: 10 11 and (a space) 12 13 14. Stage s has 2s latents and the steps from s + 1 on; the last
    has none."""
    row = small_row(tok, [1, 2], [10, 11, 12, 13, 14], [20, tok.eos], (2, 5))
    longer = small_row(tok, [1, 2, 3], [10, 11, 12, 13, 14], [20, 21, tok.eos], (2, 5))
    left = {0: [10, 11, 12, 13, 14], 1: [12, 13, 14]}.get(stage, [])
    slots, t, e = [tok.latent] * min(2 * stage, 6), tok.think, tok.end_think
    batch = make(tok, stage).collate([row, longer])
    assert batch["ids"][0].tolist() == [tok.pad, 1, 2, t, *slots, *left, e, 20, tok.eos]
    assert batch["ids"][1].tolist() == [1, 2, 3, t, *slots, *left, e, 20, 21]
    unlabelled = [IGNORE] * (3 + len(slots))
    assert batch["labels"][0].tolist() == [*unlabelled, *left, e, 20, tok.eos, IGNORE]
    assert batch["labels"][1].tolist() == [*unlabelled, *left, e, 20, 21, tok.eos]


def test_no_label_of_any_stage_is_a_latent_slot_or_padding(tok, rows):
    for stage in STAGES:
        labels = make(tok, stage).collate(rows)["labels"]
        assert not torch.isin(labels, torch.tensor([tok.pad, tok.latent])).any()
        targets = sum(len(words_left(tok, r, stage)) + len(r.tail) for r in rows)
        assert (labels != IGNORE).sum() == targets, stage


def test_the_curriculum_advances_stage_by_stage_no_slower_and_no_faster(tok, rows):
    def plan(**changes):
        stages = make(tok, **{"steps": 100, **changes}).stages(rows)
        return [(int(stage.name.removeprefix("coconut-")), stage.steps) for stage in stages]

    assert plan() == [(1, 16), (2, 16), (3, 16), (4, 50)]
    assert plan(first_stage=0, curriculum=0.8) == [(0, 20), (1, 20), (2, 20), (3, 20), (4, 20)]
    assert plan(num_latents=2) == [(1, 50), (2, 50)] and plan(num_latents=0) == [(1, 100)]
    assert plan(first_stage=0, curriculum=0) == [(4, 100)]
    assert plan(num_latents=3, latents_a_step=1, curriculum=0.3) == [(1, 10), (2, 10), (3, 10), (4, 70)]
    assert [stage.decay for stage in make(tok).stages(rows)] == [False, False, False, True]
    method, seen = make(tok, first_stage=0), []
    for stage in method.stages(rows):
        stage.before()
        batch = stage.collate(rows)
        latents = (batch["ids"] == tok.latent).sum(1)
        assert (latents == latents[0]).all()  # the short problems, too
        left = [words_left(tok, r, method.current_stage) for r in rows]
        assert stage.lengths == [len(r.prompt + w + r.tail) + latents[0] for r, w in zip(rows, left)]
        seen.append((stage.name, int(latents[0])))
    assert seen == [("coconut-0", 0), ("coconut-1", 2), ("coconut-2", 4), ("coconut-3", 6), ("coconut-4", 6)]
    assert method.current_stage == 4


@pytest.mark.parametrize("stage", STAGES)
def test_it_thinks_at_inference_as_it_was_trained_to_in_every_stage(tok, rows, stage):
    """As many hidden states as the stage has, then words until </think> or, in the last stage, </think> at
    once."""
    method, examples = make(tok, stage).eval(), tasks.load("mini", "train", limit=9)
    method.model.head.weight.data[tok.end_think] *= 1.5  # so that some chains end
    out = method.solve([e.question for e in examples])
    n, table = min(2 * stage, 6), method.model.embed.weight
    longest = n if stage == 4 else n + 8
    assert (out.lengths >= n).all() and (out.lengths <= longest).all()
    with torch.no_grad():
        for b, row in enumerate(rows):
            x = table[row.prompt]
            for t in range(int(out.lengths[b])):
                h = method.model(embeds=x[None])[0, -1]
                logits = method.model.logits(h)
                logits[tok.never] = -float("inf")
                fed = h if t < n else table[logits.argmax()]
                torch.testing.assert_close(out.latents[b, t], fed, **EXACT)
                x = torch.cat([x, fed[None]])


def test_a_number_of_latents_that_is_no_whole_number_of_steps_adds_fewer_in_the_last_one(tok):
    method = make(tok, num_latents=5, latents_a_step=2)
    assert [method.latents(s) for s in range(method.final_stage + 1)] == [0, 2, 4, 5, 5]
    assert method.final_stage == 4
    with pytest.raises(UserError, match="--latents_a_step 0 is out of range: 1 or more"):
        make(tok, latents_a_step=0)
