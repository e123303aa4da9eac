"""minilatent: latent reasoning in language models, from scratch."""
