"""A small ViT from scratch with MergeMix on scikit-learn's digits: minutes on a CPU, no download (`make demo`)."""

_base_ = [
    '../_base_/models/vit-tiny_mergemix.py',
    '../_base_/datasets/digits_bs32.py',
    '../_base_/schedules/adamw_bs32_coslr_30e.py',
    '../_base_/runtimes/default_runtime.py',
]

model = dict(head=dict(num_classes=10))

train_cfg = dict(val_interval=5)
# An epoch has 45 steps.
default_hooks = dict(logger=dict(interval=45), checkpoint=dict(interval=5))
custom_hooks = [*_base_.custom_hooks, dict(type='MixVisualizationHook', interval=200)]

randomness = dict(seed=0)
