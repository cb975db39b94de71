"""Stage 2 of the light SPHINX: the task mix, after the projection."""

_base_ = [
    '../_base_/models/sphinx-light-7b.py',
    '../_base_/datasets/sphinx-tasks_bs8.py',
    '../_base_/schedules/adamw_sphinx-tasks_20000i.py',
    '../_base_/runtimes/vlm_runtime.py',
    '../_base_/strategies/fsdp.py',
]

model = dict(
    vlm=dict(
        pretrained='work_dirs/sphinx-light-7b_32xb8-projector-coslr-20000i_laion400m/pretrained', language_model=None
    )
)
train_dataloader = dict(dataset=dict(pipeline=[_base_.encode]))
# The model's wrapper casts, not autocast.
optim_wrapper = dict(
    _delete_=True,
    type='FSDPOptimWrapper',
    optimizer=_base_.optim_wrapper.optimizer,
    paramwise_cfg=_base_.optim_wrapper.paramwise_cfg,
    clip_grad=dict(max_norm=1.0),
)
# A sharded model cannot be saved from one process: tools/model_converters/save_pretrained.py does it from a checkpoint.
custom_hooks = [dict(type='StepSeedHook')]
