"""Emu3-8B with AIA, sharded (DeepSpeed ZeRO-3)."""

_base_ = './emu3-8b_32xb4-ntp-coslr-1e-zero3_llava-mix665k-t2i.py'

custom_hooks = [*_base_.custom_hooks, dict(type='AIAHook', preset='emu3')]
