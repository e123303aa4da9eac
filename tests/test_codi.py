"""CODI: teacher, student and the distance between them, against one question at a time."""

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, small_row, tiny_model

from minilatent import tasks
from minilatent.batch import IGNORE, encode
from minilatent.methods import METHODS, codi
from minilatent.methods.codi import layer_distance
from minilatent.run import resolve

EXACT = dict(rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def rows(tok):
    return encode(tasks.load("mini", "train", limit=6), tok, 512)[0]


def make(tok, family="mini", **changes):
    model = tiny_model(tok.vocab_size, scale=3.0, **{**FAMILIES[family], "context": 160, "tied": False})
    config = resolve({"method": "codi", "num_latents": 4, **changes})
    return METHODS["codi"](config, tok, model.double()).train()


def naive(method, rows) -> tuple[torch.Tensor, ...]:
    """Loss, CE(teacher), CE(student) and D: no cache, no batch, no padding."""
    model, E = method.model, method.model.embed.weight

    def nll(logits, first: int, target: list[int]) -> list[torch.Tensor]:
        """The losses of a target whose first token is predicted at position `first`."""
        return [F.cross_entropy(logits[0, first + i], torch.tensor(y)) for i, y in enumerate(target)]

    teacher, student, held = [], [], []
    for row in rows:
        prompt, chain = row.prompt, row.chain[: 6 * (len(row.ends) - 1)]  # without its last step
        states: list = []
        logits = model.logits(model(torch.tensor([prompt + chain + row.tail]), states=states))
        teacher += nll(logits, len(prompt) - 1, chain + row.tail)
        of_teacher = [h[0, len(prompt + chain)].detach() for h in states]  # at </think>

        x = [E[i] for i in prompt]
        for _ in range(method.config.num_latents):
            x.append(method.projection(model(embeds=torch.stack(x)[None])[0, -1]))
        end, states = len(x), []
        x += [E[i] for i in row.tail]
        logits = model.logits(model(embeds=torch.stack(x)[None], states=states))
        student += nll(logits, end, row.answer)
        held.append(([h[0, end] for h in states], of_teacher))
    layers = []
    for layer in range(model.config.n_layer):
        s, t = (torch.stack([pair[side][layer] for pair in held]) for side in (0, 1))
        gap = (s - t).abs()
        layers.append(torch.where(gap < 1, gap * gap / 2, gap - 0.5).mean() / t.std())
    parts = [torch.stack(part).mean() for part in (teacher, student, layers)]
    return parts[0] + parts[1] + method.config.distill_weight * parts[2], *parts


@pytest.mark.parametrize(
    "changes",
    [{}, {"family": "gpt2"}, {"distill_weight": 20.0}, {"num_latents": 1}],
    ids=lambda c: "-".join(c) or "plain",
)
def test_a_batch_is_every_question_by_itself_without_a_cache_gradients_included(tok, rows, changes):
    """Latents that cannot see the question, padding attended to, a distance at the wrong column of a padded
    row, a gradient that stops at a latent or runs into the teacher's side: all are found here."""
    method, rows = make(tok, **changes), rows[2:]
    loss, logged = method.loss(method.collate(rows))
    expected, *parts = naive(method, rows)
    torch.testing.assert_close(loss, expected, **EXACT)
    logged = [logged[n] for n in ("teacher", "student", "distill")]
    assert logged == pytest.approx([p.item() for p in parts], abs=1e-10)
    loss.backward()
    ours = {n: p.grad.clone() for n, p in method.named_parameters()}
    method.zero_grad()
    expected.backward()
    for name, p in method.named_parameters():
        torch.testing.assert_close(ours[name], p.grad, **EXACT, msg=name)
    assert all(ours[n].abs().sum() > 0 for n in ours if n.startswith("projection."))


def test_the_distance_is_a_mean_over_layers_in_units_of_the_teachers_spread_and_the_teacher_does_not_move():
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 5, 4, generator=g, dtype=torch.double)
    student.requires_grad_(), teacher.requires_grad_()
    value = layer_distance(student, teacher)
    value.backward()
    assert teacher.grad is None and student.grad.abs().min() > 0
    by_layer = [F.smooth_l1_loss(s, t).item() / t.std().item() for s, t in zip(student, teacher)]
    assert value.item() == pytest.approx(sum(by_layer) / 3, abs=1e-12)
    assert layer_distance(teacher, teacher) == 0
    shifted = teacher.detach() + torch.tensor([0.5, 2.0, 0.0])[:, None, None]  # both halves of smooth-L1
    spread = teacher.detach().std((1, 2))
    by_hand = (0.125 / spread[0] + 1.5 / spread[1]) / 3
    assert layer_distance(shifted, teacher).item() == pytest.approx(by_hand.item(), abs=1e-12)


def test_both_sides_meet_at_end_think_right_before_the_answer(tok, rows, monkeypatch):
    """A student's state at one kind of token has nothing to learn from a teacher's at another."""
    method, columns, real = make(tok), [], codi.at_column

    def spy(states, column):
        columns.append((states[0].shape[1], column))
        return real(states, column)

    monkeypatch.setattr(codi, "at_column", spy)
    batch = method.collate(rows)
    method.loss(batch)
    (kept, student), (whole, teacher) = columns
    tail = batch["ids"][:, -kept:]  # what follows the latents
    for b, row in enumerate(rows):
        for ids, at in ((tail, student), (batch["teacher_ids"], teacher)):
            assert ids[b, at[b]] == tok.end_think and ids[b, at[b] + 1] == row.answer[0]
    assert whole == batch["teacher_ids"].shape[1]


def test_the_layouts_and_labels_of_a_small_row(tok):
    row = small_row(tok, [1, 2], [10, 11, 12, 13, 14], [20, tok.eos], (2, 5))
    other = small_row(tok, [1, 2, 3], [10, 11, 12, 13, 14], [20, 21, tok.eos], (2, 5))
    t, e, L, eos = tok.think, tok.end_think, tok.latent, tok.eos
    batch = make(tok).collate([row, other])
    assert batch["ids"][0].tolist() == [tok.pad, 1, 2, t, L, L, L, L, e, 20, eos]
    assert batch["ids"][1].tolist() == [1, 2, 3, t, L, L, L, L, e, 20, 21]
    assert batch["labels"].tolist() == [[20, eos, IGNORE], [20, 21, eos]]
    assert batch["teacher_ids"][0].tolist() == [1, 2, t, 10, 11, e, 20, eos, tok.pad]
    assert batch["teacher_ids"][1].tolist() == [1, 2, 3, t, 10, 11, e, 20, 21]
    assert batch["teacher_labels"][0].tolist() == [IGNORE] * 2 + [10, 11, e, 20, eos, IGNORE, IGNORE]
    assert batch["teacher_labels"][1].tolist() == [IGNORE] * 3 + [10, 11, e, 20, 21, eos]
    assert batch["end"].tolist() == [5, 6]
    only_step = small_row(tok, [1], [10, 11], [20], (2,))
    assert make(tok).teacher_chain(only_step) == []  # it says the answer


def test_no_label_is_a_latent_slot_or_padding(tok, rows):
    batch = make(tok).collate(rows)
    for name in ("labels", "teacher_labels"):
        assert not torch.isin(batch[name], torch.tensor([tok.pad, tok.latent])).any()


def test_the_projection_ends_in_a_layernorm_at_the_scale_of_the_embeddings_and_a_seed_repeats_it(tok):
    method, again, other = make(tok), make(tok), make(tok, seed=1)
    x = 30 * torch.randn(50, 16, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    std = method.model.embed.weight.std().expand(50)
    torch.testing.assert_close(method.projection(x).std(-1, correction=0), std, rtol=1e-3, atol=0)
    for p, q in zip(method.projection.parameters(), again.projection.parameters()):
        assert torch.equal(p, q)
    assert not torch.equal(method.projection[0].weight, other.projection[0].weight)


def test_it_thinks_at_inference_as_its_student_was_trained_to(tok, rows):
    method = make(tok).eval()
    out = method.solve([row.text for row in rows])
    assert out.lengths.tolist() == [4] * 6 and out.closed.all()
    with torch.no_grad():
        for b, row in enumerate(rows):
            x = method.model.embed.weight[row.prompt]
            for t in range(4):
                z = method.projection(method.model(embeds=x[None])[0, -1])
                torch.testing.assert_close(out.latents[b, t], z, **EXACT)
                x = torch.cat([x, z[None]])
