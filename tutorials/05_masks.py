# %% [markdown]
# # 5 · The two masks, drawn and checked by hand
#
# *35 minutes. Needs: lessons 1 and 4. Paper and pencil help.*
#
# Latent-SFT (arXiv 2510.15522) produces its training latents with two transformers. The chain is cut into
# segments S_1 .. S_N of r tokens each.
#
# ```
#   encoder   Q <think> S_1 L S_2 L .. S_N L </think>            its output at L_i becomes the latent Z_i
#   decoder   Q <think> Z_1 S_2 Z_2 S_3 .. S_N Z_N </think> A     has to continue from the latents
# ```
#
# Both are ordinary transformers. What they learn depends on **which position may attend to which**:
#
# - *Induction mask* (encoder, LTIM in the paper): no position sees an earlier L. So L_i is made from the
#   question and S_1 .. S_i alone.
# - *Supervision mask* (decoder, LTSuM): the tokens of S_(i+1) see Z_i and the earlier tokens of their own
#   segment, nothing else. What Z_i does not contain, the decoder cannot know. And the answer sees the
#   question and all Z, never a token of the chain: the model has to go straight from latents to the answer.
#   This transition at `</think>` is called the *collapse*.

# %%
import torch
from lesson import show
from masks_figure import masks_figure

from minilatent import tasks
from minilatent.batch import encode
from minilatent.masks import (
    LATENT,
    PREFIX,
    TAIL,
    TEXT,
    Layout,
    causal,
    dual_track_positions,
    induction_mask,
    supervision_mask,
)
from minilatent.methods.latent_sft import LatentSFT
from minilatent.run import initial_model, resolve

config = resolve({"method": "latent_sft"})
model, tok, *_ = initial_model(config)  # mini-base
method = LatentSFT(config, tok, model)
show(masks_figure(method), "05-masks")

# %% [markdown]
# Read the figure by rows: the position on the left sees the coloured columns. Hatched cells are earlier
# positions that are hidden. Take the row of `=` in the right-hand picture and follow it with your finger:
# which three positions can it see?
#
# ## A sequence in two lists
#
# For each position, a mask builder needs to know what it contains (its *kind*) and which latent it belongs to
# (its *block*). With these two it needs no loop over samples. A small example with r = 2: the chain is
# `a b c d`, so S_1 = a b and S_2 = c d. In the encoder S_i and L_i are block i. In the decoder block i is Z_i
# *and the text that is predicted from it*, S_(i+1). So `c d` is block 2 in the first list and block 1 in the
# second.

# %%
encoder = Layout.of(
    ([1, 2], PREFIX, 0),
    ([11, 12], TEXT, 1),
    ([9], LATENT, 1),
    ([13, 14], TEXT, 2),
    ([9], LATENT, 2),
    ([3], TAIL, 0),
)
decoder = Layout.of(
    ([1, 2], PREFIX, 0), ([9], LATENT, 1), ([13, 14], TEXT, 1), ([9], LATENT, 2), ([3, 20], TAIL, 0)
)
encoder_names, decoder_names = "Q <t> a b L1 c d L2 </t>".split(), "Q <t> Z1 c d Z2 </t> A".split()
print("encoder", list(zip(encoder_names, encoder.kind, encoder.block)))
print("decoder", list(zip(decoder_names, decoder.kind, decoder.block)))

# %% [markdown]
# ## Written out
#
# The rules as slow, plain loops that nobody can misread:


# %%
def my_induction(kind):
    T = len(kind)
    may = torch.zeros(T, T, dtype=torch.bool)
    for i in range(T):
        for j in range(i + 1):  # causal: nothing later
            may[i, j] = kind[j] != LATENT or i == j  # only the latent itself sees a latent
    return may


def my_supervision(kind, block):
    T = len(kind)
    may = torch.zeros(T, T, dtype=torch.bool)
    for i in range(T):
        for j in range(i + 1):
            if kind[i] == TEXT:  # c, d: their latent and their own segment
                may[i, j] = block[j] == block[i] and kind[j] != PREFIX
            else:  # Q, Z, </t>, A: everything but the chain's text
                may[i, j] = kind[j] != TEXT
    return may


def draw(mask, names):
    for name, row in zip(names, mask.tolist()):
        print(f"{name:>5}  " + "  ".join("x" if m else "." for m in row))


draw(my_induction(encoder.kind), encoder_names)
print()
draw(my_supervision(decoder.kind, decoder.block), decoder_names)

# %% [markdown]
# Check the second drawing against the rules by hand: `c` sees Z1 and itself; `A` sees Q, `<t>`, Z1, Z2,
# `</t>` and itself, but neither c nor d. The package builds the same masks by comparing whole tensors, for a
# batch at once:

# %%
tensor = lambda x: torch.tensor([x])
assert torch.equal(my_induction(encoder.kind), induction_mask(tensor(encoder.kind))[0])
assert torch.equal(
    my_supervision(decoder.kind, decoder.block),
    supervision_mask(tensor(decoder.kind), tensor(decoder.block))[0],
)


# The same for eight real problems, padded to one length
rows, _ = encode(tasks.load("mini", "test", limit=8), tok, 512)
encoders = [method.encoder_layout(r) for r in rows]
fast = induction_mask(method.tensors(encoders)["kind"])
for b, layout in enumerate(encoders):
    T = len(layout.ids)
    assert torch.equal(fast[b, :T, :T], my_induction(layout.kind))
decoders = [method.decoder_layout(r) for r in rows]
batch = method.tensors(decoders)
fast = supervision_mask(batch["kind"], batch["block"])
for b, layout in enumerate(decoders):
    T = len(layout.ids)
    assert torch.equal(fast[b, :T, :T], my_supervision(layout.kind, layout.block))

# %% [markdown]
# ## Does it leak?
#
# A mask is right if information cannot pass. That can be tested without reading the mask: change a token, and
# see whose hidden state changes. Depth matters: what A sees through Z in the second layer, Z may have seen in
# the first. So we test the whole network.


# %%
@torch.no_grad()
def moved(layout, mask, place, positions=None):
    """Which positions' hidden states change when the token at `place` does."""
    ids = tensor(layout.ids)
    other = ids.clone()
    other[0, place] += 100
    h, g = (model(x, mask=mask, positions=positions) for x in (ids, other))
    return ((h - g).abs().amax(-1) > 1e-4)[0].tolist()


def reached(names, flags):
    return [n for n, f in zip(names, flags) if f]


kind, block = tensor(decoder.kind), tensor(decoder.block)
c = decoder_names.index("c")
hidden = reached(decoder_names, moved(decoder, supervision_mask(kind, block), c))
open_ = reached(decoder_names, moved(decoder, causal(kind), c))
print("supervision mask: c reaches", hidden)
print("causal mask:      c reaches", open_)
assert hidden == ["c", "d"] and "A" in open_
Z1 = decoder_names.index("Z1")
below = reached(decoder_names, moved(decoder, supervision_mask(kind, block), Z1))
assert below == ["Z1", "c", "d", "Z2", "</t>", "A"]

# %% [markdown]
# With a causal mask the answer can read the words of the chain, all but S_1, and hardly needs the latents.
# Under the supervision mask `c` reaches only its own segment. Now the encoder: does L1 reach L2?

# %%
kind = tensor(encoder.kind)
L1 = encoder_names.index("L1")
print("induction mask: L1 reaches", reached(encoder_names, moved(encoder, induction_mask(kind), L1)))
print("causal mask:    L1 reaches", reached(encoder_names, moved(encoder, causal(kind), L1)))
assert reached(encoder_names, moved(encoder, induction_mask(kind), L1)) == ["L1"]

# %% [markdown]
# The paper removes each mask in an ablation. `--no-ltim` gives the encoder the causal mask, `--no-ltsum` the
# decoder; the positions below stay as they are. The paper's Latent-SFT(2), that is r = 2, on Llama-1B has
# 50.4 % on GSM8K-Aug (school maths problems, with generated ones for training), 49.0 % without the
# supervision mask, and 41.3 % without the induction mask. Would you have guessed which of the two matters
# more?
#
# <!-- allow: 50.4 %, 49.0 %, 41.3 % -->
#
# ## Positions on two tracks
#
# At inference there is no text of the chain, only `Q <think> Z Z Z </think> A`. If the decoder numbered its
# positions as they stand, Z2 would be at position 5 in training but at position 3 at inference. So the text
# takes no place on the main track: it counts on from its latent, and the next latent continues as if the text
# were not there.


# %%
def my_positions(kind):
    positions, main = [], -1  # main: the last place on the main track
    for k in kind:
        if k == TEXT:
            positions.append(positions[-1] + 1)  # counts on from the position before it
        else:
            main += 1
            positions.append(main)
    return positions


print(list(zip(decoder_names, my_positions(decoder.kind))))
assert my_positions(decoder.kind) == dual_track_positions(tensor(decoder.kind))[0].tolist()
student = method.student_layout(rows[0])  # what stage 2 and inference see
kind = method.decoder_layout(rows[0]).kind
kept = [p for p, k in zip(my_positions(kind), kind) if k != TEXT]
assert kept == list(range(len(student.ids)))  # without its text, training looks like inference

# %% [markdown]
# The last two lines are the point: remove the text, and what is left has the positions 0, 1, 2, .. Together,
# mask and positions make stage 1's decoder compute for Q, Z, `</think>` and the answer *exactly* what the
# model will compute at inference. We can test that, too: the hidden states with the text (invisible, on its
# side track) and without it must be equal.

# %%
row = rows[0]
full = method.decoder_layout(row)
k, b = tensor(full.kind), tensor(full.block)
with torch.no_grad():
    with_text = model(tensor(full.ids), mask=supervision_mask(k, b), positions=dual_track_positions(k))[0]
    without = model(tensor(student.ids))[0]
on_main = k[0] != TEXT
gap = (with_text[on_main] - without).abs().max()
print(f"largest difference {gap:.0e}")
assert gap < 1e-4

# %% [markdown]
# ## Exercises
# 1. Change `block[j] == block[i]` to `block[j] == block[i] - 1` in `my_supervision` (off by one). Which
#    assertion finds it?
# 2. The first version of the paper lets S_(i+1) see Q, `<think>` and Z_1 .. Z_i. Write that mask, and run
#    `moved` for Q under both masks: why do they reach the same positions? And what could a latent leave out
#    under this mask only?
# 3. S_1 appears nowhere in the decoder's input. What makes sure that Z_1 contains it?
#
# ## Next
# The masks decide what *can* be learned. **What does an encoder put into its latents when a decoder depends
# on them?** → [6 · Stage 1](06_stage1.ipynb)
