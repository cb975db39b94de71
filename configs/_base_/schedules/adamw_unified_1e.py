"""One pass over LLaVA-v1.5's conversations and as many steps of generation, with the recipe of AIA.

AdamW, 0.1 epochs of warm-up, cosine to 0 (https://arxiv.org/abs/2511.22663).
"""

max_iters = 10396  # 665,298 conversations in batches of 128, and as many batches of the other task.

optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=2e-5, betas=(0.9, 0.95), eps=1e-6, weight_decay=0.05),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=1040),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=1040, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters)
auto_scale_lr = dict(base_batch_size=128)
