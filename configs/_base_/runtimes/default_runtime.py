"""MMPretrain's runtime; seeded steps make a resumed run equal an uninterrupted one, and the best checkpoint is kept."""

_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(
    checkpoint=dict(type='AtomicCheckpointHook', interval=10, max_keep_ckpts=2, save_best='auto'),
    finite_loss=dict(type='NonFiniteLossHook'),
)

custom_hooks = [dict(type='StepSeedHook')]
