"""The transformer: every fast path beside the plain one, in both families."""

import pytest
import torch
import torch.nn.functional as F
from conftest import FAMILIES, tiny_model

from minilatent.backbones.pretrained import resize
from minilatent.cache import KVCache
from minilatent.model import ModelConfig, Transformer, attention, naive_attention, rope_angles, rotate

EXACT = dict(rtol=0, atol=1e-12)  # float64, values of order one
families = pytest.mark.parametrize("family", FAMILIES)


def model_of(family: str, **changes) -> Transformer:
    return tiny_model(scale=3.0, **{**FAMILIES[family], **changes}).double()


def some_ids(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 40, (rows, length), generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ attention


@pytest.mark.parametrize("masked", [False, True])
def test_fast_attention_equals_the_textbooks(masked):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 4, generator=g, dtype=torch.float64) for _ in range(3))
    mask = (torch.rand(2, 1, 7, 7, generator=g) < 0.5) | torch.eye(7, dtype=torch.bool) if masked else None
    torch.testing.assert_close(attention(q, k, v, mask), naive_attention(q, k, v, mask), **EXACT)


def test_attention_is_the_weighted_mean_that_one_writes_by_hand():
    g = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 1, 4, 8, generator=g, dtype=torch.float64) for _ in range(3))
    y = attention(q, k, v, None)
    for t in range(4):
        scores = [float(q[0, 0, t] @ k[0, 0, s]) / 8**0.5 for s in range(t + 1)]
        weights = torch.tensor(scores, dtype=torch.float64).softmax(0)
        torch.testing.assert_close(y[0, 0, t], sum(w * v[0, 0, s] for s, w in enumerate(weights)), **EXACT)


@families
def test_the_model_is_the_same_with_either_attention(family):
    fast, naive = model_of(family), model_of(family, attention="naive")
    ids = some_ids(2, 9)
    torch.testing.assert_close(fast(ids), naive(ids), **EXACT)


def test_grouped_queries_share_keys_and_values_head_by_neighbouring_head():
    """Heads 0, 1 use key/value head 0 and heads 2, 3 use head 1; interleaved the other way (0, 2 | 1, 3)
    every pretrained model with grouped queries would load without an error and produce nonsense."""
    grouped = tiny_model(scale=3.0, n_head=4, n_kv_head=2, head_dim=4).double()
    full = tiny_model(scale=3.0, n_head=4, n_kv_head=4, head_dim=4).double()
    state = grouped.state_dict()
    for name in list(state):
        if name.endswith(("attn.k.weight", "attn.v.weight")):
            w = state[name].view(2, 4, 16)
            state[name] = torch.stack([w[0], w[0], w[1], w[1]]).reshape(16, 16)
    full.load_state_dict(state)
    ids = some_ids(2, 8)
    torch.testing.assert_close(grouped(ids), full(ids), **EXACT)


# ------------------------------------------------------------------ the whole forward pass


def forward_by_hand(model: Transformer, ids: list[int]) -> torch.Tensor:
    """One row, one head at a time, nothing from model.py but the weights."""
    c, w = model.config, {n: p.detach() for n, p in model.named_parameters()}

    def norm(x, name, kind=c.norm):
        if kind == "layernorm":
            x = (x - x.mean()) / torch.sqrt(((x - x.mean()) ** 2).mean() + c.norm_eps) * w[name + ".weight"]
            return x + w[name + ".bias"] if c.bias else x
        return x / torch.sqrt((x**2).mean() + c.norm_eps) * w[name + ".weight"]

    def linear(x, name):
        biased = c.qkv_bias if name.endswith((".q", ".k", ".v")) else c.bias
        return w[name + ".weight"] @ x + (w[name + ".bias"] if biased else 0)

    def turn(x, position):
        if c.position == "learned":
            return x
        half, out = c.head_dim // 2, x.clone()
        for i in range(half):
            angle = torch.tensor(position * c.rope_theta ** (-2 * i / c.head_dim))
            cos, sin = torch.cos(angle).double(), torch.sin(angle).double()
            out[i], out[i + half] = x[i] * cos - x[i + half] * sin, x[i + half] * cos + x[i] * sin
        return out

    xs = [
        w["embed.weight"][i] + (w["embed_position.weight"][t] if c.position == "learned" else 0)
        for t, i in enumerate(ids)
    ]
    D, group = c.head_dim, c.n_head // c.n_kv_head
    for n in range(c.n_layer):
        at, keys, values, out = f"blocks.{n}", [], [], []
        for t, x in enumerate(xs):
            y = norm(x, at + ".norm1")
            q, k, v = (linear(y, f"{at}.attn.{name}").split(D) for name in "qkv")
            if c.qk_norm:
                q, k = [norm(h, at + ".attn.q_norm") for h in q], [norm(h, at + ".attn.k_norm") for h in k]
            keys.append([turn(h, t) for h in k]), values.append(v)
            heads = []
            for h in range(c.n_head):
                score = torch.stack([turn(q[h], t) @ keys[s][h // group] / D**0.5 for s in range(t + 1)])
                heads.append(sum(a * values[s][h // group] for s, a in enumerate(score.softmax(0))))
            out.append(x + linear(torch.cat(heads), at + ".attn.o"))
        for t, x in enumerate(out):
            y = norm(x, at + ".norm2")
            if c.mlp == "gelu":
                z = linear(y, at + ".mlp.up")
                z = 0.5 * z * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (z + 0.044715 * z**3)))
            else:
                gate = linear(y, at + ".mlp.gate")
                z = gate / (1 + torch.exp(-gate)) * linear(y, at + ".mlp.up")
            xs[t] = x + linear(z, at + ".mlp.down")
    return torch.stack([norm(x, "norm") for x in xs])


@families
def test_the_forward_pass_is_the_one_of_the_papers_written_out_by_hand(family):
    model = model_of(family)
    ids = some_ids(1, 6)
    # The model takes its rope angles in float32: a rounding of 1e-7, times weights of order one.
    torch.testing.assert_close(model(ids)[0], forward_by_hand(model, ids[0].tolist()), rtol=0, atol=2e-5)


@families
def test_logits_come_from_the_head_tied_or_not(family):
    model = model_of(family)
    h = model(some_ids(1, 3))
    table = model.embed.weight if model.config.tied else model.head.weight
    torch.testing.assert_close(model.logits(h[:, -1]), F.linear(h[:, -1], table), **EXACT)
    assert ("head.weight" in model.state_dict()) == (not model.config.tied)


@families
def test_embeddings_given_are_ids_given(family):
    model, ids = model_of(family), some_ids(2, 7)
    torch.testing.assert_close(model(embeds=model.embed(ids)), model(ids), **EXACT)


@families
def test_no_position_sees_a_later_one_by_gradient(family):
    model = model_of(family)
    x = model.embed(some_ids(1, 6)).detach().requires_grad_()
    for t in range(6):
        (grad,) = torch.autograd.grad(model(embeds=x)[0, t].sum(), x)
        seen = grad[0].abs().sum(-1) > 0
        assert seen.tolist() == [s <= t for s in range(6)]


@families
def test_right_padding_never_changes_a_real_position(family):
    model, ids = model_of(family), some_ids(1, 6)
    padded = torch.cat([ids, some_ids(1, 4, seed=9)], dim=1)
    torch.testing.assert_close(model(padded)[:, :6], model(ids), **EXACT)


@families
def test_explicit_positions_and_masks_are_honoured(family):
    """Left-padded rows with the right positions and mask are the unpadded rows. With the default positions
    they are not, where positions are learned (rope sees only differences)."""
    model, ids = model_of(family), some_ids(1, 5)
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = torch.ones(8, 8, dtype=torch.bool).tril()
    mask[3:, :3] = False
    positions = torch.tensor([0, 0, 0, 0, 1, 2, 3, 4])
    expected = model(ids)
    torch.testing.assert_close(model(padded, mask=mask, positions=positions)[:, 3:], expected, **EXACT)
    torch.testing.assert_close(
        model(padded, mask=mask[None], positions=positions[None])[:, 3:], expected, **EXACT
    )
    stretched = model(padded, mask=mask, positions=positions * 2)[:, 3:]
    assert (stretched - expected).abs().max() > 1e-3
    if model.config.position == "learned":
        assert (model(padded, mask=mask)[:, 3:] - expected).abs().max() > 1e-3


def test_rope_sees_only_differences_of_positions():
    config = ModelConfig(10, head_dim=8)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def score(i, j):
        at = lambda p: rope_angles(torch.tensor([[p]]), config)
        return float((rotate(q, *at(i)) * rotate(k, *at(j))).sum())

    for shift in (1, 17, 300):
        assert score(5 + shift, 2 + shift) == pytest.approx(score(5, 2), abs=1e-3 if shift > 99 else 1e-4)
    assert abs(score(5, 2) - score(2, 5)) > 1e-3  # the direction counts
    assert abs(score(5, 2) - score(5, 3)) > 1e-3
    assert score(4, 4) == pytest.approx(float((q * k).sum()), abs=1e-5)


# ------------------------------------------------------------------ the cache


@families
def test_token_by_token_with_a_cache_equals_one_forward_pass(family):
    model, ids = model_of(family), some_ids(2, 9)
    cache = KVCache(model.config, 2, 9, dtype=torch.float64)
    steps = [model(ids[:, t : t + 1], cache=cache) for t in range(9)]
    torch.testing.assert_close(torch.cat(steps, dim=1), model(ids), **EXACT)
    assert cache.lengths.tolist() == [9, 9]


@families
def test_chunks_padded_on_the_right_equal_one_forward_pass_row_by_row(family):
    """Positions counted with the padding, or padding left in the cache and attended to, are two of the
    commonest reasons why batch 8 is not 8 times batch 1."""
    model = model_of(family)
    new = [[3, 1, 4], [1, 4, 4], [4, 2, 1]]  # real tokens per chunk and row; each chunk is 4 wide
    rows = [some_ids(1, sum(new[c][b] for c in range(3)), seed=b)[0] for b in range(3)]
    cache, got, at = KVCache(model.config, 3, 16, dtype=torch.float64), [[], [], []], [0, 0, 0]
    for counts in new:
        chunk = torch.full((3, 4), 39)
        for b, n in enumerate(counts):
            chunk[b, :n] = rows[b][at[b] : at[b] + n]
        before = cache.lengths
        h = model(chunk, cache=cache)
        cache.lengths = before + torch.tensor(counts)  # padding is forgotten
        for b, n in enumerate(counts):
            got[b].append(h[b, :n])
            at[b] += n
    for b, row in enumerate(rows):
        torch.testing.assert_close(torch.cat(got[b]), model(row[None])[0], **EXACT)
    assert cache.lengths.tolist() == [8, 7, 9]


@pytest.mark.parametrize("rows", [[2, 0], [0, 2], [0, 1, 2], [1], [2, 1, 0], [0, 0, 1, 1, 2, 2]], ids=str)
def test_rows_of_the_cache_that_are_kept_are_as_they_were(rows):
    """Finished ones removed, gaps filled from behind, several samples of a question."""
    model, ids, lengths = model_of("qwen"), some_ids(3, 7), torch.tensor([3, 6, 4])
    cache = KVCache(model.config, 3, 7, dtype=torch.float64)
    model(ids[:, :6], cache=cache)
    cache.lengths = lengths
    cache.select(torch.tensor(rows))
    for _ in range(2 if max(lengths[rows]) < 6 else 1):  # the next tokens of each row
        new = ids[rows].gather(1, cache.lengths[:, None])
        expected = torch.stack([model(ids[[r], : n + 1])[0, n] for r, n in zip(rows, cache.lengths.tolist())])
        torch.testing.assert_close(model(new, cache=cache)[:, 0], expected, **EXACT)


def test_parts_of_a_cache_fill_the_whole():
    model, ids = model_of("qwen"), some_ids(3, 6)
    cache = KVCache(model.config, 3, 6, dtype=torch.float64)
    for first, last in ((0, 2), (2, 3)):
        model(ids[first:last, :5], cache=cache.part(first, last))
    assert cache.lengths.tolist() == [0, 0, 0]  # whoever fills it says how long the rows are
    cache.lengths += 5
    torch.testing.assert_close(model(ids[:, 5:], cache=cache)[:, 0], model(ids)[:, 5], **EXACT)


def test_a_full_cache_says_so_instead_of_writing_beside_it():
    model = model_of("mini")
    cache = KVCache(model.config, 1, 4, dtype=torch.float64)
    model(some_ids(1, 4), cache=cache)
    with pytest.raises(ValueError, match="4 positions, 5"):
        model(some_ids(1, 1), cache=cache)


# ------------------------------------------------------------------ weights


@families
def test_a_larger_vocabulary_keeps_the_old_logits_and_adds_rows_near_the_average(family):
    """`strict=False` once dropped resized embedding rows without a word."""
    model, ids = model_of(family), some_ids(1, 5)
    before, mean = model.logits(model(ids)), model.head_weight.mean(0)
    resize(model, 43)
    after = model.logits(model(ids))
    torch.testing.assert_close(after[..., :40], before, **EXACT)
    new = model.head_weight[40:]
    assert (new - mean).norm(dim=1).max() < 0.5 * model.head_weight[:40].norm(dim=1).mean()
    assert (new[0] - new[1]).abs().min() > 0 and (new[1] - new[2]).abs().min() > 0  # no two markers alike
    assert model.embed.weight.shape == (43, 16) and model.config.vocab_size == 43
    assert all(p.requires_grad for p in model.parameters())
    assert model.logits(model(torch.tensor([[42]]))).shape == (1, 1, 43)


def test_initial_weights_depend_on_the_generator_only_and_make_a_uniform_guess():
    def make(seed):
        torch.manual_seed(123 + seed)  # the global state must not matter
        model = Transformer(ModelConfig(500, n_layer=2, width=64, n_head=2, n_kv_head=2, hidden=96))
        model.init_weights(torch.Generator().manual_seed(7))
        return model

    a, b = make(0), make(1)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters()))
    assert a.embed.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert a.blocks[0].attn.o.weight.std().item() == pytest.approx(0.01, rel=0.05)  # 0.02 / √(2 · 2 layers)
    loss = F.cross_entropy(a.logits(a(torch.arange(100)[None]))[0], torch.arange(100, 200))
    assert abs(loss.item() - torch.log(torch.tensor(500.0)).item()) < 0.1


def test_qk_norm_makes_scores_blind_to_the_scale_of_the_keys():
    model = model_of("qwen", qkv_bias=False)
    ids, before = some_ids(1, 6), None
    for factor in (1.0, 10.0):
        with torch.no_grad():
            for block in model.blocks:
                block.attn.k.weight.mul_(factor)
        h = model(ids)
        if before is not None:
            torch.testing.assert_close(h, before, rtol=0, atol=1e-4)  # norm_eps against squares of order one
        before = h
