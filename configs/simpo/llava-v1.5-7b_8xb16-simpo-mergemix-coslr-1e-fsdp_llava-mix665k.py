"""The same with parameters, gradients and optimizer states sharded over the GPUs (FSDP2)."""

# The units are decoder layers, so the vision tower, which scores the patches, stays whole.
_base_ = ['./llava-v1.5-7b_8xb16-simpo-mergemix-coslr-1e_llava-mix665k.py', '../_base_/strategies/fsdp.py']
