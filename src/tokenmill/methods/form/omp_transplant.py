"""OMP transplant: build a new token from a few shared ones, chosen and weighed where a donor model knows them all.

    repeat `anchors` times:  j = argmax | <d - D_A c, D_j> |,  A = A + {j},  c = argmin || d - D_A c ||
    new row of the base model = c @ B_A

with d the new token's row and D the shared tokens' rows in the donor, B the shared tokens' rows in the base model.

Goddard and Fernandes Neto, "Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit", 2025.

Differs: rows of tokens that both tokenizers have are the caller's to copy; the authors' tool does it.
"""

from torch import Tensor

from tokenmill.method import method
from tokenmill.ops.match import orthogonal_matching_pursuit
from tokenmill.types import Transplant


@method(
    title="Training-Free Tokenizer Transplantation via Orthogonal Matching Pursuit",
    paper="arXiv:2506.06607",
    year=2025,
)
def omp_transplant(donor_new: Tensor, donor_shared: Tensor, *, anchors: int = 64) -> Transplant:
    return Transplant(*orthogonal_matching_pursuit(donor_new, donor_shared, anchors))
