"""Latent-SFT's ablation `--latent hidden`: a latent is the last hidden state, standardised to the embeddings'
scale, and not projected on the vocabulary."""

import torch
from torch import Tensor

from ..decode import hidden_thinker, standardise
from ..latent import mix
from ..losses import log_not, mean
from .latent_sft import LatentSFT


class HiddenLatentSFT(LatentSFT):
    """Where a mixture has a KL, a hidden state has a squared error."""

    mixed = False
    stored = {"states": torch.half}  # of unit variance

    def project(self, h):
        W = self.model.embed.weight.detach()
        z = standardise(h, W)
        return z, {"states": z / W.std()}

    def pull(self, z, label, probs, ids):
        """To the embedding of the segment's mixture, so that the ablation has the same help."""
        W = self.model.embed.weight.detach()
        return self.squared_error(z, standardise(mix(probs, ids, W), W))

    def given_latents(self, batch, noise):
        z = batch["label_states"] * self.model.embed.weight.detach().std()  # stage 2 trains the table
        return z, z

    def divergence(self, h, label):
        logits = self.model.logits(h)
        error = self.squared_error(standardise(h, self.model.embed.weight), label)
        return error - mean(log_not(logits, self.tok.end_think))  # the head learns "not yet"

    def squared_error(self, states: Tensor, others: Tensor) -> Tensor:
        """The mean over latents and width of two standardised (n, C), in units of the embeddings' std."""
        return mean(((states - others) / self.model.embed.weight.detach().std()).pow(2))

    def thinker(self):
        return hidden_thinker(self.model)
