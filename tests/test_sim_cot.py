"""SIM-CoT: the decoder's loss against one step at a time, and what it adds to Coconut."""

import pytest
import torch
import torch.nn.functional as F
from conftest import small_row, tiny_model

from minilatent import tasks
from minilatent.batch import IGNORE, encode
from minilatent.config import UserError
from minilatent.methods import METHODS
from minilatent.run import resolve

EXACT = dict(rtol=0, atol=1e-10)
STAGES = (1, 2, 3, 4)  # with 6 latents, 2 a step: 4 is the last


@pytest.fixture(scope="module")
def rows(tok):
    return encode(tasks.load("mini", "train", limit=9), tok, 512)[0][2:6]


def make(tok, stage=4, name="sim_cot", **changes):
    model = tiny_model(tok.vocab_size, scale=3.0, context=160, tied=False).double()
    method = METHODS[name](resolve({"method": name, **changes}), tok, model)
    method.current_stage = stage
    return method.train()


def latents(method, row, n: int) -> torch.Tensor:
    """z_1..z_n (n, C) of one question, no cache, no padding."""
    x = method.model.embed.weight[row.prompt]
    for _ in range(n):
        x = torch.cat([x, method.model(embeds=x[None])[0, -1:]])
    return x[len(row.prompt) :]


@pytest.mark.parametrize("stage", STAGES)
def test_the_decoder_reads_a_steps_latents_and_is_asked_for_that_step_gradients_included(tok, rows, stage):
    method, losses = make(tok, stage), []
    told = min(stage, 3)
    torch.nn.init.normal_(method.decoder.head.weight)  # no longer a copy: the wrong model would be noticed
    for row in rows:
        z = latents(method, row, 2 * told)
        for i in range(min(told, len(row.ends))):
            step = row.chain[6 * i : row.ends[i]]
            x = torch.cat([z[2 * i : 2 * i + 2], method.decoder.embed.weight[step]])
            logits = method.decoder.logits(method.decoder(embeds=x[None])[0])
            losses += [F.cross_entropy(logits[1 + j], torch.tensor(y)) for j, y in enumerate(step)]
    batch = method.collate(rows)
    loss = method.step_loss(method.states(batch), batch)
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(loss, expected, **EXACT)
    ours = torch.autograd.grad(loss, list(method.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(expected, list(method.parameters()), allow_unused=True)
    for (name, _), a, b in zip(method.named_parameters(), ours, theirs):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, **EXACT, msg=name)
    assert ours[0].abs().sum() > 0  # through the latents, into the model


def test_the_loss_is_coconuts_and_the_decoders_on_top(tok, rows):
    method, plain = make(tok, step_weight=0.5), make(tok, name="coconut")
    batch = method.collate(rows)
    loss, logged = method.loss(batch)
    words, _ = plain.loss(plain.collate(rows))
    assert logged["words"] == pytest.approx(words.item(), abs=1e-10)
    assert loss.item() == pytest.approx(words.item() + 0.5 * logged["steps"], abs=1e-10)


def test_stage_0_has_no_latents_and_nothing_to_tell(tok, rows):
    method = make(tok, 0)
    batch = method.collate(rows)
    assert "step_labels" not in batch
    plain = make(tok, 0, "coconut")
    torch.testing.assert_close(method.loss(batch)[0], plain.loss(plain.collate(rows))[0], **EXACT)


def test_the_steps_of_a_batch_by_hand(tok):
    """Two steps, of two and three tokens; one step. Stage 2 has latents for both."""
    two = small_row(tok, [1, 2], [10, 11, 12, 13, 14], [20, tok.eos], (2, 5))
    one = small_row(tok, [1, 2, 3], [15, 16], [20, tok.eos], (2,))
    batch = make(tok, 2).collate([two, one])
    assert batch["step_labels"].tolist() == [[10, 11, IGNORE], [12, 13, 14], [15, 16, IGNORE]]
    assert batch["step_owner"].tolist() == [0, 0, 1] and batch["step_number"].tolist() == [0, 1, 0]
    assert make(tok, 1).collate([two, one])["step_number"].tolist() == [0, 0]


def test_at_inference_the_decoder_is_not_used(tok, rows):
    method = make(tok).eval()
    questions = [e.question for e in tasks.load("mini", "test", limit=4)]
    before = method.solve(questions).answers
    for p in method.decoder.parameters():
        p.data.fill_(float("nan"))
    assert method.solve(questions).answers == before


def test_each_step_needs_the_same_number_of_latents(tok):
    with pytest.raises(UserError, match="--num_latents must be a multiple of --latents_a_step"):
        make(tok, num_latents=5)
