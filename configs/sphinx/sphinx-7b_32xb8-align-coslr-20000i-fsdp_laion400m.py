"""Stage 1 of SPHINX on real captions: projection and language model train, with plain text in between."""

_base_ = [
    '../_base_/models/sphinx-7b.py',
    '../_base_/datasets/sphinx-align_bs8.py',
    '../_base_/schedules/adamw_sphinx-align_20000i.py',
    '../_base_/runtimes/vlm_sharded_runtime.py',
    '../_base_/strategies/fsdp.py',
]

# Captions and texts are learned without questions.
train_dataloader = dict(dataset=dict(pipeline=[dict(_base_.encode, chat_template='plain')]))
optim_wrapper = dict(
    _base_.sharded_optim_wrapper,
    _delete_=True,
    optimizer=_base_.optim_wrapper.optimizer,
    paramwise_cfg=_base_.optim_wrapper.paramwise_cfg,
)
