"""AIA without stages: a target of its own for every layer, from measured curves."""

_base_ = './janus-pro-7b_8xb16-aia-coslr-1e-fsdp_llava-mix665k-t2i.py'

# tools/analysis_tools/interaction_curve.py writes it, from models of your choice.
curve = 'data/interaction/teachers.json'
custom_hooks = [dict(type='StepSeedHook'), dict(type='AIAHook', preset=curve)]
