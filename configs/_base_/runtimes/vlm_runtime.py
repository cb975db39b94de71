"""Runtime of vision-language models in iterations; the last step writes a folder that `from_pretrained` reads."""

_base_ = './vlm_sharded_runtime.py'

custom_hooks = [*_base_.custom_hooks, dict(type='SavePretrainedHook')]
