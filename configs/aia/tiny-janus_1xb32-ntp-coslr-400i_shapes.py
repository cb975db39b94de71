"""A tiny Janus learns to describe shapes and to draw them: minutes on a CPU, no download."""

_base_ = [
    '../_base_/models/tiny-janus_shapes.py',
    '../_base_/datasets/unified-shapes_bs32.py',
    '../_base_/schedules/adamw_tiny-vlm_300i.py',
    '../_base_/runtimes/vlm_runtime.py',
]

train_dataloader = dict(dataset=dict(gen=dict(pipeline=[_base_.encode_gen]), und=dict(pipeline=[_base_.encode])))
val_dataloader = dict(dataset=dict(pipeline=[dict(_base_.encode, generate=True)]))
test_dataloader = dict(dataset=dict(pipeline=[dict(_base_.encode_gen, generate=True)]))

max_iters = 400
optim_wrapper = dict(optimizer=dict(betas=(0.9, 0.95), weight_decay=0.05))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', by_epoch=False, begin=40, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
