"""Stage 1 of SPHINX on real images: projection and language model learn to align, beside plain text."""

_base_ = [
    '../_base_/models/sphinx-7b.py',
    '../_base_/datasets/sphinx-align_bs8.py',
    '../_base_/schedules/adamw_sphinx-align_20000i.py',
    '../_base_/runtimes/vlm_runtime.py',
    '../_base_/strategies/fsdp.py',
]

# Captions and texts are learnt as they are, without questions.
train_dataloader = dict(dataset=dict(pipeline=[dict(_base_.encode, chat_template='plain')]))
# The model's wrapper casts, not autocast.
optim_wrapper = dict(
    _delete_=True,
    type='FSDPOptimWrapper',
    optimizer=_base_.optim_wrapper.optimizer,
    paramwise_cfg=_base_.optim_wrapper.paramwise_cfg,
    clip_grad=dict(max_norm=1.0),
)
# A sharded model cannot be saved from one process: tools/model_converters/save_pretrained.py makes the folder that the
# next stage starts from.
custom_hooks = [dict(type='StepSeedHook')]
