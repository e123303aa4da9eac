"""Plausible wrong answers to lab 3: (problem, what is wrong, text of the solution, its replacement)."""

MUTANTS = [
    (
        "to_blocks",
        "the last, short block is dropped",
        "range(0, len(chain), c)]",
        "range(0, len(chain) - c + 1, c)]",
    ),
    (
        "to_blocks",
        "padded on the left",
        "block + [pad] * (c - len(block))",
        "[pad] * (c - len(block)) + block",
    ),
    ("to_blocks", "padding is always 0", "[pad]", "[0]"),
    ("to_blocks", "blocks overlap", "range(0, len(chain), c)]", "range(0, len(chain))]"),
    (
        "to_blocks",
        "an empty chain has a block of padding",
        "[len(chain) for chain in blocks]",
        "[len(chain) or 1 for chain in blocks]",
    ),
    (
        "to_blocks",
        "counts tokens, not blocks",
        "[len(chain) for chain in blocks]",
        "[len(chain) for chain in chains]",
    ),
    (
        "to_blocks",
        "blocks cross the ends of the chains",
        "for chain in chains]",
        "for chain in [sum(chains, [])]]",
    ),
    (
        "to_blocks",
        "floor instead of ceiling",
        "range(0, len(chain), c)]",
        "range(0, len(chain) // c * c, c)]",
    ),
    ("compress", "mean instead of sum / √c", "count.to(embeds.dtype).sqrt()", "count.to(embeds.dtype)"),
    ("compress", "plain sum", " / count.to(embeds.dtype).sqrt()", ""),
    (
        "compress",
        "√ of the block's size, not of its real tokens",
        "count = real.sum(1, keepdim=True)",
        "count = torch.full((len(real), 1), real.shape[1])",
    ),
    ("compress", "padding is summed", "torch.where(real[:, :, None], embeds, 0)", "embeds"),
    (
        "compress",
        "padding times 0, which lets NaN through",
        "torch.where(real[:, :, None], embeds, 0)",
        "(embeds * real[:, :, None])",
    ),
    (
        "compress",
        "the gradient is detached",
        "torch.where(real[:, :, None], embeds, 0)",
        "torch.where(real[:, :, None], embeds, 0).detach()",
    ),
    (
        "compress",
        "√ of the batch's mean count",
        "count = real.sum(1, keepdim=True)",
        "count = real.sum(1, keepdim=True).double().mean().expand(len(real), 1)",
    ),
    ("compress", "c² instead of √c", ".sqrt()", ".square()"),
    ("compress", "√(c + 1)", "count = real.sum(1, keepdim=True)", "count = real.sum(1, keepdim=True) + 1"),
    (
        "compress",
        "divided by the vectors' own length",
        "return total / count.to(embeds.dtype).sqrt()",
        "return total / (total.norm(dim=-1, keepdim=True) + 1e-9)",
    ),
    ("compress", "the last token only", ".sum(1)  #", "[:, 0]  #"),
    ("compress", "an ε in the divisor", ".sqrt()", ".sqrt().add(1e-6)"),
    ("random_labels", "the global generator", "generator=generator, ", ""),
    (
        "random_labels",
        "a generator of its own",
        "generator=generator",
        "generator=torch.Generator().manual_seed(0)",
    ),
    (
        "random_labels",
        "always the first",
        "(torch.rand(len(blocks), generator=generator, dtype=torch.float64) * count).long()",
        "torch.zeros(len(blocks), dtype=torch.long)",
    ),
    (
        "random_labels",
        "always the last real one",
        "(torch.rand(len(blocks), generator=generator, dtype=torch.float64) * count).long()",
        "count - 1",
    ),
    (
        "random_labels",
        "padding can be sampled",
        "count = real.sum(1)",
        "count = torch.full((len(real),), real.shape[1])",
    ),
    (
        "random_labels",
        "the last real one is never sampled",
        "count = real.sum(1)",
        "count = (real.sum(1) - 1).clamp(min=1)",
    ),
    ("random_labels", "rounded instead of truncated", ").long()", ").round().long().clamp(max=count - 1)"),
    ("random_labels", "one sample for all blocks", "torch.rand(len(blocks), ", "torch.rand(1, "),
    (
        "random_labels",
        "the place, not the token",
        "return blocks.gather(1, chosen[:, None])[:, 0]",
        "return chosen",
    ),
    (
        "random_labels",
        "of the block before",
        "return blocks.gather(1, chosen[:, None])[:, 0]",
        "return blocks.roll(1, 0).gather(1, chosen[:, None])[:, 0]",
    ),
    ("next_targets", "not detached", ").detach()", ")"),
    ("next_targets", "not divided by std", " / std", ""),
    ("next_targets", "times std", "/ std", "* std"),
    ("next_targets", "no end", "torch.cat([row, end[None]])", "row"),
    ("next_targets", "the end comes first", "torch.cat([row, end[None]])", "torch.cat([end[None], row])"),
    (
        "next_targets",
        "one end for the whole batch",
        "BODY",
        "return (torch.cat([z, end[None]]) / std).detach()",
    ),
    (
        "next_targets",
        "the same block, not the next",
        "torch.cat([row, end[None]])",
        "torch.cat([row[:1], row])",
    ),
    (
        "next_targets",
        "two blocks ahead",
        "torch.cat([row, end[None]])",
        "torch.cat([row[1:], end[None], end[None]])",
    ),
    (
        "next_targets",
        "the end is not divided",
        "BODY",
        """\
rows = [torch.cat([row / std, end[None]]) for row in z.split(counts)]
return torch.cat(rows).detach()""",
    ),
    (
        "next_targets",
        "only the end is detached",
        "(torch.cat(rows) / std).detach()",
        "(torch.cat(rows) / std)",
    ),
    ("next_targets", "standardised", "/ std).detach()", "/ std - torch.cat(rows).mean()).detach()"),
    (
        "next_targets",
        "the first block is not a target",
        "torch.cat([row, end[None]])",
        "torch.cat([row[1:], end[None]])",
    ),
    ("gaussian_nll", "no ½", "(2 * (2 * log_sigma).exp())", "(2 * log_sigma).exp()"),
    ("gaussian_nll", "σ instead of σ²", "(2 * log_sigma).exp()", "log_sigma.exp()"),
    ("gaussian_nll", "minus log σ", ".exp()) + log_sigma", ".exp()) - log_sigma"),
    ("gaussian_nll", "2 log σ", ".exp()) + log_sigma", ".exp()) + 2 * log_sigma"),
    ("gaussian_nll", "log σ is forgotten", " + log_sigma)", ")"),
    ("gaussian_nll", "with the constant", "+ log_sigma)", "+ log_sigma + 0.9189385332046727)"),
    ("gaussian_nll", "the density, not minus it", "return ", "return -1 * "),
    ("gaussian_nll", "sum over the width", ".mean()", ".sum(-1).mean()"),
    ("gaussian_nll", "sum", ".mean()", ".sum()"),
    ("gaussian_nll", "the absolute error", ".square()", ".abs()"),
    ("gaussian_nll", "an ε added to σ²", "(2 * (2 * log_sigma).exp())", "(2 * (2 * log_sigma).exp() + 1e-8)"),
    (
        "gaussian_nll",
        "σ does not learn",
        "(2 * (2 * log_sigma).exp())",
        "(2 * (2 * log_sigma.detach()).exp())",
    ),
    ("gaussian_nll", "μ does not learn", "target - mu", "target - mu.detach()"),
    ("gaussian_nll", "log σ is taken for σ", "(2 * (2 * log_sigma).exp())", "(2 * log_sigma.square())"),
    ("soft_mse", "σ instead of σ²", "(2 * log_sigma).exp()", "log_sigma.exp()"),
    ("soft_mse", "σ² is forgotten", " + (2 * log_sigma).exp()", ""),
    ("soft_mse", "minus σ²", "+ (2 * log_sigma).exp()", "- (2 * log_sigma).exp()"),
    ("soft_mse", "plus the entropy", "squared - alpha", "squared + alpha"),
    ("soft_mse", "the entropy of log σ twice", "math.e) + log_sigma", "math.e) + 2 * log_sigma"),
    (
        "soft_mse",
        "the entropy without its constant",
        "0.5 * math.log(2 * math.pi * math.e) + log_sigma",
        "log_sigma",
    ),
    ("soft_mse", "the entropy without e", "math.pi * math.e", "math.pi"),
    ("soft_mse", "α is ignored", "if alpha:", "if False:"),
    (
        "soft_mse",
        "one sample instead of the closed form",
        "(target - mu).square() + (2 * log_sigma).exp()",
        "(mu + log_sigma.exp() * torch.randn(mu.shape, generator=torch.Generator().manual_seed(0), "
        "dtype=mu.dtype) - target).square()",
    ),
    ("soft_mse", "sum", "squared.mean()", "squared.sum()"),
    ("soft_mse", "NaN for σ = 0", "if alpha:", "if True:"),
    ("soft_mse", "σ does not learn", "(2 * log_sigma).exp()", "(2 * log_sigma.detach()).exp()"),
    ("soft_mse", "half the squared error", "(target - mu).square()", "0.5 * (target - mu).square()"),
    ("next_input", "std is forgotten", "mu * std", "mu"),
    ("next_input", "divided by std", "mu * std", "mu / std"),
    (
        "next_input",
        "the noise is not scaled back",
        "BODY",
        """\
noise = 0
if temperature > 0:
    noise = temperature * log_sigma.exp() * torch.randn(mu.shape, generator=generator, dtype=mu.dtype)
return mu * std + noise""",
    ),
    ("next_input", "log σ is taken for σ", "log_sigma.exp()", "log_sigma"),
    ("next_input", "the temperature is ignored", "temperature * log_sigma", "log_sigma"),
    ("next_input", "uniform noise", "torch.randn", "torch.rand"),
    ("next_input", "the global generator", "generator=generator, ", ""),
    ("next_input", "one noise for all rows", "torch.randn(mu.shape, ", "torch.randn(mu.shape[-1:], "),
    ("next_input", "NaN when cold", "if temperature > 0:", "if True:"),
    ("next_input", "the mean always", "if temperature > 0:", "if False:"),
    ("next_input", "√temperature", "temperature * log_sigma", "temperature ** 0.5 * log_sigma"),
    (
        "compress",
        "mean times the root of the block's size",
        "total / count.to(embeds.dtype).sqrt()",
        "total / count.to(embeds.dtype) * real.shape[1] ** 0.5",
    ),
    (
        "random_labels",
        "a sample from c, modulo the count",
        "BODY",
        """\
count = real.sum(1)
chosen = torch.randint(0, real.shape[1], (len(blocks),), generator=generator) % count
return blocks.gather(1, chosen[:, None])[:, 0]""",
    ),
    (
        "random_labels",
        "the shortest block's count for all",
        "count = real.sum(1)",
        "count = real.sum(1).min().expand(len(real))",
    ),
    (
        "next_targets",
        "rows without latents have no end",
        "rows = [torch.cat([row, end[None]]) for row in z.split(counts)]",
        "rows = [torch.cat([row, end[None]]) for row in z.split(counts) if len(row)] or [end[None][:0]]",
    ),
    (
        "gaussian_nll",
        "log σ is clamped at -5",
        "BODY",
        """\
log_sigma = log_sigma.clamp(min=-5)
return ((target - mu).square() / (2 * (2 * log_sigma).exp()) + log_sigma).mean()""",
    ),
    (
        "gaussian_nll",
        "log σ is clamped at 2",
        "BODY",
        """\
log_sigma = log_sigma.clamp(max=2)
return ((target - mu).square() / (2 * (2 * log_sigma).exp()) + log_sigma).mean()""",
    ),
    (
        "gaussian_nll",
        "PyTorch's loss with its ε",
        "BODY",
        """\
return torch.nn.functional.gaussian_nll_loss(mu, target, (2 * log_sigma).exp())""",
    ),
    (
        "soft_mse",
        "log σ is clamped at 2",
        "BODY",
        """\
log_sigma = log_sigma.clamp(max=2)
squared = (target - mu).square() + (2 * log_sigma).exp()
if alpha:
    squared = squared - alpha * (0.5 * math.log(2 * math.pi * math.e) + log_sigma)
return squared.mean()""",
    ),
    (
        "soft_mse",
        "log σ is clamped at -5",
        "BODY",
        """\
log_sigma = log_sigma.clamp(min=-5)
squared = (target - mu).square() + (2 * log_sigma).exp()
if alpha:
    squared = squared - alpha * (0.5 * math.log(2 * math.pi * math.e) + log_sigma)
return squared.mean()""",
    ),
    ("next_input", "a large σ is clamped", "log_sigma.exp()", "log_sigma.clamp(max=1).exp()"),
    (
        "soft_mse",
        "large errors count linearly",
        "(target - mu).square()",
        "2 * torch.nn.functional.huber_loss(mu, target, reduction='none', delta=5.0)",
    ),
    (
        "to_blocks",
        "tokens that look like padding are dropped",
        "blocks = [",
        "chains = [[t for t in chain if t != pad] for chain in chains]\n    blocks = [",
    ),
    (
        "to_blocks",
        "an error without chains",
        "BODY",
        """\
blocks = [[chain[at : at + c] for at in range(0, len(chain), c)] for chain in chains]
longest = max(len(b) for b in blocks)
rows = [block + [pad] * (c - len(block)) for chain in blocks for block in chain]
return torch.tensor(rows, dtype=torch.long).view(-1, c), [len(chain) for chain in blocks]""",
    ),
    (
        "compress",
        "the first places instead of the real ones",
        "total = ",
        "real = torch.arange(real.shape[1]) < count\n    total = ",
    ),
    ("compress", "a count of at most six", "count.to(", "count.clamp(max=6).to("),
    (
        "compress",
        "0 · ∞",
        "torch.where(real[:, :, None], embeds, 0)",
        "embeds.nan_to_num(posinf=float('inf'), neginf=float('-inf')) * real[:, :, None]",
    ),
    ("next_targets", "four rows only", "z.split(counts)", "z.split(counts)[:4]"),
    (
        "gaussian_nll",
        "log σ is clamped at ±20",
        "BODY",
        """\
log_sigma = log_sigma.clamp(-20, 20)
return ((target - mu).square() / (2 * (2 * log_sigma).exp()) + log_sigma).mean()""",
    ),
    (
        "gaussian_nll",
        "the distance is clamped",
        "(target - mu).square()",
        "(target - mu).clamp(-1e3, 1e3).square()",
    ),
    (
        "soft_mse",
        "log σ is clamped at ±20",
        "BODY",
        """\
log_sigma = log_sigma.clamp(-20, 20)
squared = (target - mu).square() + (2 * log_sigma).exp()
if alpha:
    squared = squared - alpha * (0.5 * math.log(2 * math.pi * math.e) + log_sigma)
return squared.mean()""",
    ),
    (
        "soft_mse",
        "a gradient of NaN at σ = 0",
        "BODY",
        """\
sigma = log_sigma.exp()
h = torch.where(sigma > 0, 0.5 * math.log(2 * math.pi * math.e) + sigma.log(), 0.0)
return ((target - mu).square() + sigma.square() - alpha * h).mean()""",
    ),
    ("next_input", "a low temperature is taken for 0", "if temperature > 0:", "if temperature > 0.05:"),
    ("next_input", "log σ is at most 20", "log_sigma.exp()", "log_sigma.clamp(max=20).exp()"),
    ("next_input", "a temperature of at most 1", "mu + temperature", "mu + min(temperature, 1.0)"),
]
