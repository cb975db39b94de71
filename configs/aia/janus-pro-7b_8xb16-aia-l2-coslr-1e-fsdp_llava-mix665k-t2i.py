"""AIA without the Huber loss: with a threshold of 1 it is half the squared error everywhere."""

_base_ = './janus-pro-7b_8xb16-ntp-coslr-1e-fsdp_llava-mix665k-t2i.py'

# The targets of the preset `janus_pro`; only the thresholds differ.
gen = [
    dict(layers=(0, 25), target=0.4, delta=1.0),
    dict(layers=(25, 30), target=0.2, delta=1.0),
]
und = [
    dict(layers=(0, 10), target=0.1, delta=1.0),
    dict(layers=(10, 20), target=0.15, delta=1.0),
    dict(layers=(20, 30), target=0.3, delta=1.0),
]
custom_hooks = [*_base_.custom_hooks, dict(type='AIAHook', preset=dict(gen=gen, und=und))]
