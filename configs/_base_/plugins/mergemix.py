"""Adds MergeMix (https://arxiv.org/abs/2510.23479) to any config of a ViT.

The part has a name of its own, since MMEngine does not let two bases hold `model`. Inside this repository:

    _base_ = ['mmpretrain::deit/deit-small_4xb256_in1k.py', '../_base_/plugins/mergemix.py']
    model = _base_.mergemix

Outside the repository, with the package installed:

    _base_ = [
        'mmpretrain::deit/deit-small_4xb256_in1k.py',
        __import__('mergemix_mm').config_path('_base_/plugins/mergemix.py'),
    ]
    model = _base_.mergemix

Instead of `mergemix`, which is `mergemix_lean`, a config may take another scheme, such as `mergemix_paper`.
"""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

# This project's own scheme: a truncated pass without gradient scores the images, and only the mixed images train.
# Half of the patches merge, the layer at 3/4 of the depth scores, and the label is the share of the visible attention.
# `probs=None` removes the probabilities that a base may have set for its own augments.
mergemix_lean = dict(type='MixupClassifier', train_cfg=dict(augments=[dict(type='MergeMix')], probs=None))
mergemix = dict(mergemix_lean)

# The paper's objective with its Gaussian ratio: the clean images train as well. A plain backbone scores in a truncated
# pass without gradient.
mergemix_paper_plain = dict(
    type='MixupClassifier',
    clean_weight=1.0,
    train_cfg=dict(augments=[dict(type='MergeMix', ratio='gaussian')], probs=None),
)
# As the paper has it: the backbone merges half of the patches, and the pass of the clean images scores.
mergemix_paper = dict(mergemix_paper_plain, backbone=dict(type='ToMeVisionTransformer', num_merge=0.5, inflection=-0.5))
# The gradient is that of two losses, so it is clipped at twice the norm: `optim_wrapper = _base_.two_losses`.
two_losses = dict(clip_grad=dict(max_norm=10.0))

# The scheme of the released code: a scoring pass, the loss of a Mixup batch, and the mixed loss on the mean ratio.
mergemix_released = dict(
    type='MixupClassifier',
    backbone=mergemix_paper['backbone'],
    base_augment=dict(type='Mixup', alpha=0.8),
    ratio_reduce='batch_mean',
    train_cfg=mergemix_paper['train_cfg'],
)
