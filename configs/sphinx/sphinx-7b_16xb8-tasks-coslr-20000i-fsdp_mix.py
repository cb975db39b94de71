"""Stage 2 of SPHINX: the task mix, at 224 px, from the mixed weights of stage 1."""

_base_ = [
    '../_base_/models/sphinx-7b.py',
    '../_base_/datasets/sphinx-tasks_bs8.py',
    '../_base_/schedules/adamw_sphinx-tasks_20000i.py',
    '../_base_/runtimes/vlm_runtime.py',
    '../_base_/strategies/fsdp.py',
]

# tools/mix_weights.py writes it, see README.md.
model = dict(vlm=dict(pretrained='work_dirs/sphinx-7b-mixed', language_model=None))
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
