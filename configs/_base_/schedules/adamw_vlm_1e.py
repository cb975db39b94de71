"""The recipe of LLaVA-v1.5: one pass over the data, AdamW without decay, 3% of warm-up, cosine to 0."""

max_iters = 5198  # 665,298 conversations in batches of 128.

optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=2e-5, weight_decay=0.0),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=156),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=156, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters)
auto_scale_lr = dict(base_batch_size=128)
