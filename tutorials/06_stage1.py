# %% [markdown]
# # 6 · Stage 1: encoder and decoder
#
# *35 minutes. Needs: lessons 4 and 5.*
#
# Stage 1 of Latent-SFT turns a chain of words into a chain of latents, which will be the teacher of stage 2.
#
# ```
#   12 *    L    3 =   L   36 ><  L   ..           encoder, a copy of the model, under the induction mask
#           │          │          │
#        logits     logits     logits              h(L_i) · Wᵀ, W: the decoder's embeddings
#           │top k     │          │
#           Z1         Z2         Z3               superpositions
#           │          │          │
#   Q <t>   Z1   3 =   Z2  36 ><  Z3  ..  </t> 20  decoder, the model, under the supervision mask:
#                ~~~        ~~~~~          ~~~~~   cross-entropy on what follows each latent
# ```
#
# (`><` is short for `>> <<`.) The decoder can continue with `3 =` only if Z1 shows that `12 *` came before.
# So the encoder has to put it there, and in a form that the decoder can read: a mixture of word embeddings.
# Stage 2 (lesson 7) has no encoder: the model learns to predict these latents one after the other, from the
# question and the latents before.

# %%
import copy

import torch
from lesson import BLUE, GREY, ORANGE, plt, show
from schematics import stages_figure

from minilatent import tasks
from minilatent.batch import encode
from minilatent.masks import LATENT, TAIL, TEXT, dual_track_positions, induction_mask, supervision_mask
from minilatent.methods.latent_sft import LatentSFT
from minilatent.run import initial_model, resolve

show(stages_figure(), "06-stages")

config = resolve({"method": "latent_sft", "ratio": 2})
model, tok, *_ = initial_model(config)
method = LatentSFT(config, tok, model)
method.encoder = copy.deepcopy(model)  # both start from mini-base
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
        likely = "  ".join(f"{tok.name(int(i)):>8} {v:.2f}" for v, i in zip(*p.topk(top)))
        print(f"   S = {' '.join(tok.name(i) for i in segment):12}  latent: {likely}")


latents_table(row)

# %% [markdown]
# Before training, the encoder is a language model that meets an unknown token L. Its latents predict
# something, here mostly names of people. They do not describe the segment that came *before*.
#
# ## The loss, by hand
#
# L_sup is the cross-entropy of the tokens that follow the latents. It is averaged first inside each block,
# then over blocks (each S_(i+1) is a block, and the answer is one). Every position predicts the *next* token.
# The position before a latent predicts nothing, because a latent is not a label.


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
mine, (_, logged) = my_loss(row), method.loss1(batch)
print("by hand", round(float(mine), 4), " loss1", {name: round(v, 4) for name, v in logged.items()})
assert abs(mine - logged["sup"]) < 1e-3

# %% [markdown]
# The second number, `pull`, is our own addition and not in the paper. It is the KL divergence (lesson 7
# writes it out) from the uniform mixture of the segment's tokens to the encoder's distribution. Without it, a
# small encoder invents a private code: nearly one-hot latents of tokens that have nothing to do with the
# segment, which the decoder learns to decipher. That works in stage 1, but stage 2 finds such latents hard to
# imitate. `--pull` is the weight of this term; `--pull 0` is the paper's plain loss.
#
# `--latent hidden` is one of the paper's ablations: no logits and no top k. The latent is then the encoder's
# hidden state at L itself, standardised as in lesson 3, and it is pulled to the embedding of that mixture. On
# GSM8K-Aug this lowers the paper's Latent-SFT(2) from 50.4 to 41.1 %.
#
# <!-- allow: 50.4, 41.1 % -->
#
# ## Train it now
#
# Stage 1 has three phases: the encoder alone (it must learn the language that the decoder reads), the decoder
# alone, then both. The real run takes 170<!-- sum(map(int, config.stage1_steps.split(","))):d --> steps of
# 64<!-- config.batch_size:d --> examples. Here we take 75 steps of 16 examples, which needs a few seconds.


# %%
def train(modules, steps, lr=1e-3):
    for p in method.parameters():
        p.requires_grad_(False)
    parameters = [p for m in modules for p in m.parameters()]
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.01)
    method.train()
    for _ in range(steps):
        chosen = [rows[i] for i in torch.randint(len(rows), (16,), generator=generator)]
        loss, logged = method.loss1(method.collate1(chosen))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        history.append(logged)


def own_mass(some):
    """The probability that latents give to the tokens of their own segment, on average."""
    masses = []
    with torch.no_grad():
        for r in some:
            for segment, p in zip(method.segments(r), my_induce(r)[0]):
                masses.append(p[list(set(segment))].sum())
    return torch.stack(masses).mean().item()


generator, history = torch.Generator().manual_seed(0), []
longer = next(r for r in rows if len(r.ends) == 3)  # a chain of three steps, for the heat map below
untrained = my_induce(longer)[0].detach()  # (N, V)
before = {"mass": own_mass(rows[:30]), "accuracy": method.compression_accuracy(val)["compression"]}
phases = [("encoder", [method.encoder], 30), ("decoder", [model], 15), ("both", [method.encoder, model], 30)]
for name, modules, steps in phases:
    train(modules, steps)
    print(f"after '{name}': " + "  ".join(f"{k} {v:.2f}" for k, v in history[-1].items()))
after = {"mass": own_mass(rows[:30]), "accuracy": method.compression_accuracy(val)["compression"]}
print(before, after)

figure, ax = plt.subplots(figsize=(8, 3.6))
ax.plot([h["sup"] for h in history], color=BLUE, label="L_sup: the decoder's cross-entropy")
has = [(i, h["pull"]) for i, h in enumerate(history) if "pull" in h]
ax.plot(*zip(*has), color=ORANGE, linestyle="--", label="pull: from the segment's mixture to the latent")
ax.set_ylim(0, 17.5)
for x, (name, _, _) in zip((0, 30, 45), phases):
    ax.axvline(x, color=GREY, linewidth=1, linestyle=":")
    ax.text(x + 0.8, ax.get_ylim()[1] * 0.93, name, color=GREY)
ax.set(xlabel="step", ylabel="loss (nats)", title="Stage 1 in 75 steps")
ax.legend(loc="upper right", bbox_to_anchor=(1, 0.9), frameon=True, framealpha=1, edgecolor="none")
show(figure, "06-training")
assert after["mass"] > 3 * before["mass"] and history[-1]["sup"] < history[0]["sup"] / 2

# %%
latents_table(row)

# %% [markdown]
# A longer chain, as a heat map. A column is a latent, a row a token of the chain, and frames mark the
# tokens of a latent's own segment:

# %%
segments, trained = method.segments(longer), my_induce(longer)[0].detach()
tokens = list(dict.fromkeys(longer.chain))  # in order of appearance
figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
for ax, (title, probs) in zip(axes, {"before training": untrained, "after 75 steps": trained}.items()):
    image = ax.imshow(probs[:, tokens].T, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for n, segment in enumerate(segments):
        for token in segment:
            corner = (n - 0.5, tokens.index(token) - 0.5)
            ax.add_patch(plt.Rectangle(corner, 1, 1, fill=False, edgecolor=ORANGE, linewidth=1.8))
    ax.set(title=title, xlabel="latent")
    ax.set_xticks(range(len(segments)), range(1, len(segments) + 1))
    ax.set_yticks(range(len(tokens)), [tok.name(i) for i in tokens])
axes[0].set_ylabel("token")
figure.colorbar(image, ax=axes, label="probability")
show(figure, "06-latents")

# %% [markdown]
# The latents have become readable: the probability mass that a latent gives to its own segment's tokens
# went from 0.4 %<!-- before["mass"]:.1% ± 3 --> to 85.5 %<!-- after["mass"]:.1% ± 8 -->. (With so few steps
# the second number depends on the processor.) Now the two tokens of a segment share one vector. In
# lesson 4 we could not make mini-base do that.
#
# Is such a latent useful? *Compression accuracy* asks: given the encoder's latents of the **gold** chain (the
# reference solution of the data set), does the decoder, generating freely, give the correct answer? Before
# training it does for 8.3 %<!-- before["accuracy"]:.1% ± 7 --> of 48<!-- len(val):d --> questions, now for
# 75.0 %<!-- after["accuracy"]:.1% ± 25 -->. Be careful with this number, by which the paper selects its
# checkpoints: the gold chain contains the answer. It measures whether latents can be *read*, not whether a
# model can *produce* them.
#
# ## Exercises
# 1. Set `config.pull = 0` before the training cell, and remove the assertion at its end. What does
#    `latents_table` show, and what happens to the accuracy?
# 2. Import `causal` from `minilatent.masks`, use it in `my_induce` instead of the induction mask, and remove
#    the assertion after it. What could L_2 do now that it could not do before? (For training with it, set
#    `config.ltim = False`.)
# 3. The encoder sees S_i itself. Why is it useless at inference, and why must it be thrown away after stage
#    1?
#
# ## Next
# The encoder reads the gold chain, which does not exist at inference. **How does the model learn to produce
# these latents by itself?** → [7 · Stage 2](07_stage2.ipynb)
