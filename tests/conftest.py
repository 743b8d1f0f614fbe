"""One thread for every test: the networks are tiny, and threads make sums differ from run to run."""

import torch

torch.set_num_threads(1)
