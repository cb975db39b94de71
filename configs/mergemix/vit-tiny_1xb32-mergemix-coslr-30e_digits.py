"""A small ViT from scratch with MergeMix on scikit-learn's digits: minutes on a CPU, no download (`make demo`)."""

_base_ = [
    '../_base_/models/vit_mergemix.py',
    '../_base_/datasets/digits_bs32.py',
    '../_base_/schedules/adamw_bs100_coslr_200e.py',
    '../_base_/runtimes/default_runtime.py',
]

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=128),
        img_size=32,
        patch_size=4,
        drop_path_rate=0.0,
    ),
    head=dict(num_classes=10, in_channels=64),
    # A spread of 0.02 suits wide layers and slows narrow ones down; PyTorch's own initialisation knows the width.
    init_cfg=None,
    # Half of the batches stay unmixed: a small model with few epochs has to see whole digits as well.
    train_cfg=dict(probs=[0.5]),
)

warmup_epochs = 3
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=warmup_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=warmup_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30, val_interval=5)

default_hooks = dict(logger=dict(interval=45), checkpoint=dict(interval=5))
custom_hooks = [dict(type='StepSeedHook'), dict(type='MixVisualizationHook', interval=200)]

randomness = dict(seed=0)
