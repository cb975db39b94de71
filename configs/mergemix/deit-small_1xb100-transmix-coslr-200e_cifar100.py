"""DeiT-S with TransMix on CIFAR-100 at 224 px, labels and Mixup beside it as in OpenMixup's deit_s_transmix_p0_8."""

_base_ = './deit-small_1xb100-coslr-200e_cifar100.py'

# area_weight=0.5 is that of the code which made the table of the MergeMix paper; TransMix' own paper has 0.
model = dict(
    train_cfg=dict(
        augments=[dict(type='TransMix', alpha=1.0, area_weight=0.5), dict(type='Mixup', alpha=0.8)], probs=[0.8, 0.2]
    )
)
