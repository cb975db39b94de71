"""SwapImages: another image of the batch in place of each one, as a loser for mixed SimPO (arXiv 2510.23479)."""

from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor

from ...functional import derangement


@BATCH_AUGMENTS.register_module()
class SwapImages:
    """Give each image, and its label with it, to another sample: a mix that keeps nothing, with ratio 0."""

    def __call__(self, inputs: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Swap as MMPretrain's batch augments mix.

        Args:
            inputs (Tensor): [B, 3, H, W] images.
            scores (Tensor): [B, num_classes] one-hot or soft labels.

        Returns:
            tuple: images and labels in another order; a batch of one comes back as it is.
        """
        if len(inputs) < 2:
            return inputs, scores.float()
        partner = derangement(len(inputs), device=inputs.device)
        return inputs[partner], scores[partner].float()
