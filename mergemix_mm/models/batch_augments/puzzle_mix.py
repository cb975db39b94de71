"""Puzzle Mix: masks from graph cuts, and salient cells moved to where they show (https://arxiv.org/abs/2009.06962)."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from mmpretrain.registry import BATCH_AUGMENTS
from torch import Tensor, nn

from ...functional import MaskCosts, mask_costs, move_cells, replace_patches, transport_costs
from ...utils.numbers import check_number
from ..vision_encoders import PatchScores
from .base import MixResult, TrainingBatch
from .input_gradient import PixelScores, input_gradient
from .mask_mixer import MaskMixer

# Cells are moved on a grid of at least this side, as the authors' 4 pixels of 32.
_TRANSPORT_SIDE = 8


@BATCH_AUGMENTS.register_module()
class PuzzleMix(MaskMixer):
    """Mix each image with a partner by the mask that shows most saliency of both, and move salient cells into view.

    The saliency of a pixel is the gradient of the classifier's loss on the clean image. Each cell of a mask shows a
    share of 0, 1/2 or 1 of the own image; a graph cut finds the mask of the least energy
    (:func:`mergemix_mm.functional.mask_costs`). Then the cells of both images are permuted so that what shows is
    salient and has not moved far. The label's share is the mean of the mask.

    The authors minimise the same energy by alpha-beta swaps, which end in a local minimum. Its pairwise cost is convex,
    so that one cut of a graph with two nodes per cell finds the global one (H. Ishikawa, Exact optimization for Markov
    random fields with convex priors, PAMI 2003). The moves are the exact optimum of the paper's transport as well.

    It works in `MixupClassifier` only. It costs a forward and a backward pass of the classifier, and cuts and moves on
    the CPU (docs/methods/mixing_rivals.md).

    Args:
        alpha (float): Parameter of lambda ~ Beta(alpha, alpha), the prior share of the own image, > 0 and finite.
            Defaults to 1.0.
        per_image (bool): Whether each image gets a lambda of its own instead of one for the batch. Defaults to False.
        sides (Sequence[int]): Sides of the square grids of cells, of which one is drawn for each batch, >= 2. Height
            and width of the images are multiples of all. Defaults to (2, 4, 8, 16).
        beta (float): Weight of smoothness, >= 0. Defaults to 1.2.
        gamma (float): Weight of the pixels at the borders between cells, in [0, 1]. Defaults to 0.5.
        eta (float): Weight of the prior, >= 0. Defaults to 0.2.
        t_eps (float, optional): Weight of the squared distance of moves, >= 0. Defaults to 0.8. None: nothing moves.

    Raises:
        ValueError: If an argument is out of its range, or the images do not fit the grids.
        ImportError: If PyMaxflow is not installed.
    """

    needs_classifier = True
    ratios = ('area',)
    mask_needs_scores = True

    def __init__(
        self,
        alpha: float = 1.0,
        per_image: bool = False,
        sides: Sequence[int] = (2, 4, 8, 16),
        beta: float = 1.2,
        gamma: float = 0.5,
        eta: float = 0.2,
        t_eps: float | None = 0.8,
    ) -> None:
        if find_spec('maxflow') is None:
            raise ImportError("PuzzleMix needs PyMaxflow for its graph cuts: pip install -e '.[puzzlemix]'")
        super().__init__(alpha=alpha, per_image=per_image)
        if not sides:
            raise ValueError('PuzzleMix: sides=() must name at least one side')
        for side in sides:
            check_number('PuzzleMix: each of sides', side, 'an int >= 2', least=2, integer=True)
        check_number('PuzzleMix: beta', beta, '>= 0 and finite', least=0)
        check_number('PuzzleMix: gamma', gamma, 'in [0, 1]', least=0, most=1)
        check_number('PuzzleMix: eta', eta, '>= 0 and finite', least=0)
        if t_eps is not None:
            check_number('PuzzleMix: t_eps', t_eps, '>= 0 and finite, or None', least=0)
        self.sides = tuple(sides)
        self.beta = beta
        self.gamma = gamma
        self.eta = eta
        self.t_eps = t_eps

    def score(self, images: Tensor, encoder: nn.Module | None = None) -> PatchScores | None:
        """Refused: images alone, without labels, cannot be scored."""
        raise ValueError(f'PuzzleMix {self.needs_mixup_classifier()}')

    def score_batch(self, batch: TrainingBatch) -> PixelScores:
        """The gradient of the classifier's loss on the clean images, for each pixel."""
        return input_gradient(batch)

    @torch.no_grad()
    def mix_scored(
        self,
        images: Tensor,
        scores: PatchScores | None,
        generator: torch.Generator | None = None,
        partner: Tensor | None = None,
    ) -> MixResult:
        """Mix images that :meth:`score_batch` has scored, with cells that are moved unless `t_eps` is None."""
        result = super().mix_scored(images, scores, generator, partner)
        if self.t_eps is None:
            return result
        assert scores is not None and result.mask is not None and result.grid is not None
        side = _moving_side(result.grid[0], images.shape[-2:])
        share = F.interpolate(result.mask.unflatten(1, result.grid)[:, None], (side, side))[:, 0]
        saliency = _on_cells(scores, side)
        own = self._move(images, saliency, share)
        others = self._move(images[result.partner], saliency[result.partner], 1 - share)
        return replace(result, images=replace_patches(own, others, result.mask, result.grid))

    def draw_mask(
        self, images: Tensor, partner: Tensor, scores: PatchScores | None, generator: torch.Generator | None
    ) -> tuple[Tensor, tuple[int, int]]:
        """The mask of the least energy on a grid whose side is drawn."""
        assert scores is not None  # mask_needs_scores
        for one in self.sides:
            if any(length % one for length in images.shape[-2:]):
                height, width = images.shape[-2:]
                raise ValueError(
                    f'PuzzleMix: sides={self.sides} has {one}, and images of {height} x {width} pixels are not a '
                    'multiple of it; set sides to divisors of height and width'
                )
        device = generator.device if generator is not None else None
        side = self.sides[int(torch.randint(len(self.sides), (), generator=generator, device=device))]
        lam = self.draw_lambda(len(images), generator)
        scale = getattr(scores, 'pixel_scale', None)
        pixels = images if scale is None else images * scale[:, None, None]
        costs = mask_costs(_on_cells(scores, side), partner, pixels, lam, self.beta, self.gamma, self.eta)
        return cut_masks(costs).flatten(1).to(torch.float32) / 2, (side, side)

    def _move(self, images: Tensor, saliency: Tensor, share: Tensor) -> Tensor:
        costs = transport_costs(saliency, share, self.t_eps or 0.0)
        return move_cells(images, assign_places(costs), (share.size(1), share.size(2)))


def cut_masks(costs: MaskCosts) -> Tensor:
    """Labels [B, R, C] int64 in {0, 1, 2}, twice the shares, of the masks with the least energy: exact, by graph cuts.

    A cell has two nodes, which are on the side of the source if its label is >= 1 and >= 2. The square of the
    difference of two labels is the number of pairs of nodes that a cut between the cells separates, less one for each
    label of 1. All masks of a batch are parts of one graph.
    """
    import maxflow  # An optional dependency.

    unary, down, across = (x.cpu().double().numpy() for x in (costs.unary, costs.down, costs.across))
    upper, lower = np.s_[:, :-1], np.s_[:, 1:]
    left, right = np.s_[:, :, :-1], np.s_[:, :, 1:]
    borders = [(down / 4, upper, lower), (across / 4, left, right)]
    for weight, one, other in borders:
        unary[..., 1][one] -= weight
        unary[..., 1][other] -= weight
    unary -= unary.min(axis=-1, keepdims=True)  # Capacities are not negative.
    graph = maxflow.GraphFloat()
    nodes = graph.add_grid_nodes((*unary.shape[:-1], 2))
    first, second = nodes[..., 0], nodes[..., 1]
    nothing = np.zeros(first.shape)
    graph.add_grid_tedges(first, unary[..., 0], nothing)
    graph.add_grid_tedges(second, nothing, unary[..., 2])
    # No label is >= 2 and not >= 1.
    forbidden = np.full(first.size, 1 + 2 * unary.sum() + 8 * sum(weight.sum() for weight, _, _ in borders))
    graph.add_edges(first.ravel(), second.ravel(), unary[..., 1].ravel(), forbidden)
    for weight, one, other in borders:
        capacity = weight.ravel()
        for start in (first, second):
            for end in (first, second):
                graph.add_edges(start[one].ravel(), end[other].ravel(), capacity, capacity)
    graph.maxflow()
    labels = (~graph.get_grid_segments(nodes)).sum(axis=-1)
    return torch.from_numpy(labels).to(costs.unary.device)


def assign_places(costs: Tensor) -> Tensor:
    """Permutations of the least cost: costs [B, n, n] from cell to place -> [B, n] int64, the cell of each place."""
    from scipy.optimize import linear_sum_assignment  # Takes long to import, and only this mixer uses it.

    solved = [linear_sum_assignment(one)[1] for one in costs.cpu().numpy()]
    return torch.from_numpy(np.argsort(np.stack(solved), axis=1)).to(costs.device)


def _moving_side(side: int, size: Sequence[int]) -> int:
    """The side of the grid on which cells move: that of the mask, or a finer one."""
    finer = side * max(_TRANSPORT_SIDE // side, 1)
    return side if any(length % finer for length in size) else finer


def _on_cells(scores: PatchScores, side: int) -> Tensor:
    """Mean saliency [B, side, side] of square grids of cells."""
    rows, cols = scores.grid
    return F.avg_pool2d(scores.saliency.unflatten(1, scores.grid)[:, None], (rows // side, cols // side))[:, 0]
