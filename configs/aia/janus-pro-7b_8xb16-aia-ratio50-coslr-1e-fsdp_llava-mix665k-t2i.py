"""AIA with the weight that makes the next-token loss 50 times the weighted loss of the alignment."""

_base_ = './janus-pro-7b_8xb16-ntp-coslr-1e-fsdp_llava-mix665k-t2i.py'

custom_hooks = [
    *_base_.custom_hooks,
    dict(type='AIAHook', preset='janus_pro', weight=dict(type='ratio', ntp_over_aia=50)),
]
