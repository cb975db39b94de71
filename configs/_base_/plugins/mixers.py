"""Mixing that needs no saliency: the baselines of MergeMix, with the parameters of its release.

The parts have names of their own, since MMEngine does not let two bases hold `model`. Below the `_base_` list:

    model = _base_.cutmix
"""

mixup = dict(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))
cutmix = dict(train_cfg=dict(augments=[dict(type='CutMix', alpha=2.0)]))
# MMPretrain draws the own area, and the release the side of the box: 0.1 to 0.8 of the image's.
resizemix = dict(train_cfg=dict(augments=[dict(type='ResizeMix', alpha=1.0, lam_min=0.36, lam_max=0.99)]))
# Drawn evenly for every batch, as DeiT trains.
mixup_cutmix = dict(train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]))
