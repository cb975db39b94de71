"""Runtime of the VLM tuners: iterations, seeded steps, and a folder for `from_pretrained` at the end."""

_base_ = 'mmpretrain::_base_/default_runtime.py'

# MMPretrain's hook for drawing classified images has nothing to draw; the Runner adds what else it needs.
default_hooks = dict(
    _delete_=True,
    logger=dict(type='LoggerHook', interval=10),
    checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False, interval=500, max_keep_ckpts=2),
    finite_loss=dict(type='NonFiniteLossHook'),
)
log_processor = dict(by_epoch=False)
custom_hooks = [dict(type='StepSeedHook'), dict(type='SavePretrainedHook')]
# A batch of text alone leaves the projector without gradient.
find_unused_parameters = True
randomness = dict(seed=0)
