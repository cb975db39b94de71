"""DeiT-S on ImageNet-1k with half of its 196 tokens merged at test time, untrained (https://arxiv.org/abs/2210.09461)."""

_base_ = 'mmpretrain::deit/deit-small_4xb256_in1k.py'

custom_imports = dict(imports=['mergemix_mm'], allow_failed_imports=False)

model = dict(backbone=dict(type='ToMeVisionTransformer', num_merge=98, merge_in=('test',)))

load_from = 'https://mmassets.onedl.ai/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'
