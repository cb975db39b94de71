"""AdamW at 1e-3 for a batch of 32, 3 epochs of warm-up, cosine to 1e-5 at epoch 30."""

_base_ = './adamw_bs100_coslr_200e.py'

warmup_epochs = 3
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=True, end=warmup_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=warmup_epochs, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=30)

auto_scale_lr = dict(base_batch_size=32)
