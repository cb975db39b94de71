"""DeiT-S fine-tuned from MMPretrain's ImageNet-1k weights without mixing: model, schedule and runtime, no dataset."""

_base_ = [
    '../models/vit_scratch.py',
    '../schedules/adamw_bs16_finetune_200e.py',
    '../runtimes/default_runtime.py',
]

checkpoint = 'https://mmassets.onedl.ai/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'

model = dict(
    backbone=dict(
        arch='deit-small',
        # The inherited value is None, which MMEngine cannot merge a dictionary into.
        init_cfg=dict(_delete_=True, type='Pretrained', checkpoint=checkpoint, prefix='backbone'),
    ),
    head=dict(in_channels=384),
)
