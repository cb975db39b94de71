"""A vision transformer with the regularisation of DeiT, stochastic depth and label smoothing, that mixes nothing yet.

Configs take their mixing from the names of the plugins, e.g. `model = _base_.cutmix`.
"""

_base_ = ['mmpretrain::_base_/models/vit-base-p16.py', '../plugins/mergemix.py', '../plugins/mixers.py']

model = dict(
    # Without augments it trains as MMPretrain's ImageClassifier; every mixer works in it.
    type='MixupClassifier',
    # Dropout and initialisation of DeiT; those of the base belong to ViT's pre-training on ImageNet-21k.
    backbone=dict(drop_rate=0.0, drop_path_rate=0.1, init_cfg=None),
    # The form of label smoothing that DeiT uses.
    head=dict(loss=dict(mode='original')),
    init_cfg=[
        dict(type='TruncNormal', layer='Linear', std=0.02),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ],
)
