"""Supervised fine-tuning of a tiny LLaVA on drawn shapes: minutes on a CPU, no download."""

_base_ = [
    '../_base_/models/tiny-llava_shapes.py',
    '../_base_/datasets/shapes_bs64.py',
    '../_base_/schedules/adamw_tiny-vlm_300i.py',
    '../_base_/runtimes/vlm_runtime.py',
]

train_dataloader = dict(dataset=dict(pipeline=[_base_.encode]))
val_dataloader = dict(dataset=dict(pipeline=[dict(_base_.encode, generate=True)]))
test_dataloader = val_dataloader

train_cfg = dict(val_interval=300)
