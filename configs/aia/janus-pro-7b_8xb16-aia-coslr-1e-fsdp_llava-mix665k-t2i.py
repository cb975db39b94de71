"""Janus-Pro-7B with AIA, the paper's targets and the released weights, sharded (FSDP): the base of the ablations."""

_base_ = './janus-pro-7b_8xb16-ntp-coslr-1e-fsdp_llava-mix665k-t2i.py'

custom_hooks = [*_base_.custom_hooks, dict(type='AIAHook', preset='janus_pro')]
