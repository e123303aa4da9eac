# %% [markdown]
# # 2 · Explicit chain-of-thought and what it costs
#
# *25 minutes. Needs: lesson 1.*
#
# A model that thinks in words writes its intermediate results down, token by token, and reads them again. Each token is a whole
# pass through the model, and each pass has to wait for the one before:
#
# ```
#   Q Q Q Q <think>  << 12 * 3 = 36 >> .. << 17 + 36 = 53 >>  </think>  53 <eos>
#   └─ one pass ──┘  └────────── 23 passes, one by one ────┘  └─ 3 more ─────┘
# ```
#
# In this lesson we write that loop, count what it costs, and measure how much of the chain the model needs.

# %%
import torch
import torch.nn.functional as F
from lesson import BASE, BLUE, GREY, ORANGE, plt, show

from minilatent import tasks
from minilatent.batch import encode
from minilatent.decode import decode
from minilatent.evaluate import solve_all
from minilatent.model import KVCache
from minilatent.run import load_run
from minilatent.tasks.answers import is_correct

method = load_run(BASE, torch.device("cpu"))
model, tok = method.model, method.tok
test = tasks.load("mini", "test", limit=300)  # made by a grammar, no download; never shared with training
print(test[0].question, "\n", test[0].chain, "\n", test[0].answer, sep="")

# %% [markdown]
# ## The loop, written out
#
# Read the question in one pass. Then take the likeliest token, feed it, and so on until `<eos>`. The cache keeps what was read.


# %%
@torch.no_grad()
def my_decode(question, most=80):
    ids = torch.tensor([method.prompt(question)])  # (1, T)
    cache = KVCache(model.config, rows=1, capacity=ids.shape[1] + most)
    hidden, said = model(ids, cache=cache)[:, -1], []  # (1, C): one pass reads the whole question
    while len(said) < most and (not said or said[-1] != tok.eos):
        token = model.logits(hidden).argmax(-1)  # (1,)
        hidden = model(token[None], cache=cache)[:, -1]  # one more pass for one more token
        said.append(int(token))
    return said


said = my_decode(test[0].question)
print(" ".join(tok.name(i) for i in said))

# %% [markdown]
# The package's loop (`decode.py`) does the same for many questions side by side, each in its own phase. Both must say the same:

# %%
for e in test[:5]:
    out = method.solve([e.question])
    mine = my_decode(e.question)
    cut = mine.index(tok.end_think)
    assert mine[:cut] == out.chain[0, : out.lengths[0]].tolist() and tok.decode(mine[cut:]) == out.answers[0]

words = solve_all(method, test)
print(f"{words['accuracy']:.1%} right, {words['mean_len']:.1f} chain tokens a question (#L)")

# %% [markdown]
# mini-base is right in 97.7 %<!-- words["accuracy"]:.1% --> of these 300<!-- len(test):d --> questions, with 23.8<!-- words["mean_len"]:.1f --> tokens of
# chain on average. That number is **#L**, the length of reasoning; markers such as `<think>` are never counted. It is the
# currency of this course: latent methods try to keep the accuracy and make #L small.
#
# ## The bill
#
# Three things cost: *arithmetic* (about two floating-point operations for each parameter and token, leaving attention's own share
# aside), *waiting* (passes that must come one after the other), and *memory* (a key and a value for each layer, head and token).


# %%
def bill(prompt, chain, answer):  # in tokens
    c, P = model.config, model.num_parameters()
    tokens = prompt + chain + answer
    return {
        "flops": 2 * P * tokens,
        "passes": 1 + chain + answer,  # the prompt is one pass, the rest one each
        "cache_bytes": 2 * c.n_layer * c.n_kv_head * c.head_dim * tokens * 4,
    }  # k and v, float32


prompt = sum(len(method.prompt(e.question)) for e in test) / len(test)
for name, length in (("words", words["mean_len"]), ("half as long", words["mean_len"] / 2), ("no chain", 0)):
    b = bill(prompt, length, 3)
    print(
        f"{name:13s} {b['flops'] / 1e6:6.0f} Mflop  {b['passes']:5.1f} passes  {b['cache_bytes'] / 1e3:6.0f} kB of cache"
    )
cache = KVCache(model.config, rows=1, capacity=100)
assert bill(100, 0, 0)["cache_bytes"] == 4 * (
    cache.k.numel() + cache.v.numel()
)  # the package allocates just that

# %% [markdown]
# (The 3 is `</think>`, a number, `<eos>`.) The chain is a third of the arithmetic, but nearly all of the *waiting*: a GPU reads
# the question at once and then sits through the chain token by token. On a real model a chain has hundreds or thousands
# of tokens.
#
# ## Does it need the chain?
#
# We give the model the first part of a right chain, close it by force with `</think>`, and look at the answer.

# %%
rows, _ = encode(test, tok, model.config.context)


def accuracy_with(share):
    prompts = [
        r.question + [tok.think] + r.chain[: round(share * len(r.chain))] + [tok.end_think] for r in rows
    ]
    lengths = torch.tensor([len(p) for p in prompts])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], True, tok.pad)
    out = decode(model, tok, model.embed(ids), lengths, None)  # None: no thinking, straight to the answer
    return sum(is_correct(a, e.answer) for a, e in zip(out.answers, test)) / len(test)


shares = [0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0]
kept = [accuracy_with(s) for s in shares]
print(dict(zip(shares, [round(a, 3) for a in kept])))
figure, ax = plt.subplots(figsize=(7, 3.6))
ax.plot(shares, [100 * a for a in kept], color=BLUE, marker="o")
ax.set(xlabel="share of the chain that the model may read", ylabel="right answers (%)", ylim=(0, 102))
ax.set_title("The chain, cut short")
show(figure, "02-cut")
assert kept[0] < 0.3 and kept[-1] > 0.9 and kept[3] < 0.7

# %% [markdown]
# With no chain it is right in 14.7 %<!-- kept[0]:.1% --> of cases, with the whole in 100.0 %<!-- kept[-1]:.1% -->. In between a longer beginning is no
# better than a short one: it says the last *result* that it read or a guess, because the answer is the
# result of the last step. (This model was never trained to answer at once. One that was, `--method no_cot`, is the fair floor;
# `python train.py --method no_cot` trains it in some minutes.)
#
# ## Which tokens say something?
#
# The chain is needed; are all of its tokens? A token that could be foreseen from what stands before it tells the model nothing.
# How surprising a token is, is $-\log p(c_t \mid Q, c_1 .. c_{t-1})$, in nats (the logarithm is the natural one):


# %%
@torch.no_grad()
def surprises(row):  # (T,) nats, for each token of the chain
    ids, start = torch.tensor([row.explicit(tok)[0]]), len(row.question)
    logits = model.logits(model(ids)[0, start : start + len(row.chain)])
    return F.cross_entropy(logits, torch.tensor(row.chain), reduction="none")


row = max(rows[:60], key=lambda r: surprises(r).sum())  # one that has some
s = surprises(row)
figure, ax = plt.subplots(figsize=(11, 3))
ax.bar(range(len(s)), s, color=[ORANGE if x > 0.05 else GREY for x in s])
ax.set_xticks(range(len(s)), [tok.name(i) for i in row.chain], fontsize=9)
ax.set(ylabel="surprise (nats)", title="Which tokens of a chain could not be foreseen?")
show(figure, "02-surprise")

everything = torch.cat([surprises(r) for r in rows])
foreseen = (everything < -torch.log(torch.tensor(0.99))).float().mean()
top = everything.sort(descending=True).values
tenth = top[: len(top) // 10].sum() / top.sum()
print(
    f"{foreseen:.1%} of the tokens had a probability above 0.99; the most surprising tenth holds {tenth:.1%} of all surprise"
)
assert foreseen > 0.5

# %% [markdown]
# 99.2 %<!-- float(foreseen):.1% --> of the tokens were as good as certain (p above `0.99`), and a tenth of them holds 99.9 %<!-- float(tenth):.1% --> of all surprise:
# the question leaves hardly anything open, only a few places in the chain. Yet each token costs the same pass.
#
# Careful with the conclusion: a foreseen token is not a useless one. A result such as `36` can be foreseen from `12*3=` because the model
# computes it in that very pass, and it has to be *written* to be read later. What the picture says is only that one token
# a pass is a wasteful unit. Two or four tokens' worth of thinking could be one step, if a step could carry more.
#
# ## Exercises
# 1. `bill` leaves attention's own arithmetic out: about $4 \cdot T \cdot C$ operations a layer and token, T being the tokens that are seen.
#    At what T is it as much as the 2 P of the weights here? And for a model with P = 1 billion, 16 layers and C = 2048?
# 2. Replace the chain in `accuracy_with` by another question's (`rows[(i + 1) % len(rows)].chain`). Whose answer does it give?
# 3. Why is "no chain" not simply "the model computes in its head"? Where would it have to keep `36` in order to add 17 to it?
#
# ## Next
# A token is one of 549<!-- model.config.vocab_size:d --> possibilities, but what the model has at each step is a vector of 128<!-- model.config.width:d --> numbers. **Why
# not feed that vector back, the hidden state itself?** → [3 · Hidden states against embeddings](03_hidden_states.ipynb)
