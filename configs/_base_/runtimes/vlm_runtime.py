"""Runtime of vision-language models in iterations; the last step writes a folder that `from_pretrained` reads."""

_base_ = './default_runtime.py'

default_hooks = dict(
    logger=dict(interval=10),
    # Most of these configs do not validate, so there is no best checkpoint.
    checkpoint=dict(by_epoch=False, interval=500, save_best=None),
)
custom_hooks = [*_base_.custom_hooks, dict(type='SavePretrainedHook')]
log_processor = dict(by_epoch=False)
# A batch of text only leaves the projector without a gradient.
find_unused_parameters = True
randomness = dict(seed=0)
