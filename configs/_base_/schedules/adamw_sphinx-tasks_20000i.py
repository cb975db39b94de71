"""Stage 2 of SPHINX (https://arxiv.org/abs/2311.07575): 2e-5 to 0, no decay on biases and norms.

The paper does not give the warm-up (3% here), the weight decay and the number of steps.
"""

max_iters = 20000

optim_wrapper = dict(
    type='AmpOptimWrapper',
    dtype='bfloat16',
    loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=2e-5, betas=(0.9, 0.95), weight_decay=0.1),
    # MMEngine does not recognise the norm layers of language models, so they are selected by name.
    paramwise_cfg=dict(bias_decay_mult=0.0, norm_decay_mult=0.0, custom_keys={'norm': dict(decay_mult=0.0)}),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=600),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=600, end=max_iters),
]
train_cfg = dict(by_epoch=False, max_iters=max_iters)
auto_scale_lr = dict(base_batch_size=128)
