"""Runtime of the classifiers: MMPretrain's, with seeded steps, whole checkpoints, and the best one kept."""

_base_ = ['mmpretrain::_base_/default_runtime.py', '../plugins/step_seed.py']

default_hooks = dict(
    # A checkpoint appears under its name when it is complete, so a killed run leaves no broken file to resume from.
    checkpoint=dict(type='AtomicCheckpointHook', interval=10, max_keep_ckpts=2, save_best='auto'),
    finite_loss=dict(type='NonFiniteLossHook'),
)
