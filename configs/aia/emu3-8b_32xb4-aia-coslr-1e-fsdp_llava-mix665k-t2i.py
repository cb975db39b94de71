"""Emu3-8B with AIA, the paper's targets and the released weights, sharded (FSDP)."""

_base_ = './emu3-8b_32xb4-ntp-coslr-1e-fsdp_llava-mix665k-t2i.py'

custom_hooks = [*_base_.custom_hooks, dict(type='AIAHook', preset='emu3')]
