"""DeiT-S on CIFAR-100 at 224 px without mixing: the settings that the whole CIFAR-100 family shares."""

_base_ = [
    '../_base_/models/vit_scratch.py',
    '../_base_/datasets/cifar100_bs100_224.py',
    '../_base_/schedules/adamw_bs100_coslr_200e.py',
    '../_base_/runtimes/default_runtime.py',
]

model = dict(backbone=dict(arch='deit-small'), head=dict(num_classes=100, in_channels=384))
