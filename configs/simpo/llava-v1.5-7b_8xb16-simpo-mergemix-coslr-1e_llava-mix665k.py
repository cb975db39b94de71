"""Stage 2 with mixed SimPO: the clean image wins against one mixed by MergeMix (https://arxiv.org/abs/2510.23479)."""

_base_ = './llava-v1.5-7b_8xb16-sft-coslr-1e_llava-mix665k.py'

# The tower scores the patches itself: 288 of 576 merge before the scored layer.
model = dict(head=dict(_delete_=True, type='SimPOHead', beta=1.0), mixer=dict(type='MergeMix', num_merge=288))
