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
"""

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

# The defaults of MergeMix are the paper's: half of the patches merge, and the layer at 3/4 of the depth scores.
# `probs=None` removes the probabilities that a base may have set for its own augments.
mergemix = dict(type='MixupClassifier', train_cfg=dict(augments=[dict(type='MergeMix')], probs=None))
