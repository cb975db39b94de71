"""AIA with the weight of the paper's text, 40 for both tasks."""

_base_ = './janus-pro-7b_8xb16-ntp-coslr-1e-fsdp_llava-mix665k-t2i.py'

custom_hooks = [*_base_.custom_hooks, dict(type='AIAHook', preset='janus_pro', weight=40.0)]
