"""Two linear projections of frozen embeddings, trained so that a row finds what helps it.

Shapes: B rows, P helpful demonstrations of each, N examples, D dimensions.
"""

import numpy as np
import torch
from torch import Tensor, nn

TEMPERATURE = 0.05
"""Of the softmax: cosines differ by hundredths, and only their order matters in the end (assumption: as in SimCSE)."""


class Projections(nn.Module):  # type: ignore[misc]
    """Queries and demonstrations out of the same embeddings, and the contrastive loss between them.

    Both maps are held as what they add to the identity, so that weight decay draws them there.
    """

    def __init__(self, vectors_ND: np.ndarray) -> None:
        """Begin as the identity."""
        super().__init__()
        size = vectors_ND.shape[1]
        self.register_buffer("vectors_ND", torch.from_numpy(np.ascontiguousarray(vectors_ND, np.float32)))
        self.query = nn.Parameter(torch.zeros(size, size))
        self.demonstration = nn.Parameter(torch.zeros(size, size))

    def forward(self, own_B: Tensor, positives_BP: Tensor, spared_BN: Tensor) -> Tensor:
        """The sum over helpful demonstrations of the InfoNCE loss [1].

        Args:
            own_B: places of the rows among the examples.
            positives_BP: places of what helped each; -1 where there is none.
            spared_BN: True where an example is no negative of the row: itself, and what helped it.
        """
        # Differences of cosines are lost in half precision.
        with torch.autocast(own_B.device.type, enabled=False):
            own_BD = self.vectors_ND[own_B]
            shown_ND = self.vectors_ND + self.vectors_ND @ self.demonstration.T
            scores_BN = (own_BD + own_BD @ self.query.T) @ shown_ND.T / TEMPERATURE
            negatives_B1 = scores_BN.masked_fill(spared_BN, -torch.inf).logsumexp(1, keepdim=True)
            helpful_BP = scores_BN.gather(1, positives_BP.clamp(min=0))
            # -log(e^p / (e^p + sum of e^n)), in the form that does not overflow.
            loss_BP = nn.functional.softplus(negatives_B1 - helpful_BP)
            return torch.stack([loss_BP.masked_fill(positives_BP < 0, 0.0).sum()])
