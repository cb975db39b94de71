"""Janus-Pro-7B with AIA, sharded (DeepSpeed ZeRO-3)."""

_base_ = './janus-pro-7b_8xb16-ntp-coslr-1e-zero3_llava-mix665k-t2i.py'

custom_hooks = [*_base_.custom_hooks, dict(type='AIAHook', preset='janus_pro')]
