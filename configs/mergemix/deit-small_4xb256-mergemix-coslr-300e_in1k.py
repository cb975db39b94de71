"""DeiT-S with MergeMix on ImageNet-1k, 300 epochs: a quarter of the tokens merged to score, at the last layer."""

_base_ = './deit-small_4xb256-coslr-300e_in1k.py'

model = dict(
    _base_.mergemix_paper_plain,
    train_cfg=dict(augments=[dict(type='MergeMix', layer=12, num_merge=49, ratio='area')]),
)

optim_wrapper = _base_.two_losses
