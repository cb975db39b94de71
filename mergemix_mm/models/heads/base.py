"""What a forward pass says of the answers of a batch."""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class AnswerScores:
    """Log-probabilities of the answers. Shapes: B samples.

    Args:
        sums (Tensor): [B] float32, summed over the answer tokens of each sample.
        lengths (Tensor): [B] int64, numbers of answer tokens.
    """

    sums: Tensor
    lengths: Tensor

    @property
    def means(self) -> Tensor:
        """[B], per answer token; 0 for a sample without any."""
        return self.sums / self.lengths.clamp(min=1)
