"""Plausible wrong answers to lab 2: (problem, what is wrong, text of the solution, its replacement)."""

MUTANTS = [
    (
        "top_k",
        "no renormalisation after top-k",
        "return best.softmax(-1), ids",
        "return logits.softmax(-1).gather(-1, ids), ids",
    ),
    (
        "top_k",
        "renormalised over all allowed ids, not over k",
        "return best.softmax(-1), ids",
        'return logits.masked_fill(banned, float("-inf")).softmax(-1).gather(-1, ids), ids',
    ),
    ("top_k", "softmax over the first dimension", "best.softmax(-1)", "best.softmax(0)"),
    ("top_k", "top-k over the first dimension", "topk(k, dim=-1)", "topk(min(k, logits.shape[0]), dim=0)"),
    ("top_k", "the least likely", "topk(k, dim=-1)", "topk(k, dim=-1, largest=False)"),
    ("top_k", "forbidden ids are kept", 'logits.masked_fill(banned, float("-inf"))', "logits"),
    ("top_k", "forbidden logits become 0 instead of -∞", 'float("-inf")', "0.0"),
    (
        "top_k",
        "forbidden ids fill up a k that is too large",
        "logits.shape[-1] - len(never)",
        "logits.shape[-1]",
    ),
    ("top_k", "the last forbidden id is forgotten", "banned[never] = True", "banned[never[:1]] = True"),
    (
        "top_k",
        "sorted by id",
        "return best.softmax(-1), ids",
        "ids, order = ids.sort(-1); return best.gather(-1, order).softmax(-1), ids",
    ),
    ("top_k", "divided by their sum without exp", "best.softmax(-1)", "best / best.sum(-1, keepdim=True)"),
    ("top_k", "no gradient", "best.softmax(-1)", "best.detach().softmax(-1)"),
    ("top_k", "one too few", "topk(k, dim=-1)", "topk(max(1, k - 1), dim=-1)"),
    ("top_k", "in double precision", "best.softmax(-1)", "best.double().softmax(-1)"),
    ("mix", "the gradient reaches the table", "table.detach()", "table"),
    ("mix", "no gradient to the weights", "probs[..., None]", "probs.detach()[..., None]"),
    ("mix", "mean instead of sum", ".sum(-2)", ".mean(-2)"),
    (
        "mix",
        "not weighted",
        "probs[..., None] * table.detach()[ids]",
        "(0 * probs[..., None] + 1 / probs.shape[-1]) * table.detach()[ids]",
    ),
    (
        "mix",
        "the most likely entry only",
        "probs[..., None]",
        "torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1])[..., None] * probs[..., None]",
    ),
    ("mix", "renormalised", "probs[..., None]", "(probs / probs.sum(-1, keepdim=True))[..., None]"),
    ("mix", "softmax of a softmax", "probs[..., None]", "probs.softmax(-1)[..., None]"),
    (
        "mix",
        "embeddings normalised",
        "table.detach()[ids]",
        "torch.nn.functional.normalize(table.detach(), dim=-1)[ids]",
    ),
    ("mix", "weights by the entries' squares", "probs[..., None]", "probs.square()[..., None]"),
    ("gumbel", "the global generator", ", generator=generator", ""),
    (
        "gumbel",
        "the generator's seed, so every call is the same",
        "generator=generator",
        "generator=torch.Generator().manual_seed(generator.initial_seed())",
    ),
    ("gumbel", "minus the noise", "scale * -torch.log", "scale * torch.log"),
    ("gumbel", "no clamp", ".clamp(-1.5, 3)", ""),
    ("gumbel", "clamped above only", ".clamp(-1.5, 3)", ".clamp(max=3)"),
    ("gumbel", "clamped the wrong way round", ".clamp(-1.5, 3)", ".clamp(-3, 1.5)"),
    (
        "gumbel",
        "clamped before it is scaled",
        "(scale * -torch.log(-torch.log(u))).clamp(-1.5, 3)",
        "scale * (-torch.log(-torch.log(u))).clamp(-1.5, 3)",
    ),
    ("gumbel", "normal noise", "torch.log(-torch.log(u))", "torch.special.ndtri(u)"),
    ("gumbel", "added to the probabilities, not to their logarithms", "((log + noise)", "((probs + noise)"),
    ("gumbel", "τ divides the logarithms only", "((log + noise) / tau)", "(log / tau + noise)"),
    ("gumbel", "times τ", "/ tau", "* tau"),
    ("gumbel", "softmax over the first dimension", ".softmax(-1)", ".softmax(0)"),
    (
        "gumbel",
        "one noise for all rows",
        "torch.rand(probs.shape, generator=generator, dtype=probs.dtype)",
        "torch.rand(probs.shape[-1:], generator=generator, dtype=probs.dtype)",
    ),
    ("gumbel", "an ε brings zeros back", "((log + noise)", "(((probs + 1e-6).log() + noise)"),
    ("gumbel", "not normalised", ".softmax(-1)", ".exp()"),
    (
        "sparse_kl",
        "the wrong direction",
        "(torch.special.xlogy(probs, probs) - probs * log_q)",
        "(log_q.exp() * (log_q - probs.clamp(min=1e-30).log()))",
    ),
    (
        "sparse_kl",
        "cross-entropy: the teacher's entropy is missing",
        "torch.special.xlogy(probs, probs) - probs * log_q",
        "-probs * log_q",
    ),
    (
        "sparse_kl",
        "the student's softmax over k entries only",
        "logits.log_softmax(-1).gather(-1, ids)",
        "logits.gather(-1, ids).log_softmax(-1)",
    ),
    ("sparse_kl", "softmax over the positions", "log_softmax(-1)", "log_softmax(0)"),
    ("sparse_kl", "logits instead of log-probabilities", ".log_softmax(-1)", ""),
    ("sparse_kl", "sum over positions", " / max(1, len(ids))", ""),
    ("sparse_kl", "mean over the entries, too", "len(ids)", "ids.numel()"),
    ("sparse_kl", "minus", "return ", "return -1 * "),
    (
        "sparse_kl",
        "NaN where the teacher has a zero",
        "torch.special.xlogy(probs, probs)",
        "probs * probs.log()",
    ),
    ("sparse_kl", "no gradient to the student", "log_q = logits", "log_q = logits.detach()"),
    (
        "sparse_kl",
        "an ε in the logarithm",
        "torch.special.xlogy(probs, probs)",
        "probs * (probs + 1e-6).log()",
    ),
    (
        "sparse_kl",
        "log of softmax, which overflows",
        "logits.log_softmax(-1)",
        "(logits.exp() / logits.exp().sum(-1, keepdim=True)).log()",
    ),
    ("sparse_kl", "the first k ids", ".gather(-1, ids)", "[:, :ids.shape[1]]"),
    (
        "sparse_kl",
        "entries of zero are skipped by position, all rows alike",
        "probs * log_q)",
        "probs * log_q * (probs[:1] > 0.1))",
    ),
    (
        "segment_cross_entropy",
        "mean over all tokens (the release)",
        "return (total / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)",
        "return nll.sum() / max(1, len(nll))",
    ),
    ("segment_cross_entropy", "labels not shifted", "ids[:, 1:][labelled]", "ids[:, :-1][labelled]"),
    ("segment_cross_entropy", "logits not shifted", "logits[:, :-1][labelled]", "logits[:, 1:][labelled]"),
    (
        "segment_cross_entropy",
        "shifted the other way",
        "BODY",
        """\
B, T, V = logits.shape
labelled = (kind[:, :-1] == TEXT) | (kind[:, :-1] == TAIL)
groups = int(block.max()) + 1
group = (block[:, :-1] + groups * torch.arange(B)[:, None])[labelled]
log_q = logits[:, 1:][labelled].log_softmax(-1)
nll = -log_q.gather(-1, ids[:, :-1][labelled][:, None])[:, 0]
total = torch.zeros(B * groups, dtype=nll.dtype).index_add(0, group, nll)
count = torch.zeros(B * groups, dtype=nll.dtype).index_add(0, group, torch.ones_like(nll))
return (total / count.clamp(min=1)).sum() / (count > 0).sum()""",
    ),
    (
        "segment_cross_entropy",
        "padding among the labels",
        "(following == TAIL)",
        "(following == TAIL) | (following == PAD)",
    ),
    (
        "segment_cross_entropy",
        "latents among the labels",
        "(following == TAIL)",
        "(following == TAIL) | (following == LATENT)",
    ),
    (
        "segment_cross_entropy",
        "the question among the labels",
        "(following == TAIL)",
        "(following == TAIL) | (following == PREFIX)",
    ),
    (
        "segment_cross_entropy",
        "the first label of a segment is missing",
        "labelled = (following == TEXT)",
        "labelled = ((following == TEXT) & (kind[:, :-1] == TEXT))",
    ),
    ("segment_cross_entropy", "the answer is missing", " | (following == TAIL)", ""),
    (
        "segment_cross_entropy",
        "blocks of different rows are one",
        "groups * torch.arange(B)[:, None]",
        "0 * torch.arange(B)[:, None]",
    ),
    ("segment_cross_entropy", "the block of the position before", "block[:, 1:]", "block[:, :-1]"),
    ("segment_cross_entropy", "empty blocks count", "(count > 0).sum().clamp(min=1)", "max(1, len(count))"),
    (
        "segment_cross_entropy",
        "averaged by row first",
        "return (total / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)",
        """\
each, some = (total / count.clamp(min=1)).view(B, groups).sum(1), (count > 0).view(B, groups).sum(1)
    return (each / some.clamp(min=1)).mean()""",
    ),
    ("segment_cross_entropy", "sums of blocks, not means", "total / count.clamp(min=1)", "total"),
    ("segment_cross_entropy", "count + 1", "count.clamp(min=1)", "(count + 1)"),
    (
        "segment_cross_entropy",
        "the last position of each row is dropped",
        "following = kind[:, 1:]",
        "following = kind[:, 1:].clone(); following[:, -1] = PAD",
    ),
    ("segment_cross_entropy", "softmax over the labels", ".log_softmax(-1)", ".log_softmax(0)"),
    (
        "autonomous_loss",
        "the KL at the latent itself, not before",
        "before[following == LATENT]",
        "logits[kind == LATENT]",
    ),
    (
        "autonomous_loss",
        "the cross-entropy at the label itself",
        "before[following == TAIL].log_softmax(-1)",
        "logits[:, 1:][following == TAIL].log_softmax(-1)",
    ),
    (
        "autonomous_loss",
        "labels not shifted",
        "ids[:, 1:][following == TAIL]",
        "ids[:, :-1][following == TAIL]",
    ),
    (
        "autonomous_loss",
        "</think> is no label",
        "labels = ids[:, 1:][following == TAIL]",
        "first = (kind[:, :-1] != TAIL)[following == TAIL]; labels, log_q = ids[:, 1:][following == "
        "TAIL][~first], log_q[~first]",
    ),
    (
        "autonomous_loss",
        "padding among the labels",
        "following == TAIL",
        "(following == TAIL) | (following == PAD)",
    ),
    (
        "autonomous_loss",
        "latent slots among the labels",
        "following == TAIL",
        "(following == TAIL) | (following == LATENT)",
    ),
    ("autonomous_loss", "λ and β swapped", "kl_weight * kl - ce_weight *", "ce_weight * kl - kl_weight *"),
    ("autonomous_loss", "β is ignored", "- ce_weight *", "-"),
    ("autonomous_loss", "λ is ignored", "kl_weight * kl", "kl"),
    ("autonomous_loss", "the cross-entropy's sign", "- ce_weight", "+ ce_weight"),
    ("autonomous_loss", "sum over the answer", " / max(1, len(labels))", ""),
    ("autonomous_loss", "divided by the latents", "len(labels)", "len(probs)"),
    (
        "autonomous_loss",
        "both divided by all labels together",
        "kl_weight * kl - ce_weight * log_q.gather(-1, labels[:, None]).sum() / max(1, len(labels))",
        "(kl_weight * kl * len(probs) - ce_weight * log_q.gather(-1, labels[:, None]).sum()) / (len(probs) "
        "+ len(labels))",
    ),
    ("autonomous_loss", "the KL does not train", "sparse_kl(before", "sparse_kl(before.detach()"),
    (
        "top_k",
        "forbidden ids take places among the k",
        "BODY",
        """\
best, ids = logits.topk(min(k, logits.shape[-1] - len(never)), dim=-1)
banned = torch.isin(ids, torch.tensor(never, dtype=torch.long))
return best.masked_fill(banned, float("-inf")).softmax(-1), ids""",
    ),
    (
        "gumbel",
        "the sum is clamped",
        "BODY",
        """\
u = torch.rand(probs.shape, generator=generator, dtype=probs.dtype)
return ((probs.log() - scale * torch.log(-torch.log(u))).clamp(-1.5, 3) / tau).softmax(-1)""",
    ),
    ("sparse_kl", "entries of id 0 count nothing", "- probs * log_q)", "- probs * log_q * (ids != 0))"),
    (
        "sparse_kl",
        "log q is clamped at -20",
        "logits.log_softmax(-1)",
        "logits.log_softmax(-1).clamp(min=-20)",
    ),
    (
        "segment_cross_entropy",
        "divided by the number of latents",
        "(count > 0).sum()",
        "(kind == LATENT).sum()",
    ),
    (
        "autonomous_loss",
        "the cross-entropy averaged by row first",
        "log_q.gather(-1, labels[:, None]).sum() / max(1, len(labels))",
        "(torch.zeros(len(ids), dtype=log_q.dtype).index_add(0, (following == TAIL).nonzero()[:, 0], "
        "log_q.gather(-1, labels[:, None])[:, 0]) / (following == TAIL).sum(1)).mean()",
    ),
    (
        "autonomous_loss",
        "the labels in the order of columns",
        "before[following == LATENT]",
        "before.transpose(0, 1)[following.T == LATENT]",
    ),
    ("top_k", "large logits are clamped", "best.softmax(-1)", "best.clamp(max=30).softmax(-1)"),
    ("top_k", "forbidden logits become -10", 'float("-inf")', "-10.0"),
    ("top_k", "forbidden logits become -100", 'float("-inf")', "-100.0"),
    ("top_k", "forbidden logits become -1e9", 'float("-inf")', "-1e9"),
    ("top_k", "k of at most eight", "k = min(k,", "k = min(k, 8,"),
    (
        "mix",
        "small weights are dropped",
        "probs[..., None]",
        "torch.where(probs < 1e-4, 0, probs)[..., None]",
    ),
    (
        "mix",
        "the first eight entries only",
        "return (probs[..., None] * table.detach()[ids]).sum(-2)",
        "return (probs[..., :8, None] * table.detach()[ids[..., :8]]).sum(-2)",
    ),
    (
        "gumbel",
        "small probabilities are taken for zero",
        "    log = ",
        "    probs = torch.where(probs < 1e-4, 0, probs)\n    log = ",
    ),
    (
        "gumbel",
        "small probabilities are raised to 1e-3",
        "torch.where(probs > 0, probs, 1).log()",
        "torch.where(probs > 0, probs, 1).clamp(min=1e-3).log()",
    ),
    (
        "gumbel",
        "no gradient through the logarithm",
        "torch.where(probs > 0, probs, 1).log()",
        "torch.where(probs > 0, probs, 1).log().detach()",
    ),
    ("gumbel", "a zero has a gradient of NaN", "torch.where(probs > 0, probs, 1).log()", "probs.log()"),
    (
        "gumbel",
        "u is clamped",
        ", generator=generator, dtype=probs.dtype)",
        ", generator=generator, dtype=probs.dtype).clamp(0.01, 0.99)",
    ),
    ("gumbel", "the logarithm of zero is -1000", 'float("-inf")', "-1e3"),
    (
        "sparse_kl",
        "small probabilities are taken for zero",
        "return (",
        "probs = torch.where(probs < 1e-4, 0, probs)\n    return (",
    ),
    (
        "sparse_kl",
        "small probabilities are raised to 1e-3",
        "torch.special.xlogy(probs, probs)",
        "probs * probs.clamp(min=1e-3).log()",
    ),
    ("sparse_kl", "NaN where a zero meets a logit of -∞", ".masked_fill(probs == 0, 0)", ""),
    (
        "sparse_kl",
        "log q is clamped at -1e4",
        "logits.log_softmax(-1)",
        "logits.log_softmax(-1).clamp(min=-1e4)",
    ),
    ("sparse_kl", "NaN without positions", "max(1, len(ids))", "len(ids)"),
    (
        "segment_cross_entropy",
        "groups by 10 · row + block",
        "BODY",
        """\
B, T, V = logits.shape
following = kind[:, 1:]
labelled = (following == TEXT) | (following == TAIL)
group = (block[:, 1:] + 10 * torch.arange(B)[:, None])[labelled]
log_q = logits[:, :-1][labelled].log_softmax(-1)
nll = -log_q.gather(-1, ids[:, 1:][labelled][:, None])[:, 0]
n = 100000
total = torch.zeros(n, dtype=nll.dtype).index_add(0, group, nll)
count = torch.zeros(n, dtype=nll.dtype).index_add(0, group, torch.ones_like(nll))
return (total / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)""",
    ),
    (
        "segment_cross_entropy",
        "groups by 10 · block + row",
        "BODY",
        """\
B, T, V = logits.shape
following = kind[:, 1:]
labelled = (following == TEXT) | (following == TAIL)
group = (10 * block[:, 1:] + torch.arange(B)[:, None])[labelled]
log_q = logits[:, :-1][labelled].log_softmax(-1)
nll = -log_q.gather(-1, ids[:, 1:][labelled][:, None])[:, 0]
n = 100000
total = torch.zeros(n, dtype=nll.dtype).index_add(0, group, nll)
count = torch.zeros(n, dtype=nll.dtype).index_add(0, group, torch.ones_like(nll))
return (total / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)""",
    ),
    (
        "segment_cross_entropy",
        "groups by 100 · row + block",
        "groups * torch.arange(B)",
        "100 * torch.arange(B)",
    ),
    ("segment_cross_entropy", "NaN without labels", ".sum().clamp(min=1)", ".sum()"),
    (
        "segment_cross_entropy",
        "log q is clamped at -100",
        "log_softmax(-1)",
        "log_softmax(-1).clamp(min=-100)",
    ),
    (
        "segment_cross_entropy",
        "log of a softmax with a floor",
        "log_softmax(-1)",
        "softmax(-1).clamp(min=1e-6).log()",
    ),
    (
        "autonomous_loss",
        "in double precision",
        "log_q = before[following == TAIL].log_softmax(-1)",
        "log_q = before[following == TAIL].double().log_softmax(-1)",
    ),
    (
        "autonomous_loss",
        "NaN without latents",
        "kl = sparse_kl(before[following == LATENT], probs, top)",
        "n = torch.tensor(len(probs), dtype=logits.dtype)\n    "
        "kl = sparse_kl(before[following == LATENT], probs, top) * n / n",
    ),
    ("autonomous_loss", "NaN without a tail", "max(1, len(labels))", "len(labels)"),
    (
        "autonomous_loss",
        "log q is clamped at -100",
        "[following == TAIL].log_softmax(-1)",
        "[following == TAIL].log_softmax(-1).clamp(min=-100)",
    ),
]
