"""DeiT-S with MergeMix on CUB-200-2011, from pre-trained weights."""

_base_ = './deit-small_1xb16-coslr-200e_cub.py'

model = dict(
    _base_.mergemix_paper_plain,
    train_cfg=dict(augments=[dict(type='MergeMix', num_merge=147, ratio='area')]),
)

optim_wrapper = _base_.two_losses

param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], eta_min=1e-7)]
