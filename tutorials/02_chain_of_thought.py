# %% [markdown]
# # 2 · Explicit chain-of-thought and what it costs
#
# *25 minutes. Needs: lesson 1.*
#
# A model that reasons in words writes its intermediate results down, token by token, and reads them again.
# This is **explicit chain-of-thought**. Each token is a whole pass through the model, and each pass has to
# wait for the one before:
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
from minilatent.cache import KVCache
from minilatent.decode import decode
from minilatent.evaluate import solve_all
from minilatent.run import load_run
from minilatent.tasks.answers import is_correct

method = load_run(BASE, torch.device("cpu"))
model, tok = method.model, method.tok
test = tasks.load("mini", "test", limit=300)  # made by a grammar, no download; never shared with training
print(test[0].question, "\n", test[0].chain, "\n", test[0].answer, sep="")

# %% [markdown]
# ## The loop, written out
#
# Read the question in one pass. Then take the most likely token, feed it, and repeat until `<eos>`. The cache
# keeps what has been read.


# %%
@torch.no_grad()
def my_decode(question, most=80):
    ids = torch.tensor([method.prompt(question)])  # (1, T)
    cache = KVCache(model.config, rows=1, capacity=ids.shape[1] + most)
    hidden = model(ids, cache=cache)[:, -1]  # (1, C): one pass reads the whole question
    written = []
    while len(written) < most and (not written or written[-1] != tok.eos):
        token = model.logits(hidden).argmax(-1)  # (1,)
        hidden = model(token[None], cache=cache)[:, -1]  # one more pass for one more token
        written.append(int(token))
    return written


print(" ".join(tok.name(i) for i in my_decode(test[0].question)))

# %% [markdown]
# The package's loop (`decode.py`) does the same for many questions side by side, even when one of them is
# already answering while another still thinks. Both loops must produce the same tokens:

# %%
for e in test[:5]:
    out = method.solve([e.question])
    mine = my_decode(e.question)
    end = mine.index(tok.end_think)
    assert mine[:end] == out.chain[0, : out.lengths[0]].tolist()
    assert tok.decode(mine[end:]) == out.answers[0]

words = solve_all(method, test)
print(f"{words['accuracy']:.1%} correct, {words['mean_len']:.1f} chain tokens per question (#L)")

# %% [markdown]
# mini-base answers 97.7 %<!-- words["accuracy"]:.1% --> of these 300<!-- len(test):d --> questions correctly,
# with 23.8<!-- words["mean_len"]:.1f --> chain tokens on average. That number is **#L**, the length of
# reasoning; markers such as `<think>` are never counted. Keep an eye on #L in this course: latent methods try
# to keep the accuracy and make #L small.
#
# ## The bill
#
# Three things cost: *arithmetic* (about two floating-point operations for each parameter and token, not
# counting attention itself), *latency* (passes that must run one after the other), and *memory* (a key and a
# value for each layer, head and token).


# %%
def bill(prompt, chain, answer):  # in tokens
    c, P = model.config, model.num_parameters()
    tokens = prompt + chain + answer
    return {
        "flops": 2 * P * tokens,
        "passes": 1 + chain + answer,  # the prompt is one pass, the rest one each
        "cache_bytes": 2 * c.n_layer * c.n_kv_head * c.head_dim * tokens * 4,  # k and v, float32
    }


prompt = sum(len(method.prompt(e.question)) for e in test) / len(test)
for name, length in (("words", words["mean_len"]), ("half as long", words["mean_len"] / 2), ("no chain", 0)):
    b = bill(prompt, length, 3)
    print(f"{name:13s} {b['flops'] / 1e6:6.0f} Mflop  {b['passes']:5.1f} passes  ", end="")
    print(f"{b['cache_bytes'] / 1e3:6.0f} kB of cache")
cache = KVCache(model.config, rows=1, capacity=100)
assert bill(100, 0, 0)["cache_bytes"] == 4 * (cache.k.numel() + cache.v.numel())  # as the package allocates

# %% [markdown]
# (The 3 stands for `</think>`, a number and `<eos>`.) The chain is a third of the arithmetic, but nearly all
# of the *latency*: a GPU reads the question at once and then generates the chain token by token. On a real
# model a chain has hundreds or thousands of tokens.
#
# ## Does the model need the chain?
#
# We give the model the first part of a correct chain, close it by force with `</think>`, and look at the
# answer.

# %%
rows, _ = encode(test, tok, model.config.context)


def accuracy_with(share):
    prompts = []
    for r in rows:
        part = r.chain[: round(share * len(r.chain))]
        prompts.append(r.prompt + part + [tok.end_think])  # the prompt ends with <think>
    lengths = torch.tensor([len(p) for p in prompts])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(p) for p in prompts], True, tok.pad)
    # None: no more thinking, straight to the answer
    out = decode(model, tok, model.embed(ids), lengths, None)
    return sum(is_correct(a, e.answer) for a, e in zip(out.answers, test)) / len(test)


shares = [0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0]
kept = [accuracy_with(s) for s in shares]
print(dict(zip(shares, [round(a, 3) for a in kept])))
figure, ax = plt.subplots(figsize=(7, 3.6))
ax.plot(shares, [100 * a for a in kept], color=BLUE, marker="o")
ax.set(xlabel="share of the chain that the model may read", ylabel="correct answers (%)", ylim=(0, 102))
ax.set_title("A shortened chain")
show(figure, "02-cut")
assert kept[0] < 0.3 and kept[-1] > 0.9 and kept[3] < 0.7

# %% [markdown]
# Without a chain the model answers 14.7 %<!-- kept[0]:.1% --> correctly, with the whole chain
# 100.0 %<!-- kept[-1]:.1% -->. In between, a longer part is no better than a shorter one. The answer is the
# result of the last step; as long as that step is missing, the model repeats the last *result* that it has
# read, or guesses. (This model was never trained to answer at once. A fair lower bound is a model that was:
# `python train.py --method no_cot` trains one in a few minutes.)
#
# ## Which tokens carry information?
#
# The chain is needed; are all of its tokens? A token that can be predicted from what stands before it tells
# the model nothing new. How surprising a token is, is measured by $-\log p(c_t \mid Q, c_1 .. c_{t-1})$, in
# nats (that is, with the natural logarithm):


# %%
@torch.no_grad()
def surprises(row):  # (T,) nats, for each token of the chain
    ids, start = torch.tensor([row.prompt + row.chain]), len(row.prompt) - 1  # <think> predicts the first
    logits = model.logits(model(ids)[0, start : start + len(row.chain)])
    return F.cross_entropy(logits, torch.tensor(row.chain), reduction="none")


row = max(rows[:60], key=lambda r: surprises(r).sum())  # the row with the most surprise
s = surprises(row)
figure, ax = plt.subplots(figsize=(11, 3))
ax.bar(range(len(s)), s, color=[ORANGE if x > 0.05 else GREY for x in s])
ax.set_xticks(range(len(s)), [tok.name(i) for i in row.chain], fontsize=9)
ax.set(ylabel="surprise (nats)", title="Which tokens of a chain are not predictable?")
show(figure, "02-surprise")

everything = torch.cat([surprises(r) for r in rows])
predictable = (everything < -torch.log(torch.tensor(0.99))).float().mean()
top = everything.sort(descending=True).values
tenth = top[: len(top) // 10].sum() / top.sum()
print(f"{predictable:.1%} of the tokens had a probability above 0.99")
print(f"the most surprising tenth of the tokens carries {tenth:.1%} of all surprise")
assert predictable > 0.5

# %% [markdown]
# 99.2 %<!-- float(predictable):.1% --> of the tokens were as good as certain (p above `0.99`), and a tenth of
# them carries 99.9 %<!-- float(tenth):.1% --> of all surprise: the question leaves hardly anything open, only
# a few places in the chain. Yet each token costs the same pass.
#
# Be careful with the conclusion: a predictable token is not a useless one. A result such as `36` is
# predictable after `12*3=` because the model computes it in that very pass, and it has to be *written* to be
# read later. The figure only says that one token per pass is a wasteful unit. Two or four tokens' worth of
# reasoning could be one step, if a step could carry more.
#
# ## Exercises
# 1. `bill` leaves out attention's own arithmetic: about $4 \cdot T \cdot C$ operations per layer and token,
#    where T is the number of tokens attended to. At what T is it as much as the 2 P of the weights here? And
#    for a model with P = 1 billion, 16 layers and C = 2048?
# 2. Replace the chain in `accuracy_with` by another question's (`rows[(i + 1) % len(rows)].chain`). Whose
#    answer does the model give?
# 3. Why is "no chain" not simply "the model computes in its head"? Where would it have to keep `36` in order
#    to add 17 to it?
#
# ## Next
# A token is one of 549<!-- model.config.vocab_size:d --> possibilities, but what the model has at each step
# is a vector of 128<!-- model.config.width:d --> numbers. **Why not feed that vector back, the hidden state
# itself?** → [3 · Hidden states against embeddings](03_hidden_states.ipynb)
