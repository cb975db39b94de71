"""AdamW at 1e-3 for a batch of 100, 20 epochs of warm-up, cosine to 1e-6 at epoch 200."""

_base_ = 'mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py'

optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(
        custom_keys={key: dict(decay_mult=0.0) for key in ('.cls_token', '.pos_embed', '.register_tokens')}
    ),
    clip_grad=dict(max_norm=5.0),
)

warmup_epochs = 20
# The cosine has no `end`: MMEngine takes `max_epochs`, so a longer run changes only that key.
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-5, by_epoch=True, end=warmup_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=warmup_epochs, convert_to_iter_based=True),
]

train_cfg = dict(max_epochs=200)

auto_scale_lr = dict(base_batch_size=100)
