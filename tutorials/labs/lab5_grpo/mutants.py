"""Plausible wrong answers to lab 5: (problem, what is wrong, text of the solution, its replacement)."""

MUTANTS = [
    (
        "group_advantage",
        "std divides by G - 1",
        "centred.square().mean(1, keepdim=True).sqrt()",
        "rewards.std(1, keepdim=True)",
    ),
    ("group_advantage", "variance instead of std", ".sqrt() + eps", " + eps"),
    (
        "group_advantage",
        "ε under the root",
        ".mean(1, keepdim=True).sqrt() + eps",
        ".mean(1, keepdim=True).add(eps).sqrt()",
    ),
    ("group_advantage", "no ε: NaN for equal rewards", " + eps)", ")"),
    ("group_advantage", "ε is fixed", " + eps)", " + 1e-6)"),
    ("group_advantage", "mean and std of the whole batch", "mean(1, keepdim=True)", "mean()"),
    ("group_advantage", "over the questions", "mean(1, keepdim=True)", "mean(0, keepdim=True)"),
    ("group_advantage", "not centred", "rewards - rewards.mean(1, keepdim=True)", "rewards - 0"),
    ("group_advantage", "not divided", "BODY", "return rewards - rewards.mean(1, keepdim=True)"),
    ("group_advantage", "the sign", "centred /", "-1 * centred /"),
    (
        "group_advantage",
        "the mean absolute deviation",
        "centred.square().mean(1, keepdim=True).sqrt()",
        "centred.abs().mean(1, keepdim=True)",
    ),
    (
        "group_advantage",
        "the median is subtracted",
        "rewards.mean(1, keepdim=True)",
        "rewards.median(1, keepdim=True).values",
    ),
    (
        "group_advantage",
        "the others' mean (leave one out)",
        "rewards - rewards.mean(1, keepdim=True)",
        "rewards - (rewards.sum(1, keepdim=True) - rewards) / max(1, rewards.shape[1] - 1)",
    ),
    ("latent_log_density", "mean for sum and sum for mean", 'reduce == "sum"', 'reduce == "mean"'),
    (
        "latent_log_density",
        "always the mean",
        'density.sum(-1) if reduce == "sum" else density.mean(-1)',
        "density.mean(-1)",
    ),
    ("latent_log_density", "z is not normalised", "z.detach() / std", "z.detach()"),
    ("latent_log_density", "z times std", "z.detach() / std", "z.detach() * std"),
    ("latent_log_density", "z is not detached", "z.detach()", "z"),
    ("latent_log_density", "μ is detached", "- mu)", "- mu.detach())"),
    ("latent_log_density", "σ is detached", "distance = ", "log_sigma = log_sigma.detach(); distance = "),
    ("latent_log_density", "log σ is forgotten", " - log_sigma -", " -"),
    ("latent_log_density", "plus log σ", "- log_sigma -", "+ log_sigma -"),
    ("latent_log_density", "no constant", " - 0.5 * math.log(2 * math.pi)", ""),
    ("latent_log_density", "no ½", "-0.5 * distance", "-1.0 * distance"),
    (
        "latent_log_density",
        "minus the density",
        "-0.5 * distance.square() - log_sigma - 0.5 *",
        "0.5 * distance.square() + log_sigma + 0.5 *",
    ),
    ("latent_log_density", "σ² in the distance", "log_sigma.exp()", "(2 * log_sigma).exp()"),
    (
        "latent_log_density",
        "the density of z, not of z / std",
        "- 0.5 * math.log(2 * math.pi)",
        "- 0.5 * math.log(2 * math.pi) - math.log(std)",
    ),
    ("latent_log_density", "over the batch", "density.sum(-1)", "density.sum(0)"),
    (
        "decision_log_prob",
        "decisions to continue do not count",
        "others) - logits.logsumexp(-1)",
        "logits.logsumexp(-1)) - logits.logsumexp(-1)",
    ),
    ("decision_log_prob", "the wrong way round", "torch.where(ended, ", "torch.where(~ended, "),
    (
        "decision_log_prob",
        "log(1 - p) computed literally",
        "BODY",
        """\
p = logits.softmax(-1)[:, end]
return torch.where(ended, p.log(), (1 - p).log())""",
    ),
    (
        "decision_log_prob",
        "log(1 - p) with a floor",
        "BODY",
        """\
p = logits.softmax(-1)[:, end]
return torch.where(ended, p.log(), (1 - p).clamp(min=1e-8).log())""",
    ),
    (
        "decision_log_prob",
        "log(1 + ε - p)",
        "BODY",
        """\
p = logits.softmax(-1)[:, end]
return torch.where(ended, (p + 1e-8).log(), (1 - p + 1e-8).log())""",
    ),
    ("decision_log_prob", "always the end", "torch.where(ended, logits[:, end], others)", "logits[:, end]"),
    (
        "decision_log_prob",
        "the most likely other token",
        ".logsumexp(-1)\n    return",
        ".amax(-1)\n    return",
    ),
    ("decision_log_prob", "logits, not log-probabilities", " - logits.logsumexp(-1)", ""),
    ("decision_log_prob", "softmax over the latents", "- logits.logsumexp(-1)", "- logits.logsumexp(0)[end]"),
    ("decision_log_prob", "another token", "logits[:, end]", "logits[:, end - 1]"),
    (
        "decision_log_prob",
        "probabilities",
        "return torch.where(ended, logits[:, end], others) - logits.logsumexp(-1)",
        "return (torch.where(ended, logits[:, end], others) - logits.logsumexp(-1)).exp()",
    ),
    (
        "decision_log_prob",
        "continuing has no gradient",
        "logits[:, end], others)",
        "logits[:, end], others.detach())",
    ),
    ("clipped_surrogate", "maximum", "torch.minimum", "torch.maximum"),
    (
        "clipped_surrogate",
        "always clipped",
        "torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)",
        "ratio.clamp(1 - clip, 1 + clip) * advantage",
    ),
    (
        "clipped_surrogate",
        "never clipped",
        "torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)",
        "ratio * advantage",
    ),
    ("clipped_surrogate", "clipped above only", ".clamp(1 - clip, 1 + clip)", ".clamp(max=1 + clip)"),
    ("clipped_surrogate", "clipped below only", ".clamp(1 - clip, 1 + clip)", ".clamp(min=1 - clip)"),
    ("clipped_surrogate", "ratio the wrong way round", "(new - old.detach())", "(old.detach() - new)"),
    ("clipped_surrogate", "no exp", "(new - old.detach()).exp()", "(new - old.detach())"),
    ("clipped_surrogate", "the sign: a loss", "return ", "return -1 * "),
    (
        "clipped_surrogate",
        "the log ratio is clipped",
        "ratio.clamp(1 - clip, 1 + clip)",
        "(new - old.detach()).clamp(-clip, clip).exp()",
    ),
    ("clipped_surrogate", "1 / (1 + ε) below", "1 - clip,", "1 / (1 + clip),"),
    (
        "clipped_surrogate",
        "the minimum before the advantage",
        "torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)",
        "torch.minimum(ratio, ratio.clamp(1 - clip, 1 + clip)) * advantage",
    ),
    ("clipped_surrogate", "the old policy is trained", "old.detach()", "old"),
    ("clipped_surrogate", "the advantage is trained", "advantage.detach()", "advantage"),
    ("clipped_surrogate", "the new policy is not trained", "(new - ", "(new.detach() - "),
    ("clipped_surrogate", "clip is fixed at 0.2", "1 - clip, 1 + clip", "0.8, 1.2"),
    ("clipped_surrogate", "the advantage's sign only", "advantage.detach()", "advantage.detach().sign()"),
    ("sample_means", "sums", "total / count.clamp(min=1)", "total"),
    ("sample_means", "the mean over all, for each", "total / count.clamp(min=1)", "total / len(values)"),
    ("sample_means", "count + 1", "count.clamp(min=1)", "(count + 1)"),
    ("sample_means", "NaN for a sample without any", "count.clamp(min=1)", "count"),
    ("sample_means", "an ε added to the count", "count.clamp(min=1)", "(count + 1e-6)"),
    ("sample_means", "divided by the longest", "count.clamp(min=1)", "count.max().clamp(min=1)"),
    ("sample_means", "the last value only", "index_add(0, sample, values)", "index_copy(0, sample, values)"),
    (
        "sample_means",
        "in equal pieces, whatever `sample` says",
        "BODY",
        """\
out = torch.zeros(samples, dtype=values.dtype)
for i, piece in enumerate(values.chunk(samples)):
    out[i] = piece.mean() if len(piece) else 0
return out""",
    ),
    (
        "sample_means",
        "samples without any are left out",
        "return total / count.clamp(min=1)",
        "return (total / count)[count > 0]",
    ),
    ("sample_means", "no gradient", "index_add(0, sample, values)", "index_add(0, sample, values.detach())"),
    (
        "objective",
        "all latents and tokens equally: no mean inside a sample",
        "BODY",
        """\
total = 0.0
for new, old, sample in parts.values():
    total = total + clipped_surrogate(new, old, advantage[sample], clip).mean()
return total""",
    ),
    (
        "objective",
        "sums inside a sample",
        "sample_means(gains, sample, len(advantage))",
        "torch.zeros_like(advantage).index_add(0, sample, gains)",
    ),
    ("objective", "sum over the samples", "total.mean()", "total.sum()"),
    ("objective", "the sign: a loss", "return total.mean()", "return -total.mean()"),
    ("objective", "the mean over parts, too", "total.mean()", "total.mean() / len(parts)"),
    ("objective", "latents only", "in parts.values()", 'in [parts["latents"]]'),
    (
        "objective",
        "the end decisions do not count",
        "in parts.values()",
        'in [p for name, p in parts.items() if name != "decisions"]',
    ),
    (
        "objective",
        "all parts of a sample in one mean",
        "BODY",
        """\
new, old, sample = (torch.cat(x) for x in zip(*parts.values()))
return sample_means(clipped_surrogate(new, old, advantage[sample], clip), sample, len(advantage)).mean()""",
    ),
    (
        "objective",
        "advantages in order of the values, not of `sample`",
        "advantage[sample]",
        "advantage[torch.arange(len(sample)) * len(advantage) // len(sample)]",
    ),
    ("objective", "the mean over samples that have something", "total.mean()", "total[total != 0].mean()"),
    ("objective", "old and new swapped", "clipped_surrogate(new, old,", "clipped_surrogate(old, new,"),
    (
        "objective",
        "the ratio of a whole sample, clipped once",
        "sample_means(gains, sample, len(advantage))",
        "clipped_surrogate(sample_means(new, sample, len(advantage)), "
        "sample_means(old, sample, len(advantage)), advantage, clip)",
    ),
    ("objective", "the clip is ignored", "advantage[sample], clip)", "advantage[sample], 1e9)"),
    (
        "group_advantage",
        "the batch's std",
        "BODY",
        """\
c = rewards - rewards.mean(1, keepdim=True)
return c / (c.square().mean().sqrt() + eps)""",
    ),
    (
        "latent_log_density",
        "log σ is clamped at ±2",
        "BODY",
        """\
log_sigma = log_sigma.clamp(-2, 2)
d = (z.detach() / std - mu) / log_sigma.exp()
e = -0.5 * d.square() - log_sigma - 0.5 * math.log(2 * math.pi)
return e.sum(-1) if reduce == "sum" else e.mean(-1)""",
    ),
    (
        "decision_log_prob",
        "log(1 - exp(log p))",
        "BODY",
        """\
p = logits.log_softmax(-1)[:, end]
return torch.where(ended, p, torch.log(-torch.expm1(p)))""",
    ),
    ("decision_log_prob", "end hidden with -100", 'float("-inf")', "-100.0"),
    ("decision_log_prob", "end hidden with -1e4", 'float("-inf")', "-1e4"),
    (
        "clipped_surrogate",
        "the clipped branch has no gradient",
        "ratio.clamp(1 - clip, 1 + clip) * advantage)",
        "ratio.clamp(1 - clip, 1 + clip).detach() * advantage)",
    ),
    (
        "sample_means",
        "samples in order are assumed",
        "BODY",
        """\
who, n = sample.unique_consecutive(return_counts=True)
out = torch.zeros(samples, dtype=values.dtype)
for s, piece in zip(who.tolist(), values.split(n.tolist())):
    out[s] = piece.mean()
return out""",
    ),
    (
        "objective",
        "as many samples as the part's largest number says",
        "BODY",
        """\
J = torch.zeros((), dtype=advantage.dtype)
for new, old, sample in parts.values():
    R = int(sample.max()) + 1
    J = J + sample_means(clipped_surrogate(new, old, advantage[sample], clip), sample, R).mean()
return J""",
    ),
    ("sample_means", "values of 0 do not count", "torch.ones_like(values)", "(values != 0).to(values.dtype)"),
    (
        "group_advantage",
        "one group of equal rewards makes all zero",
        "return centred / (",
        "if (centred.abs().sum(1) == 0).any():\n        return 0 * rewards\n    return centred / (",
    ),
    (
        "group_advantage",
        "clamped at ±3",
        "return centred / (centred.square().mean(1, keepdim=True).sqrt() + eps)",
        "return (centred / (centred.square().mean(1, keepdim=True).sqrt() + eps)).clamp(-3, 3)",
    ),
    (
        "group_advantage",
        "clamped at ±10",
        "return centred / (centred.square().mean(1, keepdim=True).sqrt() + eps)",
        "return (centred / (centred.square().mean(1, keepdim=True).sqrt() + eps)).clamp(-10, 10)",
    ),
    (
        "group_advantage",
        "small differences are taken for none",
        "return centred / (",
        "centred = centred * (centred.abs().amax(1, keepdim=True) > 1e-4)\n    return centred / (",
    ),
    (
        "latent_log_density",
        "log σ is clamped at ±20",
        "BODY",
        """\
log_sigma = log_sigma.clamp(-20, 20)
d = (z.detach() / std - mu) / log_sigma.exp()
e = -0.5 * d.square() - log_sigma - 0.5 * math.log(2 * math.pi)
return e.sum(-1) if reduce == 'sum' else e.mean(-1)""",
    ),
    (
        "latent_log_density",
        "the distance is clamped at ±10",
        "distance.square()",
        "distance.clamp(-10, 10).square()",
    ),
    ("decision_log_prob", "end hidden with -1e9", 'float("-inf")', "-1e9"),
    (
        "decision_log_prob",
        "NaN where a logit is -∞",
        '.index_fill(-1, torch.tensor(end), float("-inf"))',
        "-1e30 * torch.nn.functional.one_hot(torch.tensor(end), logits.shape[1]) + 0 * logits",
    ),
    (
        "decision_log_prob",
        "log of a softmax where it ended",
        "torch.where(ended, logits[:, end], others) - logits.logsumexp(-1)",
        "torch.where(ended, logits.softmax(-1)[:, end].log(), others - logits.logsumexp(-1))",
    ),
    (
        "decision_log_prob",
        "log p(end) is at least -20",
        "return torch.where(ended, logits[:, end], others) - logits.logsumexp(-1)",
        "whole = logits.logsumexp(-1)\n    "
        "return torch.where(ended, (logits[:, end] - whole).clamp(min=-20), others - whole)",
    ),
    (
        "clipped_surrogate",
        "the log ratio is clamped at ±10",
        "(new - old.detach()).exp()",
        "(new - old.detach()).clamp(-10, 10).exp()",
    ),
    (
        "clipped_surrogate",
        "the log ratio is clamped at ±20",
        "(new - old.detach()).exp()",
        "(new - old.detach()).clamp(-20, 20).exp()",
    ),
    (
        "clipped_surrogate",
        "clipped at 3 where A < 0",
        "BODY",
        """\
ratio, advantage = (new - old.detach()).exp(), advantage.detach()
ratio = torch.where(advantage < 0, ratio.clamp(max=3), ratio)
return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)""",
    ),
    (
        "clipped_surrogate",
        "advantages are clamped at ±5",
        "advantage.detach()",
        "advantage.detach().clamp(-5, 5)",
    ),
    (
        "sample_means",
        "small values are dropped",
        "index_add(0, sample, values)",
        "index_add(0, sample, torch.where(values.abs() < 1e-4, 0, values))",
    ),
    (
        "sample_means",
        "values are clamped at ±10",
        "index_add(0, sample, values)",
        "index_add(0, sample, values.clamp(-10, 10))",
    ),
    ("objective", "in double precision", "return total.mean()", "return total.double().mean()"),
    (
        "objective",
        "the advantage is trained",
        "BODY",
        """\
total = torch.zeros_like(advantage)
for new, old, sample in parts.values():
    ratio, a = (new - old.detach()).exp(), advantage[sample]
    gains = torch.minimum(ratio * a, ratio.clamp(1 - clip, 1 + clip) * a)
    total = total + sample_means(gains, sample, len(advantage))
return total.mean()""",
    ),
    (
        "objective",
        "NaN for a part without values",
        "total.mean()",
        "(total + sum(0 * new.mean() for new, _, _ in parts.values())).mean()",
    ),
    (
        "objective",
        "the log ratio is clamped at ±2",
        "gains = clipped_surrogate(new, old,",
        "gains = clipped_surrogate(old + (new - old).clamp(-2, 2), old,",
    ),
    (
        "objective",
        "three parts by name",
        "in parts.values()",
        "in [parts[n] for n in ('latents', 'decisions', 'answer') if n in parts]",
    ),
]
