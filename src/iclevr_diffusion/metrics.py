"""How well pictures show their labels."""

import torch
from torch import Tensor
from torchmetrics import Metric


class LabelAccuracy(Metric):
    """Pooled top-k label accuracy, the course's score.

    For a picture with k true labels, the k largest of the evaluator's outputs are its answer. The
    score is all hits over all labels; it does not punish an extra object.
    """

    higher_is_better = True
    full_state_update = False
    hits: Tensor
    labels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("hits", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("labels", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Add pictures: scores float (B, L), any monotone scale; labels (B, L), multi-hot.

        Raises:
            ValueError: shapes differ, or a score is NaN.
        """
        if scores.shape != labels.shape:
            raise ValueError(
                f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} differ in shape"
            )
        if scores.isnan().any():
            raise ValueError("the evaluator gave NaN")
        true = labels > 0.5
        count = true.sum(1, keepdim=True)
        ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        self.hits += ((ranks < count) & true).sum()
        self.labels += count.sum()

    def compute(self) -> Tensor:
        """Hits over labels, in [0, 1]; NaN when nothing was added."""
        return self.hits / self.labels
