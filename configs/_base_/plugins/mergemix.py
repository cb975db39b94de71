"""Adds MergeMix (https://arxiv.org/abs/2510.23479) to any ViT config, under a name of its own: MMEngine
lets no two bases hold `model`.

Inside this repository, below the `_base_` list of a config:

    _base_ = ['mmpretrain::deit/deit-small_4xb256_in1k.py', '../_base_/plugins/mergemix.py']
    model = _base_.mergemix

Outside it, with the package installed:

    _base_ = [
        'mmpretrain::deit/deit-small_4xb256_in1k.py',
        __import__('mergemix_mm').config_path('_base_/plugins/mergemix.py'),
    ]
    model = _base_.mergemix
"""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

# MergeMix's own defaults are the paper's: half of the patches merge, the layer at 3/4 of the depth scores.
# `probs=None` takes back the probabilities that a base may have set for its own augments.
mergemix = dict(type='MixupClassifier', train_cfg=dict(augments=[dict(type='MergeMix')], probs=None))
