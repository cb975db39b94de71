"""The same training with parameters sharded over the GPUs (FSDP2), by MMEngine's FlexibleRunner."""

# The model is one unit, so its parameters are whole while the backbone scores. `units` may name other parts of a larger
# model, but no layers inside the backbone that scores.
_base_ = ['./deit-small_4xb256-mergemix-coslr-300e_in1k.py', '../_base_/strategies/fsdp.py']
