"""Stage 2 with mixed SimPO against another image of the batch."""

_base_ = './llava-v1.5-7b_8xb16-simpo-mergemix-coslr-1e_llava-mix665k.py'

model = dict(mixer=dict(_delete_=True, type='SwapImages'))
