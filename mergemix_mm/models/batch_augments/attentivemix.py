"""AttentiveMix: the most attended cells of the partner are pasted (https://arxiv.org/abs/2003.13048)."""

import torch
import torch.nn.functional as F
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor

from ...functional import cells_to_pixels, topk_mask
from ...utils.numbers import check_number
from ..vision_encoders import PatchScores
from .mask_mixer import MaskMixer


@BATCH_AUGMENTS.register_module()
class AttentiveMix(MaskMixer):
    """Paste the most attended cells of the partner over each image (Attentive CutMix, 2003.13048).

    The image is cut into a grid of cells, whose attention is the mean over their patches. The partner's N most attended
    cells cover the image's cells in the same places. The label is the area. A vision transformer scores, that of the
    classifier or a frozen ``encoder``; the paper takes a ResNet-50 that was trained on ImageNet.

    Args:
        alpha (float): Parameter of lambda ~ Beta(alpha, alpha), > 0 and finite. Only with ``num_cells=None``. Defaults
            to 1.0.
        num_cells (int, optional): N, in [1, grid * grid). None draws lambda, and a share lambda of the cells is the
            image's own. Defaults to 6, the paper's.
        grid (int): Cells along each side. Defaults to 7, the paper's.
        attended (str): Whose attention decides: ``'partner'``, as in the paper, or ``'own'``: the image keeps its own
            most attended cells. OpenMixup mixes with ``'own'`` (``openmixup/models/augments/attentivemix.py``).
            Defaults to ``'partner'``.
        **kwargs: The others of :class:`MaskMixer`.

    Raises:
        ValueError: If an argument is out of its range or has no effect.
    """

    mask_needs_scores = True

    def __init__(
        self,
        alpha: float = 1.0,
        num_cells: int | None = 6,
        grid: int = 7,
        attended: str = 'partner',
        **kwargs,
    ) -> None:
        super().__init__(alpha=alpha, **kwargs)
        check_number('AttentiveMix: grid', grid, 'an int >= 2', least=2, integer=True)
        if num_cells is not None:
            allowed = f'an int in [1, {grid * grid - 1}], or None to draw it'
            check_number('AttentiveMix: num_cells', num_cells, allowed, least=1, most=grid * grid - 1, integer=True)
            if alpha != 1.0 or self.per_image:
                given = f'alpha={alpha}' if alpha != 1.0 else 'per_image=True'
                raise ValueError(f'AttentiveMix: {given} has no effect with num_cells={num_cells}; set num_cells=None')
        if attended not in ('partner', 'own'):
            raise ValueError(f"AttentiveMix: attended={attended!r} must be 'partner' or 'own'")
        self.num_cells = num_cells
        self.grid = grid
        self.attended = attended

    def draw_mask(
        self, images: Tensor, partner: Tensor, scores: PatchScores | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """The cells, on the grid of the pixels."""
        assert scores is not None  # mask_needs_scores
        height, width = images.shape[-2:]
        attention = F.adaptive_avg_pool2d(scores.saliency.unflatten(1, scores.grid)[:, None], self.grid).flatten(1)
        own = self.attended == 'own'
        total = self.grid * self.grid
        if self.num_cells is None:
            share = self.draw_lambda(len(images), generator)
            number = (share * total).floor()
            number = number if own else total - number
        else:
            number = torch.full((len(images),), float(self.num_cells), dtype=torch.float64)
        # In the middle between two counts, so that rounding cannot lose a cell.
        shown = topk_mask(attention if own else attention[partner], ((number + 0.5) / total).clamp(max=1))
        cells = (shown if own else ~shown).unflatten(1, (self.grid, self.grid))
        return cells_to_pixels(cells, (height, width)).flatten(1), (height, width)
