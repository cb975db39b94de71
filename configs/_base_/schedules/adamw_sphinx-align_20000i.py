"""Stage 1 of SPHINX (https://arxiv.org/abs/2311.07575): 5e-5 to 5e-6; the rest as in stage 2."""

_base_ = './adamw_sphinx-tasks_20000i.py'

optim_wrapper = dict(optimizer=dict(lr=5e-5))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=600),
    dict(type='CosineAnnealingLR', eta_min=5e-6, by_epoch=False, begin=600, end=_base_.train_cfg.max_iters),
]
auto_scale_lr = dict(base_batch_size=256)
