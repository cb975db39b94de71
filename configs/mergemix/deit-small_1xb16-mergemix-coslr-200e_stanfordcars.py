"""DeiT-S with MergeMix on Stanford Cars, scored at the last layer, from pre-trained weights."""

_base_ = './deit-small_1xb16-coslr-200e_stanfordcars.py'

model = dict(
    _base_.mergemix_paper_plain,
    train_cfg=dict(augments=[dict(type='MergeMix', layer=12, ratio='area')]),
)

optim_wrapper = _base_.two_losses
