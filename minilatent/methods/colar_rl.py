"""CoLaR with RL: GRPO (see grpo.py) from a CoLaR run that was trained by NLL (soft-MSE's σ goes to 0).

Latents are sampled from N(μ, σ). `--no-average` is the paper's "w/o average". A latent's log-density
is its mean over the C dimensions of the width (the release's choice), so ρ is the C-th root of the
likelihood ratio: clipping at 1 ± ε is C times more lenient, and a latent weighs about as much as a
token. `--log_density sum` is the likelihood ratio itself; a small step in C dimensions moves it far,
and most is clipped. A `--sigma_floor` above the run's own floor spreads the samples more widely.

What to expect: on the first edition of mini, little (results/TRIALS.md). A sample moves a latent by σ in
every direction, so by σ along the line to another block's embedding, which is a hundred σ away: it
refines a latent, and never tries another number.

    python train.py --method colar_rl --init out/colar
"""

from dataclasses import dataclass

import torch

from ..config import UserError, opt
from .colar import CoLaR
from .grpo import GRPO, RL_PRESETS, GRPOSettings


@dataclass
class Settings(GRPOSettings, CoLaR.Settings):
    log_density: str = opt("mean", "over the width, of a latent's log-density", choices=("mean", "sum"))


class CoLaRRL(GRPO, CoLaR):
    Settings = Settings
    PRESETS = {
        **RL_PRESETS,
        "mini": {"optimizer": "adamw", "steps": 180, "lr": 3e-5, "batch_size": 64, "latent_loss": "nll"},
        "smoke": {"group": 4, "max_chain": 24},
    }
    latent_tensors = ("z",)

    @classmethod
    def inherit(cls, config, settings) -> None:
        super().inherit(config, settings)
        if settings.get("method") in ("colar", "colar_rl"):
            config.latent_loss = settings["latent_loss"]
            config.sigma_floor = max(config.sigma_floor, settings.get("sigma_floor", 0.0))

    def adopt(self, tensors, settings) -> None:
        way_out = "train one with --method colar --latent_loss nll, then --init its folder"
        if settings.get("method") not in ("colar", "colar_rl"):
            raise UserError(f"colar_rl starts from a CoLaR run: {way_out}")
        loss = settings["latent_loss"]
        if loss == "mse" or loss == "soft_mse" and not settings["entropy_weight"]:
            trained = f"its --init was trained with --latent_loss {loss}, which leaves none"
            raise UserError(f"colar_rl samples latents with the latent head's σ: {trained}; {way_out}")
        super().adopt(tensors, settings)

    def trainable(self) -> list[str]:
        return [*super().trainable(), "latent_head"]

    def policy(self, generator: torch.Generator):
        return self.thinker(1.0, generator)

    def sampled_latents(self, out, real):
        return {"z": out.latents[real]}  # (n, C)

    def latent_embeddings(self, batch):
        return batch["z"]

    def latent_log_prob(self, batch, hidden):
        mu, log_sigma = (t.float() for t in self.latent_head(hidden))  # (n, C)
        z = (batch["z"] / self.scale).float()
        density = torch.distributions.Normal(mu, log_sigma.exp()).log_prob(z)  # (n, C)
        density = density.mean(-1) if self.config.log_density == "mean" else density.sum(-1)
        return density, {"sigma": log_sigma.exp()}
