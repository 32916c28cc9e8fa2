"""Mean transplant: every new token starts as the average of all shared ones.

c_j = 1 / S  for each of the S shared tokens
"""

import torch
from torch import Tensor

from tokenmill.method import method
from tokenmill.types import Transplant


@method(title="")
def mean_transplant(donor_new: Tensor, donor_shared: Tensor) -> Transplant:
    new, shared = len(donor_new), len(donor_shared)
    everyone = torch.arange(shared, device=donor_new.device)
    return Transplant(everyone.expand(new, shared), torch.ones_like(everyone).div(shared).expand(new, shared))  # (N, S)
