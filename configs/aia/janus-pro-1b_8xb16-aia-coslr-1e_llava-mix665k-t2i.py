"""Janus-Pro-1B on both tasks with AIA.

The paper gives ranges of layers for a model of 30; they are scaled to the 24 layers of this one.
"""

_base_ = './janus-pro-1b_8xb16-ntp-coslr-1e_llava-mix665k-t2i.py'

custom_hooks = [*_base_.custom_hooks, dict(type='AIAHook', preset='janus_pro')]
