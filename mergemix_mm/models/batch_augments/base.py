"""What mixing one batch gives back: images, labels' shares, and what the figures show."""

from dataclasses import dataclass

from torch import Tensor

from ...functional import mix_labels


@dataclass
class MixResult:
    """A mixed batch. Shapes: B images, L' patches.

    Args:
        images (Tensor): [B, 3, H, W] mixed, normalised images.
        partner (Tensor): [B] int64, the image each one was mixed with.
        ratio (Tensor): [B] float32, the share of the image's own label in [0, 1].
        mask (Tensor, optional): [B, L'] bool over the patch grid, row by row; True where the image keeps its own
            pixels. None for mixers without one (Mixup, CutMix, ResizeMix).
        saliency (Tensor, optional): [B, L'] float32, the attention each patch gets.
        grid (tuple[int, int], optional): rows and columns of the patch grid.
        clean (Tensor, optional): [B, 3, H, W], the images before mixing.
    """

    images: Tensor
    partner: Tensor
    ratio: Tensor
    mask: Tensor | None = None
    saliency: Tensor | None = None
    grid: tuple[int, int] | None = None
    clean: Tensor | None = None

    def mix_scores(self, scores: Tensor) -> Tensor:
        """Mix labels [B, num_classes] as the images were mixed."""
        return mix_labels(scores, self.partner, self.ratio)
