"""Runtime of the VLM tuners: iterations, seeded steps, and a folder for `from_pretrained` at the end."""

_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(by_epoch=False, interval=500, max_keep_ckpts=1), visualization=None
)
log_processor = dict(by_epoch=False)
custom_hooks = [dict(type='StepSeedHook'), dict(type='SavePretrainedHook')]
# A batch of text alone leaves the projector without gradient.
find_unused_parameters = True
randomness = dict(seed=0)
