"""Operations of one layer, counted by hand, with and without merging."""

import torch
from mmengine.analysis import get_model_complexity_info

from mergemix_mm.engine.measuring import count_flops
from mergemix_mm.models import ToMeVisionTransformer

# Width, heads and feed-forward width of the layer; 4 x 4 patches of 8 x 8 pixels and the class token.
C, HEADS, F, PATCH, TOKENS = 16, 2, 24, 8, 17


def one_layer(num_merge):
    arch = dict(embed_dims=C, num_layers=1, num_heads=HEADS, feedforward_channels=F)
    model = ToMeVisionTransformer(arch, img_size=32, patch_size=PATCH, num_merge=num_merge)
    model.eval()  # Returns None for MMPretrain's backbones.
    return model


def by_hand(num_merge):
    """What is counted: embedding, three norms, projections, matching, MLP; and the products of attention."""
    left = TOKENS - num_merge
    embedding = 16 * C * 3 * PATCH**2
    norms = 5 * C * (TOKENS + left + left)
    projections = TOKENS * C * 3 * C + TOKENS * C * C
    # Of the 16 patches, 8 are compared with the 8 others, by keys averaged over the heads. Gathers are not counted.
    matching = 8 * 8 * C // HEADS if num_merge else 0
    mlp = 2 * left * C * F
    return embedding + norms + projections + matching + mlp, 2 * TOKENS * TOKENS * C


def test_operations_of_a_layer_are_those_counted_by_hand_and_those_of_mmengine():
    images = torch.zeros(1, 3, 32, 32)
    for num_merge in (0, 5):
        model = one_layer(num_merge)
        flops = count_flops(model, images)
        assert (flops.counted, flops.attention) == by_hand(num_merge)
        found = get_model_complexity_info(model, inputs=(images,), show_table=False, show_arch=False)
        assert found['flops'] == flops.counted
