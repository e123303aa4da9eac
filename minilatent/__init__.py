"""minilatent: latent reasoning in language models, from scratch."""

import os

# PyTorch's CPU keeps a kernel for each of the last 1,024 shapes; no two batches are alike, so these take
# a gigabyte and save no time.
os.environ.setdefault("LRU_CACHE_CAPACITY", "1")
