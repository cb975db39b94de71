"""DeiT-S with Puzzle Mix on CIFAR-100 at 224 px, with the authors' weights for CIFAR-100."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

model = dict(train_cfg=dict(augments=[dict(type='PuzzleMix', alpha=1.0)]))
