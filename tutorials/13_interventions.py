# %% [markdown]
# # 13 · Does the answer come from the latents?
#
# *25 minutes. Needs: lessons 8 and 12. Uses the committed checkpoint `tutorials/checkpoints/latent_sft` (r =
# 2).*
#
# Lesson 12 looked at latents. Looking cannot show that they are *used*: a model could compute the answer
# elsewhere and write a chain beside it. An **intervention** can. The model thinks freely, its latents are
# replaced, and the answer is decoded from `Q <think> Z' </think>`. An answer that does not change did not
# come from them.

# %%
import torch
from lesson import BASE, BLUE, GREY, LATENT_SFT, RED, plt, show

from minilatent import tasks
from minilatent.evaluate import solve_batches
from minilatent.run import load_run
from minilatent.study.interventions import INTERVENTIONS, answers_given, intervene
from minilatent.tasks.answers import is_correct

method = load_run(LATENT_SFT, torch.device("cpu"))
test = tasks.load("mini", "test", limit=160)

# %% [markdown]
# ## The latents, replaced
#
# `keep` changes nothing. `top1` puts the embedding of the most likely token in the place of each latent,
# `shuffle` puts the latents into a random order, `truncate` keeps the first half of them only. `mean` is the
# mean latent of all questions, `zeros` is the vector 0, `noise` a random direction of the same length. `swap`
# takes the latents of a *donor*, another question whose chain has the same length: does the answer become the
# donor's?

# %%
print("available:", list(INTERVENTIONS))
names = ["keep", "top1", "shuffle", "truncate", "mean", "zeros", "noise", "swap"]
found = intervene(method, test, names)


def print_interventions(found):
    for name, r in found.items():
        more = f"   becomes the donor's: {r['follows_donor']:.1%}" if "follows_donor" in r else ""
        print(f"{name:9s} correct {r['accuracy']:.1%}   answer unchanged {r['unchanged']:.1%}{more}")


print_interventions(found)

# %% [markdown]
# What would such a test say where we know the result? A **positive control** is explicit chain-of-thought,
# whose answer must come from its words (lesson 2: without them it is lost). We repeat the interventions on
# mini-base, where the "latents" are the embeddings of the tokens that it wrote:

# %%
words = load_run(BASE, torch.device("cpu"))
explicit = intervene(words, test[:80], names)
print_interventions(explicit)
figure, ax = plt.subplots(figsize=(8, 4.2))
for shift, who, colour, hatch, label in (
    (-0.2, found, BLUE, "", "Latent-SFT"),
    (0.2, explicit, GREY, "//", "words: the positive control"),
):
    y = [i + shift for i in range(len(names))]
    look = dict(color=colour, hatch=hatch, edgecolor="white", label=label)
    ax.barh(y, [100 * who[n]["accuracy"] for n in names], 0.38, **look)
    donor_label = None if shift > 0 else "swap: the donor's answer"
    ax.plot(100 * who["swap"]["follows_donor"], y[-1], "D", color=RED, clip_on=False, label=donor_label)
ax.set_yticks(range(len(names)), names)
ax.invert_yaxis()
ax.set(xlabel="correct answers (%)", xlim=(0, 102), title="The thoughts, replaced")
ax.legend(loc="center right")
show(figure, "13-interventions")
for who in (found, explicit):
    assert who["keep"]["unchanged"] > 0.99 and who["swap"]["follows_donor"] > 0.5
    assert who["noise"]["accuracy"] < who["keep"]["accuracy"] / 2
    assert max(who[n]["accuracy"] for n in ("mean", "zeros", "swap")) < 0.4
more = intervene(method, tasks.load("mini", "test", limit=400), ["keep", "top1"])  # a smaller effect
print_interventions(more)
assert explicit["top1"]["unchanged"] > 0.99 and more["top1"]["accuracy"] < more["keep"]["accuracy"] - 0.2

# %% [markdown]
# Kept as they are, 92.5 %<!-- found["keep"]["accuracy"]:.1% --> are correct (this checks that replacing costs
# nothing). With noise of the same norm 2.5 %<!-- found["noise"]["accuracy"]:.1% --> are correct, with the
# mean latent 1.2 %<!-- found["mean"]["accuracy"]:.1% -->, with zeros
# 3.8 %<!-- found["zeros"]["accuracy"]:.1% -->. With another question's latents the answer becomes *that*
# question's in 99.4 %<!-- found["swap"]["follows_donor"]:.1% --> of cases.
#
# In words the four numbers are 5.0 %<!-- explicit["noise"]["accuracy"]:.1% -->,
# 2.5 %<!-- explicit["mean"]["accuracy"]:.1% -->, 6.2 %<!-- explicit["zeros"]["accuracy"]:.1% --> and
# 100.0 %<!-- explicit["swap"]["follows_donor"]:.1% -->: the latents behave in the test as words do. The
# answer comes from them. (Noise alone would be weak evidence: a model that never saw such input may break for
# that reason. Swap feeds real latents, and the answer follows them. And a test that *always* says "used"
# would pass this positive control. To exclude that one needs a **negative control**, a model that ignores its
# latents: exercise 3.)
#
# The same for one question, in a browser: the playground with
# [another question's latents](../playground/index.html#sel=L2&all=swap) and with
# [another question's words](../playground/index.html#model=cot_sft&sel=L2&all=swap).
#
# `top1` feeds one token per step, the most likely one, instead of the mixture:
# of 400 questions, 73.2 %<!-- more["top1"]["accuracy"]:.1% --> are correct instead of
# 94.8 %<!-- more["keep"]["accuracy"]:.1% -->. (For words it changes nothing, by construction.)
# So the mixture is *used*. Does that make it a superposition of several lines of thought? Lesson 12 said no:
# what is mixed are the r tokens of *one* segment of one chain. It is a compression, and top1 cuts out half of
# each segment.
#
# ## Which latent?
#
# `shuffle`, the question's own latents in random order, keeps 33.1 %<!-- found["shuffle"]["accuracy"]:.1%
# --> correct, in words only 5.0 %<!-- explicit["shuffle"]["accuracy"]:.1% -->. Does it matter less where a
# latent stands? We leave the last one in its place and shuffle the others, and we move only the last one:

# %%
orders = {
    "the others shuffled": lambda n: [*torch.randperm(n - 1, generator=generator).tolist(), n - 1],
    "the last one first": lambda n: [n - 1, *range(n - 1)],
}
generator, share = torch.Generator().manual_seed(0), {}
for name, order in orders.items():
    right = 0
    for chosen, out, _ in solve_batches(method, test):
        z = out.latents.clone()
        for b, n in enumerate(out.lengths.tolist()):
            z[b, :n] = out.latents[b, order(n)]
        answers = answers_given(method, [test[i].question for i in chosen], z, out.lengths)
        right += sum(is_correct(a, test[i].answer) for a, i in zip(answers, chosen))
    share[name] = right / len(test)
    print(f"{name:20s} correct {share[name]:.1%}")
stays, moved = share.values()
assert stays > found["keep"]["accuracy"] - 0.05 and moved < stays - 0.2

# %% [markdown]
# Shuffling the others costs almost nothing: 91.9 %<!-- stays:.1% --> stay correct. With the last latent at
# the front it is 10.6 %<!-- moved:.1% -->. So the answer is read from the *last* latent, which contains the
# result, as in lesson 8. Away from its place it is sometimes still recognised. A possible reason: it also has
# `>>`, a token that occurs nowhere else in the chain (the earlier steps end with `>> <<`). In words the
# result and `>>` are two separate tokens.
#
# What were the other latents for? To make the last one, we think. But these interventions replace latents
# after the thinking, so they cannot show it.
#
# ## Exercises
# 1. What is lost when the latent is `= .50  3 .48` and `=` wins by a small margin? Write an intervention
#    `second` that feeds the embedding of the *second* most likely token, and one that feeds the most likely
#    *number* of each latent. Compare with top1. (`solve_batches(.., keep_probs=True)` has the probabilities,
#    and `answers_given` of `minilatent/study/interventions.py` decodes from what you feed, as in lesson 8.)
# 2. Replace only the latents of the first step, by noise and by a donor's. What do you learn about a latent
#    that is far from the answer, and what not?
# 3. On ProsQA (questions about paths in a graph), Coconut's answers stay correct when its latents are
#    replaced by noise (arXiv 2602.22441). How can a model be correct with latents that it does not use, and
#    would any *picture* of them show it?
#
# ## Next
# All of this was observed on a model with less than a million parameters and on problems generated by a
# grammar. **What does it take to do it on GSM8K with a real model?** → [14 · From mini to
# GSM8K](14_real_models.ipynb)
