"""Latent-SFT, CoT-SFT and No-CoT: layouts by hand, losses row by row, and which stage trains what."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import small_row, tiny_model

from minilatent import tasks
from minilatent.batch import IGNORE, encode, segments
from minilatent.masks import LATENT, PREFIX, TAIL, TEXT
from minilatent.methods import build, latent_sft
from minilatent.run import resolve
from minilatent.trainer import Trainer

SMALL = {"eval_batch": 4, "max_chain": 6, "max_answer": 3, "batch_size": 4, "save_every": 100}
CLOSE = dict(rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def rows(tok):
    """Ragged: chains of 2 to 4 steps, the last segment often shorter."""
    found = encode(tasks.load("mini", "train", limit=9), tok, 512)[0]
    assert len({len(r.chain) for r in found}) > 1 and len({len(r.prompt) for r in found}) > 3
    return found


def make(tok, name="latent_sft", folder=None, **changes):
    own = {"k": 5, "pull": 0.0} if name == "latent_sft" else {}
    config = resolve({"method": name, **SMALL, **own, **changes})
    method = build(config, tok, tiny_model(tok.vocab_size, scale=3.0, context=512, tied=False), folder)
    if name == "latent_sft":
        method.encoder = tiny_model(tok.vocab_size, seed=1, scale=3.0, context=512, tied=False)
    return method.train()


def loss1(method, rows):
    return method.loss1(method.collate1(rows))


def loss2(method, items, seed=0):
    return method.loss2(method.collate2(items), torch.Generator().manual_seed(seed))


def watch(monkeypatch, name: str, argument: int) -> list:
    """What the function `name` of latent_sft.py gets as this argument, call by call."""
    seen, real = [], getattr(latent_sft, name)

    def spy(*args):
        seen.append(args[argument])
        return real(*args)

    monkeypatch.setattr(latent_sft, name, spy)
    return seen


# ------------------------------------------------------------------ CoT-SFT and No-CoT


@pytest.mark.parametrize("name", ["cot_sft", "no_cot"])
def test_the_loss_is_that_of_every_row_by_itself_shifted_by_one(tok, rows, name):
    method, nll = make(tok, name), []
    for row in rows:
        given, target = row.prompt, row.chain + row.tail
        if name == "no_cot":
            given, target = [*row.prompt, tok.end_think], row.answer
        logits = method.model.logits(method.model(torch.tensor([given + target])))[0]
        for i, y in enumerate(target, len(given) - 1):
            nll.append(F.cross_entropy(logits[i], torch.tensor(y)).item())
    batch = method.collate(rows)
    assert method.loss(batch)[0].item() == pytest.approx(sum(nll) / len(nll), abs=1e-5)
    assert not torch.isin(batch["labels"], torch.tensor([tok.pad, tok.latent])).any()


@pytest.mark.parametrize("name", ["cot_sft", "no_cot", "latent_sft"])
def test_the_prompt_is_what_training_shows_before_the_first_label(tok, rows, name):
    method, row = make(tok, name), rows[0]
    end = [tok.end_think] if name == "no_cot" else []
    assert method.prompt(row.text) == tok.encode(row.text) + [tok.think] + end
    if name != "latent_sft":
        batch = method.collate([row])
        first = int((batch["labels"][0] != IGNORE).nonzero()[0])
        assert batch["ids"][0, : first + 1].tolist() == method.prompt(row.text)


# ------------------------------------------------------------------ layouts


def test_the_three_layouts_of_a_small_row(tok):
    """Q = 1 2, chain = 10..14, r = 2: S = (10 11) (12 13) (14), answer 20 <eos>."""
    method, row = make(tok, ratio=2), small_row(tok, [1, 2], [10, 11, 12, 13, 14], [20, tok.eos])
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


# ------------------------------------------------------------------ stage 1


def latents_by_hand(method, row, ltim=True):
    """The encoder over one row, its mask by a loop: α (N, k), ids (N, k) and the full logits (N, V)."""
    tok, k = method.tok, method.config.k
    ids, kind = row.prompt, [PREFIX] * len(row.prompt)
    for segment in segments(row.chain, method.config.ratio):
        ids, kind = ids + segment + [tok.latent], kind + [TEXT] * len(segment) + [LATENT]
    ids, kind = ids + [tok.end_think], kind + [TAIL]
    sees = lambda i, j: j == i or j < i and not (ltim and kind[j] == LATENT)
    mask = torch.tensor([[sees(i, j) for j in range(len(ids))] for i in range(len(ids))])
    h = method.encoder(torch.tensor([ids]), mask=mask)[0, torch.tensor(kind) == LATENT]
    logits = h @ method.model.embed.weight.detach().T
    allowed = logits.clone()
    allowed[:, [tok.latent, tok.pad]] = -float("inf")
    best = allowed.sort(dim=-1, descending=True)
    return best.values[:, :k].softmax(-1), best.indices[:, :k], logits


def blocks_by_hand(method, row, ltim=True, ltsum=True) -> list[float]:
    """The mean loss of each target block of one row: S_2 .. S_N, and the tail."""
    E, x, what, position = method.model.embed.weight, [], [], []  # what: (kind, block, token)
    probs, top, _ = latents_by_hand(method, row, ltim)
    z = [sum(p * E[i] for p, i in zip(ps, js)) for ps, js in zip(probs, top)]

    def add(kind, block, token, at, embedding=None):
        x.append(E[token] if embedding is None else embedding)
        what.append((kind, block, token))
        position.append(at)

    for token in row.prompt:
        add("prefix", 0, token, len(x))
    main, parts = len(x), segments(row.chain, method.config.ratio)
    for i, following in enumerate([*parts[1:], []]):
        add("latent", i, None, main, z[i])
        for d, token in enumerate(following, 1):
            add("text", i, token, main + d)
        main += 1
    for d, token in enumerate(row.tail):
        add("tail", -1, token, main + d)

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
    """Masks, dual-track positions, latents in their slots, shifted labels and the mean over blocks: all at
    once, on a ragged batch against single rows. Padding attended to, or a latent slot left among the labels,
    shows here."""
    method = make(tok, **switches)
    masks = {name: switches.get(name, True) for name in ("ltim", "ltsum")}
    by_hand = [block for row in rows[:5] for block in blocks_by_hand(method, row, **masks)]
    loss, logged = loss1(method, rows[:5])
    assert loss.item() == pytest.approx(sum(by_hand) / len(by_hand), abs=2e-5)
    assert logged == {"sup": loss.item()}


def test_each_switch_of_the_ablations_changes_what_it_should_and_no_more(tok, rows):
    switches = {"": {}, "ltim": {"ltim": False}, "ltsum": {"ltsum": False}, "hidden": {"latent": "hidden"}}
    assert len({round(loss1(make(tok, **s), rows)[0].item(), 4) for s in switches.values()}) == 4
    a, b = (make(tok, **s).induce_rows(rows[:1])[1]["logits"] for s in ({}, {"ltim": False}))
    torch.testing.assert_close(a[0], b[0], **CLOSE)  # L_1 has no earlier latent to see
    assert (a[1:] - b[1:]).abs().amax(-1).min() > 1e-3
    hidden = make(tok, latent="hidden")
    z, label = hidden.induce_rows(rows[:1])
    assert set(label) == {"states"} and not hidden.mixed
    std = hidden.model.embed.weight.std()
    torch.testing.assert_close(z.std(-1) / std, torch.ones(len(z)), rtol=0, atol=1e-3)
    assert z.mean(-1).abs().max() < 1e-5


def test_padding_in_the_batch_changes_no_latent(tok, rows):
    method = make(tok)
    _, label = method.induce_rows(rows)
    alone = [latents_by_hand(method, row) for row in rows]
    torch.testing.assert_close(label["probs"], torch.cat([a[0] for a in alone]), **CLOSE)
    assert torch.equal(label["ids"], torch.cat([a[1] for a in alone]))


def test_no_label_of_any_stage_is_a_latent_slot_or_padding(tok, rows, monkeypatch):
    """Latent slots left among the labels have taught more than one released model to say <latent>."""
    by_block, plain = (watch(monkeypatch, n, 1) for n in ("cross_entropy_by_block", "cross_entropy"))
    method = make(tok)
    loss1(method, rows)
    loss2(with_labels(method, rows), list(range(len(rows))))
    text = sum(len(s) for r in rows for s in segments(r.chain, 2)[1:])
    tails = sum(len(r.tail) for r in rows)
    assert [len(x) for x in (*by_block, *plain)] == [text + tails, tails]
    assert not torch.isin(torch.cat([*by_block, *plain]), torch.tensor([tok.latent, tok.pad])).any()


def test_the_encoder_learns_through_the_probabilities_and_no_embedding_learns_through_a_mixture(tok, rows):
    method, rows = make(tok), rows[:3]
    loss, _ = loss1(method, rows)
    loss.backward()
    shown = set(method.collate1(rows)["decoder_ids"].unique().tolist()) - {tok.latent}
    touched = set(method.model.embed.weight.grad.abs().sum(-1).nonzero()[:, 0].tolist())
    assert touched <= shown - {tok.pad} and len(touched) > 10  # as ordinary tokens, never as part of a z
    assert method.encoder.embed.weight.grad.abs().sum() > 0
    assert method.encoder.head.weight.grad is None  # it has no head of its own


def uniform_kl(logits: torch.Tensor, segment: list[int]) -> float:
    """KL(uniform mixture of the segment's tokens ‖ softmax), token by token."""
    u = torch.tensor(1 / len(segment))
    return sum(u * (u.log() - logits.log_softmax(0)[t]) for t in segment).item()


@pytest.mark.parametrize("ratio", [2, 3])
def test_the_pull_is_the_kl_to_the_uniform_mixture_of_the_segment(tok, rows, ratio):
    method, terms = make(tok, pull=0.6, ratio=ratio), []
    for row in rows:
        lines = latents_by_hand(method, row)[2]
        terms += [uniform_kl(line, s) for line, s in zip(lines, segments(row.chain, ratio))]
    loss, logged = loss1(method, rows)
    assert logged["pull"] == pytest.approx(sum(terms) / len(terms), rel=1e-4)
    assert loss.item() == pytest.approx(logged["sup"] + 0.6 * logged["pull"], rel=1e-5)


def test_a_hidden_state_is_pulled_to_the_mean_embedding_of_its_segment(tok, rows):
    method = make(tok, latent="hidden", pull=1.0)
    W = method.model.embed.weight.detach()
    means = torch.stack([W[segment].mean(0) for row in rows for segment in segments(row.chain, 2)])
    means = (means - means.mean(1, keepdim=True)) / means.std(1, keepdim=True)
    gap = (method.induce_rows(rows)[0] / W.std() - means).pow(2).mean().item()
    loss, logged = loss1(method, rows)
    assert logged["pull"] == pytest.approx(gap, rel=1e-3)
    assert loss.item() == pytest.approx(logged["sup"] + logged["pull"], rel=1e-4)
    loss.backward()
    assert method.encoder.blocks[0].attn.q.weight.grad.abs().sum() > 0


def same_mixtures(probs, ids, expected: list[list[int]]) -> None:
    """Each mixture holds its segment's tokens evenly."""
    assert len(probs) == len(expected)
    for p, i, segment in zip(probs, ids, expected):
        assert i[p > 0].tolist() == segment
        torch.testing.assert_close(p[p > 0], torch.full((len(segment),), 1 / len(segment)), **CLOSE)


@pytest.mark.parametrize("changes", [{"ratio": 4}, {"ratio": 5}])
def test_the_segment_mixture_holds_each_latents_own_tokens_evenly(tok, rows, changes):
    method = make(tok, **changes)
    batch, expected = method.collate1(rows), [s for r in rows for s in method.segments(r)]
    assert len({len(s) for s in expected}) > 1
    same_mixtures(*method.segment_mixture(batch["segments"]), expected)


def test_the_compression_accuracy_decodes_freely_from_the_gold_chains_latents(tok):
    """Right by construction for a decoder that gives the gold answer, wrong for one that gives another."""
    method, val, asked = make(tok), tasks.load("mini", "val", limit=6), []

    def answer_given(rows, z):
        asked.append(len(rows))
        assert len(z) == sum(len(segments(r.chain, 2)) for r in rows)
        return SimpleNamespace(answers=[tok.decode(r.answer) if len(asked) == 1 else "1000" for r in rows])

    method.answer_given = answer_given
    assert method.compression_accuracy(val) == {"compression": pytest.approx(4 / 6)}
    assert asked == [4, 2]  # eval_batch 4: the short last batch counts


def test_answers_given_latents_are_those_of_the_closed_chain(tok, rows):
    """`Q <think> z_1 .. z_N </think>`, then greedy decoding, row by row."""
    method, rows = make(tok).eval(), rows[:4]
    z, E = method.induce_rows(rows)[0].detach(), method.model.embed.weight.detach()
    latents = z.split([len(segments(row.chain, 2)) for row in rows])
    for row, mine, answer in zip(rows, latents, method.answer_given(rows, z).answers):
        x, tokens = torch.cat([E[row.prompt], mine, E[[tok.end_think]]]), []
        while len(tokens) < 3 and tok.eos not in tokens:
            logits = method.model.logits(method.model(embeds=x[None])[0, -1])
            logits[tok.never] = -float("inf")
            tokens.append(int(logits.argmax()))
            x = torch.cat([x, E[tokens[-1:]]])
        assert answer == tok.decode(tokens)


# ------------------------------------------------------------------ labels and stage 2


def test_soft_labels_are_the_encoders_own_latents_row_by_row_whatever_the_batch(tok, rows, tmp_path):
    method = make(tok, folder=tmp_path)
    labels = method.soft_labels(rows)
    own = [list(range(s, s + n)) for s, n in zip(labels["start"].tolist(), labels["count"].tolist())]
    assert sorted(sum(own, [])) == list(range(len(labels["probs"])))  # each latent is one row's
    for row, mine in zip(rows, own):
        probs, ids, _ = latents_by_hand(method, row)
        torch.testing.assert_close(labels["probs"][mine].float(), probs, rtol=0, atol=1e-3)  # in 16 bits
        assert torch.equal(labels["ids"][mine].long(), ids)
    assert not torch.isin(labels["ids"], torch.tensor(tok.never)).any()
    method.encoder = None  # kept beside the run: no second computation
    again = method.soft_labels(rows)
    assert all(torch.equal(labels[n], again[n]) for n in labels)


@pytest.mark.parametrize("labels", ["uniform", "paths"])
def test_labels_without_an_encoder_average_over_a_segment_and_over_the_valid_chains(tok, labels):
    examples = [e for e in tasks.load("mini", "train", limit=40) if len(e.chains) > 1][:3]
    rows = encode(examples, tok, 512)[0]
    method = make(tok, labels=labels, ratio=3, k=60)
    method.encoder = None
    (stage,) = method.stages(rows)  # no stage 1
    stage.before()
    batch = stage.collate([2, 0])
    found = torch.zeros(len(batch["label_ids"]), tok.vocab_size)
    found.scatter_add_(1, batch["label_ids"], batch["label_probs"])
    expected = []
    for i in (2, 0):
        chains = examples[i].chains if labels == "paths" else [examples[i].steps]
        cut = [segments(tok.encode_chain(" ".join(steps)), 3) for steps in chains]
        for same_time in zip(*cut):
            counts = sum(torch.bincount(torch.tensor(s), minlength=tok.vocab_size) for s in same_time)
            expected.append(counts / (3 * len(chains)))
    torch.testing.assert_close(found, torch.stack(expected))
    assert stage.loss(batch, None)[0].isfinite()
    assert (labels == "paths") == bool((batch["label_probs"] > 0).sum(1).max() > 3)
    everything = make(tok, labels=labels, ratio=3, k=tok.vocab_size + 1).soft_labels(rows)  # no more than V
    assert everything["probs"].shape[1] == tok.vocab_size - len(tok.never)


def with_labels(method, rows):
    method.train_rows, method.labels = rows, method.soft_labels(rows)
    return method.train()


@pytest.mark.parametrize("weights", [{}, {"kl_weight": 0.25, "ce_weight": 3.0}])
def test_stage_2_is_every_row_by_itself_whatever_the_padding(tok, rows, weights):
    """The distribution *before* slot t is compared with the label of slot t; the latents come in order."""
    method = with_labels(make(tok, **weights), rows)
    items, kl, ce, E = [7, 0, 3, 5], [], [], method.model.embed.weight
    for i in items:
        row, a = rows[i], int(method.labels["start"][i])
        b = a + int(method.labels["count"][i])
        probs, ids = method.labels["probs"][a:b].float(), method.labels["ids"][a:b].long()
        z = [sum(p * E[j] for p, j in zip(ps, js)) for ps, js in zip(probs, ids)]
        x = torch.stack([*E[row.prompt], *z, *E[row.tail]])
        log_q = method.model.logits(method.model(embeds=x[None])[0]).log_softmax(-1)
        for t, (ps, js) in enumerate(zip(probs, ids), len(row.prompt)):
            kl.append(sum((p * (p.log() - log_q[t - 1, j])).item() for p, j in zip(ps, js) if p > 0))
        ce += [-log_q[t - 1, y].item() for t, y in enumerate(row.tail, len(row.prompt) + b - a)]
    loss, logged = loss2(method, items)
    assert logged["kl"] == pytest.approx(sum(kl) / len(kl), abs=1e-4)
    assert logged["ce"] == pytest.approx(sum(ce) / len(ce), abs=1e-4)
    c = method.config
    assert loss.item() == pytest.approx(c.kl_weight * logged["kl"] + c.ce_weight * logged["ce"], abs=1e-4)


def test_in_stage_2_the_embeddings_learn_as_tokens_only(tok, rows):
    method = with_labels(make(tok), rows)
    loss2(method, [0, 1, 2])[0].backward()
    batch = method.collate2([0, 1, 2])
    touched = set(method.model.embed.weight.grad.abs().sum(-1).nonzero()[:, 0].tolist())
    mixed = set(batch["label_ids"].unique().tolist())
    shown = set(batch["ids"].unique().tolist()) - {tok.latent, tok.pad}
    assert mixed - shown and touched <= shown
    assert all(p.grad is None for p in method.encoder.parameters())


def test_gumbel_noise_moves_input_and_target_and_repeats_with_its_generator(tok, rows, monkeypatch):
    quiet, noisy = (with_labels(make(tok, gumbel=g), rows) for g in (False, True))
    loss = lambda method, seed: loss2(method, [1, 2, 3], seed)[0].item()
    assert loss(noisy, 0) == loss(noisy, 0) != loss(noisy, 1)
    assert loss(quiet, 0) == loss(quiet, 1) != loss(noisy, 0)
    fed, target = watch(monkeypatch, "mix", 0), watch(monkeypatch, "sparse_kl", 1)
    loss(noisy, 0)
    assert torch.equal(fed[0], target[0])
    assert not torch.allclose(fed[0], noisy.collate2([1, 2, 3])["label_probs"], atol=1e-2)


def test_a_chain_of_the_batch_is_one_questions_latents(tok, rows):
    """The guard samples whole chains again: a latent must not be counted to its neighbour's chain."""
    batch = with_labels(make(tok), rows).collate2([4, 1, 8])
    counts = [len(segments(rows[i].chain, 2)) for i in (4, 1, 8)]
    assert batch["owner"].tolist() == [c for c, n in enumerate(counts) for _ in range(n)]


def test_hidden_latents_have_states_for_labels_and_teach_the_head_not_to_stop(tok, rows):
    method = with_labels(make(tok, latent="hidden"), rows)
    assert set(method.labels) == {"states", "start", "count"}
    loss, logged = loss2(method, [0, 1])
    loss.backward()
    assert loss.isfinite() and all(p.grad is None for p in method.encoder.parameters())
    batch, std = method.collate2([0, 1]), method.model.embed.weight.detach().std()
    target = batch["label_states"]
    assert target.std(-1) == pytest.approx(1.0, rel=0.01)  # whatever the embeddings' scale becomes
    h = method.model(embeds=method.embed_with(batch["ids"], batch["kind"], target * std))[:, :-1]
    ahead = h[batch["kind"][:, 1:] == LATENT]
    standard = ahead - ahead.mean(-1, keepdim=True)
    squared = ((standard / (standard.std(-1, keepdim=True) + 1e-6) - target) ** 2).mean()
    not_yet = -(1 - method.model.logits(ahead).softmax(-1)[:, tok.end_think]).log().mean()
    assert logged["kl"] == pytest.approx((squared + not_yet).item(), rel=1e-3)
    assert method.model.head.weight.grad[tok.end_think].abs().sum() > 0


# ------------------------------------------------------------------ the stages


def states(method) -> dict:
    return {n: t.clone() for n, t in method.state_dict().items()}


@pytest.fixture(scope="module")
def fitted(tok, rows, tmp_path_factory):
    """A run of all stages, three steps each, whose validation says that the second was the best. With the
    weights when each stage began and after each of its steps."""
    folder, story = tmp_path_factory.mktemp("run"), []
    method = make(tok, folder=folder, stage1_steps="3,3,3", steps=3, eval_every=1, pull=1.0, lr=1e-2, ratio=4)
    (folder / "state").mkdir()

    def spied(stage):
        log = SimpleNamespace(name=stage.name, begin={}, during=[], items=stage.items)
        story.append(log)

        def before():
            stage.before()
            log.begin = states(method)

        def validate(examples):
            log.during.append(states(method))
            return {"accuracy": (0.1, 0.9, 0.2)[len(log.during) - 1]}

        return dataclasses.replace(stage, before=before, validate=validate)

    Trainer(method, folder).fit([spied(stage) for stage in method.stages(rows)], [])
    return method, story


def test_the_stages_advance_and_each_begins_from_the_best_of_the_one_before(fitted):
    """A stage that never advances, and a stage that starts from the last instead of the best weights: both
    happened."""
    method, story = fitted
    assert [log.name for log in story] == ["stage1-encoder", "stage1-decoder", "stage1-both", "stage2"]
    for before, after in zip(story, story[1:]):
        best, last = before.during[1:]
        assert all(torch.equal(after.begin[n], best[n]) for n in after.begin)
        assert any(not torch.equal(best[n], last[n]) for n in best)  # the last weights are not the best
    assert not any(n.startswith("encoder.") for n in story[3].begin)  # thrown away
    final, best = states(method), story[3].during[1]
    assert all(torch.equal(final[n], best[n]) for n in final)


def test_each_phase_changes_its_half_and_leaves_the_other_as_it_was(fitted):
    """Weight decay would move a frozen half too, if the optimizer held it."""
    _, story = fitted
    for log, encoder, decoder in zip(story, (True, False, True, None), (False, True, True, True)):
        for half, learns in (("encoder.", encoder), ("model.", decoder)):
            names = {n for n in log.during[0] if n.startswith(half)}
            changed = {n for n in names if not torch.equal(log.begin[n], log.during[2][n])}
            if learns is None:
                assert not names
            elif learns:  # the encoder's head is never asked: no gradient, no change
                assert names - changed <= {"encoder.head.weight"}, log.name
            else:
                assert not changed, log.name


def test_the_encoder_begins_as_a_copy_of_the_decoder_and_all_rows_are_trained_on(fitted, rows):
    _, story = fitted
    begin = story[0].begin
    for n in begin:
        if n.startswith("encoder."):
            assert torch.equal(begin[n], begin["model." + n.removeprefix("encoder.")])
    assert [len(log.items) for log in story] == [len(rows)] * 4
