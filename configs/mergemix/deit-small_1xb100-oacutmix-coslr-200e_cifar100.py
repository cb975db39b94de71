"""Rival to compare MergeMix with: DeiT-S with OA-CutMix (arXiv 2606.04820), whose objects are found by attention."""

_base_ = './deit-small_1xb100-mergemix-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='OACutMix', alpha=1.0)]))
