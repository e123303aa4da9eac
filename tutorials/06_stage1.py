# %% [markdown]
# # 6 · Stage 1: encoder and decoder
#
# *35 minutes. Needs: lessons 4 and 5.*
#
# Stage 1 of Latent-SFT makes a teacher's chain of latents out of a chain of words.
#
# ```
#   << 12   L    * 3   L   = 36   L   ..           encoder, a copy of the model, under the induction mask
#           │          │          │
#        logits     logits     logits              h(L_i) · Wᵀ, W: the decoder's embeddings. It has no head of its own
#           │top k     │          │
#           Z1         Z2         Z3               superpositions
#           │          │          │
#   Q <t>   Z1   * 3   Z2   = 36  Z3  ..  </t> 53  decoder, the model, under the supervision mask:
#                ~~~        ~~~~           ~~~~~   cross-entropy on what follows each latent
# ```
#
# The decoder can continue with `* 3` only if Z1 tells that `<< 12` has been said, so the encoder has to put it there, and in a form
# that the decoder reads: a mixture of word embeddings.

# %%
import copy

import torch
from lesson import BLUE, GREY, ORANGE, plt, show

from minilatent import tasks
from minilatent.batch import encode
from minilatent.config import resolve
from minilatent.masks import LATENT, TAIL, TEXT, dual_track_positions, induction_mask, supervision_mask
from minilatent.methods.latent_sft import LatentSFT
from minilatent.run import initial_model

config = resolve({"method": "latent_sft", "ratio": 2})
model, tok, *_ = initial_model(config)
method = LatentSFT(config, tok, model)
method.encoder = copy.deepcopy(model)  # both begin as mini-base
rows, _ = encode(tasks.load("mini", "train", limit=2000), tok, 512)
val = tasks.load("mini", "val", limit=48)

# %% [markdown]
# ## The encoder, in ten lines


# %%
def my_induce(row):
    """One row: the latents' weights over the whole vocabulary (N, V) and the mixtures (N, C)."""
    layout = method.encoder_layout(row)
    ids, kind = torch.tensor([layout.ids]), torch.tensor([layout.kind])
    h = method.encoder(ids, mask=induction_mask(kind))[kind == LATENT]  # (N, C)
    W = model.embed.weight.detach()
    logits = h @ W.T  # (N, V)
    logits[:, tok.never] = float("-inf")
    best, top = logits.topk(config.k)  # (N, k)
    alpha = best.softmax(-1)
    return logits.softmax(-1), (alpha[:, :, None] * W[top]).sum(1)  # (N, V), (N, C)


row = rows[3]
batch = method.collate1([row])
with torch.no_grad():
    probs, z = my_induce(row)
    theirs = method.induce(batch["ids"], batch["kind"])[0]
assert torch.allclose(z, theirs, atol=1e-4)


def latents_table(row, top=3):
    with torch.no_grad():
        probs, _ = my_induce(row)
    for segment, p in zip(method.segments(row), probs):
        said = "  ".join(f"{tok.name(int(i)):>8} {v:.2f}" for v, i in zip(*p.topk(top)))
        print(f"   S = {' '.join(tok.name(i) for i in segment):12}  latent: {said}")


latents_table(row)

# %% [markdown]
# Untrained, the encoder is a language model that meets an unknown token L: its latents foretell something, perhaps the next word. They do
# not say what the segment *was*.
#
# ## The loss, by hand
#
# L_sup is the cross-entropy of each token behind a latent, averaged inside its block, then over blocks (each S_(i+1) is one, the answer is
# one). A position says the *next* token; what stands before a latent says nothing, for a latent is no label.


# %%
@torch.no_grad()
def my_loss(row):
    layout, z = method.decoder_layout(row), my_induce(row)[1]
    ids, kind, block = (torch.tensor([x]) for x in (layout.ids, layout.kind, layout.block))
    x = model.embed(ids)
    x[kind == LATENT] = z  # the latents in their slots
    h = model(embeds=x, mask=supervision_mask(kind, block), positions=dual_track_positions(kind))[0]
    log_q, blocks = model.logits(h).log_softmax(-1), {}
    for t in range(len(layout.ids) - 1):
        following = layout.kind[t + 1]
        if following in (TEXT, TAIL):
            key = layout.block[t + 1] if following == TEXT else "tail"
            blocks.setdefault(key, []).append(-log_q[t, layout.ids[t + 1]])
    return sum(sum(losses) / len(losses) for losses in blocks.values()) / len(blocks)


method.train()
mine, (_, logged) = my_loss(row), method.loss1(batch, None, 0.0)
print("by hand", round(float(mine), 4), " loss1", {name: round(v, 4) for name, v in logged.items()})
assert abs(mine - logged["sup"]) < 1e-3

# %% [markdown]
# The second number, `pull`, is ours and not the paper's: the KL divergence (lesson 7 writes it out) from the uniform mixture of the segment's tokens to the encoder's
# distribution. Left alone, a small encoder invents a private code: nearly one-hot latents of tokens that have nothing to do
# with the segment, which the decoder learns to decipher. It works, and stage 2 finds it hard to imitate. The paper's plain recipe is
# `--pull 0 --pull_end 0`: the weight goes from the one to the other in the course of stage 1, and `loss1` leaves the term out where it is 0.
#
# `--latent hidden` is an ablation of the paper: no logits and no top k. `induce` then returns the encoder's hidden state at L itself, standardised as in lesson 3,
# and it is pulled to the embedding of that mixture. On GSM8K-Aug the paper's Latent-SFT(2) falls by it from 50.4 to 41.1 %. <!-- allow: 50.4, 41.1 % -->
#
# ## Train it, now
#
# Three phases: the encoder alone (it must speak the decoder's language), the decoder alone, both. The real run takes
# 250<!-- sum(map(int, config.stage1_steps.split(","))):d --> steps of 64<!-- config.batch_size:d --> examples; here are 75 of 16, in some seconds.


# %%
def train(modules, steps, start, total, lr=1e-3):
    for p in method.parameters():
        p.requires_grad_(False)
    parameters = [p for m in modules for p in m.parameters()]
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    method.train()
    for step in range(start, start + steps):
        chosen = [rows[i] for i in torch.randint(len(rows), (16,), generator=generator)]
        loss, logged = method.loss1(method.collate1(chosen), None, step / total)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        history.append(logged)


def own_mass(some):
    """The probability that latents give to their own segment's tokens, on average."""
    masses = []
    with torch.no_grad():
        for r in some:
            for segment, p in zip(method.segments(r), my_induce(r)[0]):
                masses.append(p[list(set(segment))].sum())
    return torch.stack(masses).mean().item()


generator, history = torch.Generator().manual_seed(0), []
before = {"mass": own_mass(rows[:30]), "accuracy": method.compression_accuracy(val)["compression"]}
phases = [("encoder", [method.encoder], 30), ("decoder", [model], 15), ("both", [method.encoder, model], 30)]
at = 0
for name, modules, steps in phases:
    train(modules, steps, at, 75)
    at += steps
    print(f"after '{name}': " + "  ".join(f"{k} {v:.2f}" for k, v in history[-1].items()))
after = {"mass": own_mass(rows[:30]), "accuracy": method.compression_accuracy(val)["compression"]}
print(before, after)

figure, ax = plt.subplots(figsize=(8, 3.6))
ax.plot([h["sup"] for h in history], color=BLUE, label="L_sup: the decoder's cross-entropy")
has = [(i, h["pull"]) for i, h in enumerate(history) if "pull" in h]
ax.plot(*zip(*has), color=ORANGE, label="pull: from the segment's mixture to the latent")
for x, (name, _, steps) in zip((0, 30, 45), phases):
    ax.axvline(x, color=GREY, linewidth=1, linestyle=":")
    ax.text(x + 0.8, ax.get_ylim()[1] * 0.93, name, color=GREY)
ax.set(xlabel="step", ylabel="loss (nats)", title="Stage 1, in small")
ax.legend(loc="upper right", bbox_to_anchor=(1, 0.9), frameon=True, framealpha=1, edgecolor="none")
show(figure, "06-training")
assert after["mass"] > 3 * before["mass"] and history[-1]["sup"] < history[0]["sup"] / 2

# %%
latents_table(row)

# %% [markdown]
# The latents have become readable: the mass that a latent gives to its own segment's tokens went from 10.3 %<!-- before["mass"]:.1% ± 3 --> to
# 80.0 %<!-- after["mass"]:.1% ± 5 --> (84.6 on one processor, 75.7 on another: 75 steps are few). <!-- allow: 84.6, 75.7 --> In a latent like `<< .49  12 .48` two tokens stand side by side in one vector, as lesson 4 could not make mini-base do.
#
# And does it serve? *Compression accuracy* asks: given the encoder's latents of the **gold** chain, does the decoder, running freely,
# say the right answer? Before training in 12.5 %<!-- before["accuracy"]:.1% ± 7 --> of 48<!-- len(val):d --> questions, now in 66.7 %<!-- after["accuracy"]:.1% ± 25 -->.
# Be careful with that number, the paper selects its checkpoints by it: the gold chain holds the answer. It measures
# whether latents can be *read*, not whether anybody can *think* them.
#
# ## Exercises
# 1. Set `config.pull = config.pull_end = 0` before the training cell, and take the assertion at its end out. What does `latents_table` show, and what does the
#    accuracy do?
# 2. Replace the induction mask by `causal` in `my_induce`: what could L_2 do now that it could not before?
# 3. Think: the encoder sees S_i itself. Why is it no use at inference, and why must it be thrown away after stage 1?
#
# ## Next
# The encoder reads the gold chain, which nobody has at inference. **How does the model learn to produce these latents by itself?** →
# [7 · Stage 2](07_stage2.ipynb)
