"""Mixed SimPO for Qwen2.5-VL-3B: the clean image wins against one mixed by MergeMix (https://arxiv.org/abs/2510.23479)."""

_base_ = './qwen2.5-vl-3b_8xb16-sft-coslr-1e_llava-mix665k.py'

# The tower scores the patches itself, at layer 24, one of its four without windows. With rotary positions none merge.
model = dict(head=dict(_delete_=True, type='SimPOHead', beta=1.0), mixer=dict(type='MergeMix', num_merge=0))
