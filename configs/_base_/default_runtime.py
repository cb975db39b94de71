"""MMPretrain's runtime; seeded steps make a resumed run equal an uninterrupted one, and the best checkpoint is kept."""

_base_ = 'mmpretrain::_base_/default_runtime.py'

default_hooks = dict(checkpoint=dict(interval=10, max_keep_ckpts=1, save_best='auto'))

custom_hooks = [dict(type='StepSeedHook')]
