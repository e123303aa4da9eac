"""minilatent: latent reasoning in language models, from scratch."""
import os

# PyTorch's CPU kernels are compiled for every new shape and kept, a thousand of them: gigabytes, as no two batches are alike.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
