"""Janus-Pro-1B on both tasks with AIA: the paper's ranges of layers by relative depth, its model has 30 and this 24."""

_base_ = './janus-pro-1b_8xb16-ntp-coslr-1e_llava-mix665k-t2i.py'

custom_hooks = [*_base_.custom_hooks, dict(type='AIAHook', preset='janus_pro')]
