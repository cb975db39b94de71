"""The mathematics of the methods: pure functions on tensors that need only torch."""

from .blocks import block_mask, draw_side, extreme_blocks, shift_patches
from .coordinates import CoordinateError, format_boxes, format_phrase, parse_boxes, parse_family_boxes, parse_phrases
from .embedding_mix import as_grid, mix_embeddings, resample_grid
from .guided_mix import greedy_cycle, saliency_share
from .interaction import aia_loss, attention_with_intensity, interaction_intensity
from .masks import (
    box_mask,
    cell_mask,
    cells_to_pixels,
    fourier_mask,
    grid_mask,
    hole_mask,
    random_blocks,
    random_centers,
    spot_mask,
)
from .mixing import (
    area_ratio,
    attention_ratio,
    derangement,
    gaussian_ratio,
    mix_images,
    mix_labels,
    replace_patches,
    sample_lambda,
    topk_mask,
)
from .perturbation import fgsm, hide_patches, pgd
from .preference import answer_logps, simpo_loss
from .puzzle_mix import MaskCosts, mask_costs, move_cells, transport_costs
from .relabel import mixed_attention_ratio, nearest_mask, progressive_ratio, region_means, visible_scores
from .resize import resize
from .saliency import class_attention, received_attention, restore_attention, top_down_saliency
from .static_saliency import fine_grained_saliency, gaussian_smooth, spectral_residual
from .token_merge import (
    Matching,
    TokenGroups,
    bipartite_soft_matching,
    merge_schedule,
    merge_tokens,
)
from .views import (
    boxes_from_square,
    boxes_from_view,
    boxes_to_square,
    real_views,
    split_views,
    square_padding,
)
from .weight_mix import mix_tensors, mix_weights

__all__ = [
    'CoordinateError',
    'MaskCosts',
    'Matching',
    'TokenGroups',
    'aia_loss',
    'answer_logps',
    'area_ratio',
    'as_grid',
    'attention_ratio',
    'attention_with_intensity',
    'bipartite_soft_matching',
    'block_mask',
    'box_mask',
    'boxes_from_square',
    'boxes_from_view',
    'boxes_to_square',
    'cell_mask',
    'cells_to_pixels',
    'class_attention',
    'derangement',
    'draw_side',
    'extreme_blocks',
    'fgsm',
    'fine_grained_saliency',
    'format_boxes',
    'format_phrase',
    'fourier_mask',
    'gaussian_ratio',
    'gaussian_smooth',
    'greedy_cycle',
    'grid_mask',
    'hide_patches',
    'hole_mask',
    'interaction_intensity',
    'mask_costs',
    'merge_schedule',
    'merge_tokens',
    'mix_embeddings',
    'mix_images',
    'mix_labels',
    'mix_tensors',
    'mix_weights',
    'mixed_attention_ratio',
    'move_cells',
    'nearest_mask',
    'parse_boxes',
    'parse_family_boxes',
    'parse_phrases',
    'pgd',
    'progressive_ratio',
    'random_blocks',
    'random_centers',
    'real_views',
    'received_attention',
    'region_means',
    'replace_patches',
    'resample_grid',
    'resize',
    'restore_attention',
    'saliency_share',
    'sample_lambda',
    'shift_patches',
    'simpo_loss',
    'spectral_residual',
    'split_views',
    'spot_mask',
    'square_padding',
    'top_down_saliency',
    'topk_mask',
    'transport_costs',
    'visible_scores',
]
