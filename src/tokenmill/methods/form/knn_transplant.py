"""Nearest donors: a new token is a softmax average of the shared tokens most like it in the donor.

A = the `anchors` shared tokens with the largest cos(d, D_j)
c = softmax( cos(d, D_A) / temperature )
"""

from torch import Tensor
from torch.nn.functional import normalize

from tokenmill.method import method
from tokenmill.types import Transplant


@method(title="")
def knn_transplant(
    donor_new: Tensor, donor_shared: Tensor, *, anchors: int = 8, temperature: float = 0.1
) -> Transplant:
    cosine = normalize(donor_new.float(), dim=-1) @ normalize(donor_shared.float(), dim=-1).T  # (N, S)
    nearest = cosine.topk(min(anchors, len(donor_shared)))
    return Transplant(nearest.indices, (nearest.values / max(temperature, 1e-6)).softmax(-1))
