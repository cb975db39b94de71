"""The mathematics of the methods: pure functions on tensors that need torch alone."""

from .interaction import aia_loss, attention_with_intensity, interaction_intensity
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
from .preference import answer_logps, simpo_loss
from .saliency import class_attention, received_attention, restore_attention
from .token_merge import (
    Matching,
    TokenGroups,
    bipartite_soft_matching,
    merge_schedule,
    merge_tokens,
)

__all__ = [
    'Matching',
    'TokenGroups',
    'aia_loss',
    'answer_logps',
    'area_ratio',
    'attention_ratio',
    'attention_with_intensity',
    'bipartite_soft_matching',
    'class_attention',
    'derangement',
    'gaussian_ratio',
    'interaction_intensity',
    'merge_schedule',
    'merge_tokens',
    'mix_images',
    'mix_labels',
    'received_attention',
    'replace_patches',
    'restore_attention',
    'sample_lambda',
    'simpo_loss',
    'topk_mask',
]
