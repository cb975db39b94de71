"""DeiT-S with Mixup on ImageNet-1k."""

_base_ = './deit-small_4xb256-coslr-300e_in1k.py'

model = _base_.mixup
