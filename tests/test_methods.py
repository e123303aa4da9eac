"""Latent-SFT and its two companions: layouts by hand, losses row by row, and who learns what in which stage."""

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_model

from minilatent.batch import IGNORE, Row, cut_evenly, encode, segments
from minilatent.config import resolve
from minilatent.masks import LATENT, PREFIX, TAIL, TEXT
from minilatent.methods import METHODS, latent_sft
from minilatent.tasks import words
from minilatent.trainer import Trainer

SMALL = {
    "k": 5,
    "pull": 0.0,
    "pull_end": 0.0,
    "eval_batch": 4,
    "max_chain": 6,
    "max_answer": 3,
    "batch_size": 4,
    "save_every": 100,
}


@pytest.fixture(scope="module")
def rows(tok):
    """Ragged: chains of 2 to 4 steps, the last segment often shorter."""
    found = encode(words.load("mini", "train", 9), tok, 512)[0]
    assert len({len(r.chain) for r in found}) > 1 and len({len(r.question) for r in found}) > 3
    return found


def make(tok, name="latent_sft", model=None, folder=None, **changes):
    config = resolve({"method": name, **SMALL, **changes})
    model = model or tiny_model(tok.vocab_size, scale=3.0, context=512, tied=False)
    method = METHODS[name](config, tok, model, folder)
    if name == "latent_sft":
        method.encoder = copy.deepcopy(tiny_model(tok.vocab_size, seed=1, scale=3.0, context=512, tied=False))
    return method.train()


def run(method, name: str, rows, noise=None, progress=0.0):
    collate, loss = getattr(method, "collate" + name), getattr(method, "loss" + name)
    return loss(collate(rows), noise, progress)


# --- CoT and No-CoT ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cot_sft", "no_cot"])
def test_the_loss_is_that_of_every_row_by_itself_shifted_by_one(tok, rows, name):
    method, nll = make(tok, name), []
    for row in rows:
        prompt = row.question + [tok.think] + ([] if name == "cot_sft" else [tok.end_think])
        target = (row.chain + [tok.end_think] if name == "cot_sft" else []) + row.answer
        logits = method.model.logits(method.model(torch.tensor([prompt + target])))[0]
        nll += [
            F.cross_entropy(logits[len(prompt) + i - 1], torch.tensor(y)).item() for i, y in enumerate(target)
        ]
    loss, _ = run(method, "", rows)
    assert loss.item() == pytest.approx(sum(nll) / len(nll), abs=1e-5)
    labels = method.collate(rows)["labels"]
    assert not torch.isin(labels, torch.tensor([tok.pad, tok.latent])).any() and (labels == IGNORE).any()


def test_cot_and_no_cot_prompts_are_what_training_shows_before_the_first_label(tok, rows):
    question = words.load("mini", "train", 1)[0].question
    for name, end in (
        ("cot_sft", [tok.think]),
        ("no_cot", [tok.think, tok.end_think]),
        ("latent_sft", [tok.think]),
    ):
        method = make(tok, name)
        assert method.prompt(question) == rows[0].question + end
        if name != "latent_sft":
            batch = method.collate(rows[:1])
            first = int((batch["labels"][0] != IGNORE).nonzero()[0])
            assert batch["ids"][0, : first + 1].tolist() == method.prompt(question)


def test_a_trained_batch_of_one_kind_lowers_its_own_loss(tok, rows):
    """A flipped sign anywhere would raise it."""
    for name, suffix in (("cot_sft", ""), ("no_cot", ""), ("latent_sft", "1")):
        method = make(tok, name, model=tiny_model(tok.vocab_size, context=512), pull=0.5, pull_end=0.5)
        optimizer = torch.optim.Adam(method.parameters(), lr=3e-3)
        losses = []
        for _ in range(12):
            loss, _ = run(method, suffix, rows)
            optimizer.zero_grad(), loss.backward(), optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.1, name


# --- layouts -----------------------------------------------------------------------------------------------------


def test_the_three_layouts_of_a_small_row(tok):
    """Q = 1 2, chain = 10..14, r = 2: S = (10 11) (12 13) (14), answer 20 <eos>."""
    method, row = make(tok, ratio=2), Row([1, 2], [10, 11, 12, 13, 14], [20, tok.eos])
    t, e, L = tok.think, tok.end_think, tok.latent
    x = method.encoder_layout(row)
    assert x.ids == [1, 2, t, 10, 11, L, 12, 13, L, 14, L, e]
    assert x.kind == [PREFIX] * 3 + [TEXT, TEXT, LATENT] * 2 + [TEXT, LATENT, TAIL]
    assert x.block == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 0]
    x = method.decoder_layout(row)  # S_1 is never shown
    assert x.ids == [1, 2, t, L, 12, 13, L, 14, L, e, 20, tok.eos]
    assert x.kind == [PREFIX] * 3 + [LATENT, TEXT, TEXT, LATENT, TEXT, LATENT] + [TAIL] * 3
    assert x.block == [0, 0, 0, 1, 1, 1, 2, 2, 3, 0, 0, 0]
    x = method.student_layout(row)
    assert x.ids == [1, 2, t, L, L, L, e, 20, tok.eos]
    assert x.kind == [PREFIX] * 3 + [LATENT] * 3 + [TAIL] * 3
    assert method.student_layout(row, closed_only=True).ids == [1, 2, t, L, L, L, e]


@pytest.mark.parametrize("ratio", [1, 2, 3, 4, 8])
def test_every_ratio_makes_one_latent_a_segment_everywhere(tok, rows, ratio):
    method = make(tok, ratio=ratio)
    for row in rows:
        n = -(-len(row.chain) // ratio)
        for layout in (method.encoder_layout, method.decoder_layout, method.student_layout):
            assert layout(row).kind.count(LATENT) == n == len(segments(row.chain, ratio))


# --- stage 1 -----------------------------------------------------------------------------------------------------


def latents_by_hand(method, row, ltim=True):
    """The encoder over one row, its mask by a loop: α (N, k), ids (N, k) and the full logits (N, V)."""
    tok, config = method.tok, method.config
    ids, kind = row.question + [tok.think], [PREFIX] * (len(row.question) + 1)
    for s in range(0, len(row.chain), config.ratio):
        segment = row.chain[s : s + config.ratio]
        ids, kind = ids + segment + [tok.latent], kind + [TEXT] * len(segment) + [LATENT]
    ids, kind = ids + [tok.end_think], kind + [TAIL]
    mask = torch.tensor(
        [
            [j == i or j < i and not (ltim and kind[j] == LATENT) for j in range(len(ids))]
            for i in range(len(ids))
        ]
    )
    h = method.encoder(torch.tensor([ids]), mask=mask)[0, [i for i, k in enumerate(kind) if k == LATENT]]
    logits = h @ method.model.embed.weight.detach().T
    allowed = logits.clone()
    allowed[:, [tok.latent, tok.pad]] = -float("inf")
    best = allowed.sort(dim=-1, descending=True)
    return best.values[:, : config.k].softmax(-1), best.indices[:, : config.k], logits


def blocks_by_hand(method, row, ltim=True, ltsum=True) -> list[float]:
    """The mean loss of each target block of one row: S_2 .. S_N, and the tail."""
    tok, r, E = method.tok, method.config.ratio, method.model.embed.weight
    probs, top, _ = latents_by_hand(method, row, ltim)
    z = [sum(p * E[i] for p, i in zip(ps, js)) for ps, js in zip(probs, top)]
    parts = [row.chain[s : s + r] for s in range(0, len(row.chain), r)]
    x, what, position = [], [], []  # what: (kind, block, token)
    for p, token in enumerate(row.question + [tok.think]):
        x.append(E[token]), what.append(("prefix", 0, token)), position.append(p)
    main = len(x)
    for i in range(len(parts)):
        x.append(z[i]), what.append(("latent", i, None)), position.append(main)
        for d, token in enumerate(parts[i + 1] if i + 1 < len(parts) else [], 1):
            x.append(E[token]), what.append(("text", i, token)), position.append(main + d)
        main += 1
    for token in [tok.end_think, *row.answer]:
        x.append(E[token]), what.append(("tail", -1, token)), position.append(main)
        main += 1

    def sees(i, j):
        (row_kind, a, _), (key_kind, b, _) = what[i], what[j]
        if j > i or not ltsum:
            return j <= i
        if row_kind == "text":
            return a == b and key_kind in ("latent", "text")
        return key_kind != "text"

    mask = torch.tensor([[sees(i, j) for j in range(len(x))] for i in range(len(x))])
    h = method.model(embeds=torch.stack(x)[None], mask=mask, positions=torch.tensor(position))[0]
    losses: dict = {}
    for i, (kind, block, token) in enumerate(what):
        if kind in ("text", "tail"):
            nll = F.cross_entropy(method.model.logits(h[i - 1]), torch.tensor(token)).item()
            losses.setdefault((kind, block), []).append(nll)
    return [sum(v) / len(v) for v in losses.values()]


@pytest.mark.parametrize("switches", [{}, {"ltim": False}, {"ltsum": False}, {"ratio": 4}, {"ratio": 3}])
def test_stage_1_is_every_row_by_itself_whatever_the_padding(tok, rows, switches):
    """Masks, dual-track positions, latents in their slots, shifted labels and the mean over blocks: all at once, on a
    ragged batch against single rows. Padding attended to, or a latent slot left among the labels, shows here."""
    method = make(tok, **switches)
    masks = {name: switches.get(name, True) for name in ("ltim", "ltsum")}
    by_hand = [block for row in rows[:5] for block in blocks_by_hand(method, row, **masks)]
    loss, logged = run(method, "1", rows[:5])
    assert loss.item() == pytest.approx(sum(by_hand) / len(by_hand), abs=2e-5)
    assert logged == {"sup": loss.item()}


def test_each_switch_of_the_ablations_changes_what_it_should_and_no_more(tok, rows):
    losses = {
        name: run(make(tok, **changes), "1", rows)[0].item()
        for name, changes in (
            ("all", {}),
            ("ltim", {"ltim": False}),
            ("ltsum", {"ltsum": False}),
            ("hidden", {"latent": "hidden"}),
        )
    }
    assert len({round(v, 4) for v in losses.values()}) == 4
    on, off = make(tok), make(tok, ltim=False)
    x = on.tensors([on.encoder_layout(rows[0])])
    a, b = (m.induce(x["ids"], x["kind"])[2] for m in (on, off))
    torch.testing.assert_close(a[0], b[0], rtol=0, atol=1e-5)  # L_1 has no earlier latent to see
    assert (a[1:] - b[1:]).abs().amax(-1).min() > 1e-3
    z, sparse, logits = make(tok, latent="hidden").induce(x["ids"], x["kind"])
    std = on.model.embed.weight.std()
    assert sparse is None and logits is None
    torch.testing.assert_close(z.std(-1) / std, torch.ones(len(z)), rtol=0, atol=1e-3)
    assert z.mean(-1).abs().max() < 1e-5


def test_padding_in_the_batch_changes_no_latent(tok, rows):
    method = make(tok)
    batch = method.collate1(rows)
    _, (probs, ids), _ = method.induce(batch["ids"], batch["kind"])
    alone = [latents_by_hand(method, row) for row in rows]
    torch.testing.assert_close(probs, torch.cat([a[0] for a in alone]), rtol=0, atol=1e-5)
    assert torch.equal(ids, torch.cat([a[1] for a in alone]))


def test_no_label_of_any_stage_is_a_latent_slot_or_padding(tok, rows, monkeypatch):
    """`Latent slots left among the CE labels` taught more than one released model to say <latent>."""
    seen = []
    for name in ("cross_entropy", "cross_entropy_by_block"):
        real = getattr(latent_sft, name)
        monkeypatch.setattr(
            latent_sft,
            name,
            lambda logits, labels, *a, real=real: (seen.append(labels), real(logits, labels, *a))[1],
        )
    method = make(tok)
    run(method, "1", rows)
    method.train_rows, method.labels = rows, method.soft_labels(rows)
    run(method, "2", list(range(len(rows))))
    expected = [sum(len(s) for r in rows for s in segments(r.chain, 2)[1:]), 0]
    tails = sum(1 + len(r.answer) for r in rows)
    assert [len(x) for x in seen] == [expected[0] + tails, tails]
    assert not torch.isin(torch.cat(seen), torch.tensor([tok.latent, tok.pad])).any()


def test_the_encoder_learns_through_the_probabilities_only_and_the_embeddings_not_through_the_mixture(
    tok, rows
):
    method = make(tok)
    loss, _ = run(method, "1", rows[:3])
    loss.backward()
    shown = set(method.collate1(rows[:3])["decoder_ids"].unique().tolist()) - {tok.latent}
    touched = set(method.model.embed.weight.grad.abs().sum(-1).nonzero()[:, 0].tolist())
    assert touched <= shown - {tok.pad} and len(touched) > 10  # as ordinary tokens, never as part of a z
    assert method.encoder.embed.weight.grad.abs().sum() > 0
    assert method.encoder.head.weight.grad is None  # it has no head of its own
    z = method.induce(*(method.collate1(rows[:3])[n] for n in ("ids", "kind")))[0]
    frozen = make(tok)
    frozen.induce = lambda ids, kind: (z.detach(), None, None)
    same, _ = run(frozen, "1", rows[:3])
    assert same.item() == pytest.approx(loss.item(), abs=1e-6)


def test_the_pull_is_the_kl_to_the_uniform_mixture_of_the_segment_and_fades(tok, rows):
    for ratio in (2, 3):
        method = make(tok, pull=1.0, pull_end=0.2, ratio=ratio)
        terms = []
        for row in rows:
            logits = latents_by_hand(method, row)[2]
            for segment, line in zip(segments(row.chain, ratio), logits):
                u = 1 / len(segment)
                terms.append(
                    sum(u * (torch.tensor(u).log() - line.log_softmax(0)[t]) for t in segment).item()
                )
        plain = run(make(tok, ratio=ratio), "1", rows)[0].item()
        for progress, weight in ((0.0, 1.0), (0.5, 0.6), (1.0, 0.2)):
            loss, logged = run(method, "1", rows, progress=progress)
            assert logged["pull"] == pytest.approx(sum(terms) / len(terms), rel=1e-4)
            assert loss.item() - plain == pytest.approx(weight * logged["pull"], rel=1e-3)


def test_a_hidden_state_is_pulled_to_the_mean_embedding_of_its_segment(tok, rows):
    method = make(tok, latent="hidden", pull=1.0, pull_end=1.0)
    W, x = method.model.embed.weight.detach(), method.collate1(rows)
    means = torch.stack([W[segment].mean(0) for row in rows for segment in segments(row.chain, 2)])
    means = (means - means.mean(1, keepdim=True)) / means.std(1, keepdim=True)
    gap = (method.induce(x["ids"], x["kind"])[0] / W.std() - means).pow(2).mean().item()
    loss, logged = run(method, "1", rows)
    assert logged["pull"] == pytest.approx(gap, rel=1e-3)
    assert loss.item() == pytest.approx(logged["sup"] + logged["pull"], rel=1e-4)
    loss.backward()
    assert method.encoder.blocks[0].attn.q.weight.grad.abs().sum() > 0


def test_the_segment_mixture_holds_each_latents_own_tokens_evenly(tok, rows):
    for ratio in (2, 3, 4):
        method = make(tok, ratio=ratio)
        batch = method.collate1(rows)
        probs, ids = method.segment_mixture(batch["ids"], batch["kind"], batch["block"])
        expected = [s for r in rows for s in segments(r.chain, ratio)]
        assert len(probs) == len(expected) and any(len(s) < ratio for s in expected)
        for p, i, segment in zip(probs, ids, expected):
            assert i[p > 0].tolist() == segment
            torch.testing.assert_close(
                p[p > 0], torch.full((len(segment),), 1 / len(segment)), rtol=0, atol=1e-6
            )


# --- soft labels and stage 2 ---------------------------------------------------------------------------------------


def test_soft_labels_are_the_encoders_own_latents_row_by_row_whatever_the_batch(tok, rows, tmp_path):
    method = make(tok, folder=tmp_path)
    labels = method.soft_labels(rows)
    own = [list(range(s, s + n)) for s, n in zip(labels["start"].tolist(), labels["count"].tolist())]
    assert sorted(sum(own, [])) == list(range(len(labels["probs"])))  # each latent is one row's
    for i, row in enumerate(rows):
        mine = own[i]
        probs, ids, _ = latents_by_hand(method, row)
        torch.testing.assert_close(labels["probs"][mine].float(), probs, rtol=0, atol=1e-3)  # kept in 16 bits
        assert torch.equal(labels["ids"][mine].long(), ids)
    torch.testing.assert_close(
        labels["probs"].float().sum(-1), torch.ones(len(labels["probs"])), rtol=0, atol=2e-3
    )
    assert not torch.isin(labels["ids"], torch.tensor(tok.never)).any()
    method.encoder = None  # kept beside the run: no second computation
    again = method.soft_labels(rows)
    assert all(torch.equal(labels[n], again[n]) for n in labels)


def with_labels(method, rows):
    method.train_rows, method.labels = rows, method.soft_labels(rows)
    return method.train()


@pytest.mark.parametrize("weights", [{}, {"kl_weight": 0.25, "ce_weight": 3.0}])
def test_stage_2_is_every_row_by_itself_whatever_the_padding(tok, rows, weights):
    """The distribution *before* slot t is held against the label of slot t; the latents of the batch come in order."""
    method = with_labels(make(tok, **weights), rows)
    items, kl, ce, E = [7, 0, 3, 5], [], [], method.model.embed.weight
    for i in items:
        row, a = rows[i], int(method.labels["start"][i])
        b = a + int(method.labels["count"][i])
        probs, ids = method.labels["probs"][a:b].float(), method.labels["ids"][a:b].long()
        x = [E[t] for t in row.question + [tok.think]]
        n = len(x)
        x += [sum(p * E[j] for p, j in zip(ps, js)) for ps, js in zip(probs, ids)]
        tail = [tok.end_think, *row.answer]
        x += [E[t] for t in tail]
        log_q = method.model.logits(method.model(embeds=torch.stack(x)[None])[0]).log_softmax(-1)
        for t, (ps, js) in enumerate(zip(probs, ids)):
            kl.append(sum((p * (p.log() - log_q[n + t - 1, j])).item() for p, j in zip(ps, js) if p > 0))
        ce += [-log_q[n + b - a + t - 1, y].item() for t, y in enumerate(tail)]
    loss, logged = run(method, "2", items)
    assert logged["kl"] == pytest.approx(sum(kl) / len(kl), abs=1e-4)
    assert logged["ce"] == pytest.approx(sum(ce) / len(ce), abs=1e-4)
    c = method.config
    assert loss.item() == pytest.approx(c.kl_weight * logged["kl"] + c.ce_weight * logged["ce"], abs=1e-4)


def test_in_stage_2_the_embeddings_learn_as_tokens_only(tok, rows):
    method = with_labels(make(tok), rows)
    loss, _ = run(method, "2", [0, 1, 2])
    loss.backward()
    batch = method.collate2([0, 1, 2])
    touched = set(method.model.embed.weight.grad.abs().sum(-1).nonzero()[:, 0].tolist())
    mixed = set(batch["label_ids"].unique().tolist())
    shown = set(batch["ids"].unique().tolist()) - {tok.latent, tok.pad}
    assert mixed - shown and touched <= shown
    assert all(p.grad is None for p in method.encoder.parameters())


def test_gumbel_noise_moves_input_and_target_and_repeats_with_its_generator(tok, rows, monkeypatch):
    quiet, noisy = (with_labels(make(tok, gumbel=g), rows) for g in (False, True))
    loss = lambda m, seed: run(m, "2", [1, 2, 3], noise=torch.Generator().manual_seed(seed))[0].item()
    assert loss(noisy, 0) == loss(noisy, 0) != loss(noisy, 1)
    assert loss(quiet, 0) == loss(quiet, 1) != loss(noisy, 0)
    mixed, judged = [], []
    real_mix, real_kl = latent_sft.mix, latent_sft.sparse_kl
    monkeypatch.setattr(latent_sft, "mix", lambda p, *a: (mixed.append(p), real_mix(p, *a))[1])
    monkeypatch.setattr(latent_sft, "sparse_kl", lambda l, p, i: (judged.append(p), real_kl(l, p, i))[1])
    loss(noisy, 0)
    assert torch.equal(mixed[0], judged[0])
    assert not torch.allclose(mixed[0], noisy.collate2([1, 2, 3])["label_probs"], atol=1e-2)


def test_a_chain_of_the_batch_is_one_questions_latents(tok, rows):
    """The guard draws whole chains again: a latent counted to its neighbour's chain would be drawn with the wrong one."""
    method = with_labels(make(tok), rows)
    batch = method.collate2([4, 1, 8])
    counts = [len(segments(rows[i].chain, 2)) for i in (4, 1, 8)]
    assert batch["chain"].tolist() == [c for c, n in enumerate(counts) for _ in range(n)]


def test_hidden_latents_have_states_for_labels_and_teach_the_head_not_to_stop(tok, rows):
    method = with_labels(make(tok, latent="hidden"), rows)
    assert set(method.labels) == {"states", "start", "count"}
    loss, _ = run(method, "2", [0, 1])
    loss.backward()
    assert loss.isfinite() and all(p.grad is None for p in method.encoder.parameters())
    head = method.model.head.weight
    batch, E = method.collate2([0, 1]), method.model.embed.weight.detach()
    assert batch["label_states"].std(-1) == pytest.approx(
        1.0, rel=0.01
    )  # whatever the embeddings' scale becomes
    h = method.model(embeds=method.embed_with(batch["ids"], batch["kind"], batch["label_states"] * E.std()))[
        :, :-1
    ]
    ahead = h[batch["kind"][:, 1:] == LATENT]
    target, standard = batch["label_states"], ahead - ahead.mean(-1, keepdim=True)
    squared = ((standard / (standard.std(-1, keepdim=True) + 1e-6) - target) ** 2).mean()
    not_yet = -(1 - method.model.logits(ahead).softmax(-1)[:, tok.end_think]).log().mean()
    assert run(method, "2", [0, 1])[1]["kl"] == pytest.approx((squared + not_yet).item(), rel=1e-3)
    assert head.grad[tok.end_think].abs().sum() > 0


# --- the stages ------------------------------------------------------------------------------------------------------


def states(method) -> dict:
    return {n: t.clone() for n, t in method.state_dict().items()}


@pytest.fixture
def fitted(tok, rows, tmp_path, monkeypatch):
    """A run of all stages, three steps each, whose validation says that the second of them was the best: what the
    weights were when a stage began, at its best, and at its end."""
    monkeypatch.setattr("minilatent.methods.latent_sft.accuracy", lambda *a: {"accuracy": 0.0})
    method = make(
        tok,
        stage1_steps="3,3,3",
        steps=3,
        eval_every=1,
        folder=tmp_path,
        pull=1.0,
        pull_end=0.5,
        lr=1e-2,
        ratio=4,
    )
    (tmp_path / "state").mkdir()
    real, story = method.stages, []

    def spied(train, val):
        for stage in real(train, val):
            log = {
                "name": stage.name,
                "begin": states(method),
                "during": [],
                "items": stage.items,
                "trained": stage.trained,
            }
            story.append(log)

            def validate(log=log):
                log["during"].append(states(method))
                return {"accuracy": (0.1, 0.9, 0.2)[len(log["during"]) - 1]}

            stage.validate = validate
            yield stage

    method.stages = spied
    Trainer(method.config, method, tmp_path).fit(rows, [])
    return method, story


def test_the_stages_advance_and_each_begins_from_the_best_of_the_one_before(fitted):
    """A stage that never advances, and a stage that starts from the last instead of the best weights: both happened."""
    method, story = fitted
    assert [log["name"] for log in story] == ["stage1-encoder", "stage1-decoder", "stage1-both", "stage2"]
    for before, after in zip(story, story[1:]):
        best = before["during"][1]
        assert all(torch.equal(after["begin"][n], best[n]) for n in after["begin"])
        changed = [n for n in best if not torch.equal(best[n], before["during"][2][n])]
        assert changed  # the last weights are others than the best
    assert not any(n.startswith("encoder.") for n in story[3]["begin"])  # thrown away
    final, best = states(method), story[3]["during"][1]
    assert all(torch.equal(final[n], best[n]) for n in final)


def test_each_phase_changes_its_half_and_leaves_the_other_as_it_was(fitted):
    """Weight decay would move a frozen half too, if the optimizer held it."""
    _, story = fitted
    for log, encoder, decoder in zip(story, (True, False, True, None), (False, True, True, True)):
        for half, learns in (("encoder.", encoder), ("model.", decoder)):
            names = [n for n in log["during"][0] if n.startswith(half)]
            changed = [n for n in names if not torch.equal(log["begin"][n], log["during"][2][n])]
            if learns is None:
                assert not names
            elif learns:
                # The encoder's head is never asked: no gradient, no change.
                assert set(names) - set(changed) <= {"encoder.head.weight"}, log["name"]
            else:
                assert not changed, log["name"]


def test_the_encoder_begins_as_a_copy_of_the_decoder_and_all_rows_are_trained_on(fitted, rows):
    _, story = fitted
    begin = story[0]["begin"]
    for n in begin:
        if n.startswith("encoder."):
            assert torch.equal(begin[n], begin["model." + n[len("encoder.") :]])
    assert [len(log["items"]) for log in story] == [len(rows)] * 4


def test_the_compression_accuracy_decodes_freely_from_the_gold_chains_latents(tok):
    """Right by construction for a decoder that says the gold answer, wrong for one that says another."""
    method, val = make(tok), words.load("mini", "val", 6)
    asked = []

    def answer_given(rows, z):
        asked.append((len(rows), z.shape))
        assert z.shape[0] == sum(len(segments(r.chain, 2)) for r in rows)
        out = type("Out", (), {})()
        out.answers = [tok.decode(r.answer) if i % 2 == 0 else "1000" for i, r in enumerate(rows)]
        return out

    method.answer_given = answer_given
    assert method.compression_accuracy(val) == {"compression": 0.5}
    assert [n for n, _ in asked] == [4, 2]  # eval_batch 4: the short last batch counts


def test_answers_given_latents_are_those_of_the_closed_chain(tok, rows):
    """`Q <think> z_1 .. z_N </think>`, then greedy decoding, row by row."""
    method = make(tok).eval()
    batch = method.collate1(rows[:4])
    z = method.induce(batch["ids"], batch["kind"])[0].detach()
    out, at = method.answer_given(rows[:4], z), 0
    E = method.model.embed.weight.detach()
    for row, answer in zip(rows, out.answers):
        n = len(segments(row.chain, 2))
        x = torch.cat([E[row.question + [tok.think]], z[at : at + n], E[[tok.end_think]]])
        at, said = at + n, []
        while len(said) < 3 and tok.eos not in said:
            logits = method.model.logits(method.model(embeds=x[None])[0, -1])
            logits[tok.never] = -float("inf")
            said.append(int(logits.argmax()))
            x = torch.cat([x, E[said[-1:]]])
        assert answer == tok.decode(said)


def test_uniform_labels_need_no_encoder(tok, rows, tmp_path, monkeypatch):
    """`--labels uniform`: stage 2 alone, on the even mixture of each segment's tokens."""
    method = make(tok, labels="uniform", ratio=3)
    method.encoder = None
    stages = list(method.stages(rows, []))
    assert [s.name for s in stages] == ["stage2"] and [p[0] for p in method.plan(rows)] == ["stage2"]
    batch, expected = method.collate2([5, 2]), [s for i in (5, 2) for s in segments(rows[i].chain, 3)]
    assert len(batch["label_probs"]) == len(expected)
    for p, i, segment in zip(batch["label_probs"], batch["label_ids"], expected):
        assert i[p > 0].tolist() == segment and p.sum().item() == pytest.approx(1.0)
    assert run(method, "2", [5, 2])[0].isfinite()


# --- segments --------------------------------------------------------------------------------------------------------


def pieces_by_hand(method, row) -> list[list[int]]:
    """The chain's segments by their definition, one row, one token at a time."""
    tok, T = method.tok, len(row.chain)
    if method.config.segmentation == "step":
        return [row.chain[a:b] for a, b in zip([0, *row.ends], row.ends)]
    n, ids = -(-T // method.config.ratio), row.question + [tok.think]
    surprise = []
    for token in row.chain:
        logits = method.model.logits(method.model(torch.tensor([ids]))[0, -1])
        surprise.append(-logits.log_softmax(0)[token].item())
        ids = ids + [token]
    weight = [s / (sum(surprise) / T) + 1 for s in surprise]
    ends = []
    for i in range(1, n + 1):
        end = sum(1 for t in range(T) if sum(weight[:t]) + weight[t] / 2 < sum(weight) * i / n)
        end = max(end, (ends[-1] if ends else 0) + 1)
        ends.append(min(end, T - (n - i)))
    return [row.chain[a:b] for a, b in zip([0, *ends], ends)]


@pytest.mark.parametrize("how, ratio", [("step", 2), ("adaptive", 2), ("adaptive", 4)])
def test_segmentations_are_those_of_a_naive_loop_and_all_layouts_follow(tok, how, ratio):
    rows = encode(words.load("mini", "train", 9), tok, 512)[0]  # its own: adaptive rows remember their cuts
    method = make(tok, segmentation=how, ratio=ratio)
    method.cut(rows)
    expected = [pieces_by_hand(method, r) for r in rows]
    assert [method.segments(r) for r in rows] == expected and all(s for pieces in expected for s in pieces)
    if how == "adaptive":  # as many as fixed, and not the same
        assert [len(p) for p in expected] == [-(-len(r.chain) // ratio) for r in rows]
        assert len({len(s) for p in expected for s in p[:-1]}) > 1
    else:
        assert [len(p) for p in expected] == [len(e.steps) for e in words.load("mini", "train", 9)]
    for row, pieces in zip(rows, expected):
        text = lambda layout: [
            [t for t, k, b in zip(layout.ids, layout.kind, layout.block) if k == TEXT and b == i]
            for i in range(1, len(pieces) + 1)
        ]
        assert text(method.encoder_layout(row)) == pieces and text(method.decoder_layout(row)) == pieces[
            1:
        ] + [[]]
        assert method.student_layout(row).kind.count(LATENT) == len(pieces)
    batch, flat = method.collate1(rows), [s for pieces in expected for s in pieces]
    probs, ids = method.segment_mixture(batch["ids"], batch["kind"], batch["block"])
    assert len(probs) == len(flat)
    for p, i, segment in zip(probs, ids, flat):
        assert i[p > 0].tolist() == segment
        torch.testing.assert_close(p[p > 0], torch.full((len(segment),), 1 / len(segment)), rtol=0, atol=1e-6)
    labels = method.uniform_labels(rows)
    assert labels["count"].tolist() == [len(p) for p in expected] and len(labels["probs"]) == len(flat)
    assert run(method, "1", rows)[0].isfinite()
    assert method.ratio == (1 if how == "step" else ratio)


def test_even_cuts_by_hand():
    cut = lambda weight, pieces: cut_evenly(
        torch.tensor([weight]), torch.tensor([len(weight)]), torch.tensor([pieces])
    )[0]
    assert cut([1.0] * 6, 3) == [2, 4, 6]
    assert cut([9.0, 1, 1, 1, 1, 1], 2) == [1, 6]  # half of the weight is one token
    assert cut([1.0, 1, 1, 1, 1, 95], 3) == [4, 5, 6]  # no piece is empty, at the end
    assert cut([95.0, 1, 1, 1, 1, 1], 3) == [1, 2, 6]  # nor at the start
    assert cut([1.0, 2.0], 2) == [1, 2] and cut([3.0], 1) == [1]
    both = cut_evenly(
        torch.tensor([[1.0] * 4 + [0.0] * 2, [9.0, 1, 1, 1, 1, 1]]),
        torch.tensor([4, 6]),
        torch.tensor([4, 2]),
    )
    assert both == [[1, 2, 3, 4], [1, 6]]  # rows of a batch do not see each other


def test_a_row_that_nobody_has_cut_is_no_row_without_latents(rows, tok):
    with pytest.raises(ValueError, match="adaptive"):
        make(tok, segmentation="adaptive").student_layout(Row([1], [2, 3], [4]))
