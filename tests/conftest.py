"""One thread: the tiny models are too small to share, and several test processes share the cores."""

import torch

torch.set_num_threads(1)
