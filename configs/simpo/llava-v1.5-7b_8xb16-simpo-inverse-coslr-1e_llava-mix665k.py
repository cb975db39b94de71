"""Stage 2 with mixed SimPO against images whose salient region is replaced by another image."""

_base_ = './llava-v1.5-7b_8xb16-simpo-mergemix-coslr-1e_llava-mix665k.py'

model = dict(mixer=dict(mask='inverse'))
