"""AIA without stages: a target of its own for every layer, from measured curves."""

_base_ = './janus-pro-7b_8xb16-ntp-coslr-1e-fsdp_llava-mix665k-t2i.py'

# Written by tools/analysis_tools/interaction_curve.py, from models of your choice.
curve = 'data/interaction/teachers.json'
custom_hooks = [*_base_.custom_hooks, dict(type='AIAHook', preset=curve)]
