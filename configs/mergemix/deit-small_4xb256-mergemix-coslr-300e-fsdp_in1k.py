"""The same training with parameters sharded over the GPUs (FSDP), by MMEngine's FlexibleRunner."""

_base_ = './deit-small_4xb256-mergemix-coslr-300e_in1k.py'

runner_type = 'FlexibleRunner'

# No `auto_wrap_policy`: the model is one unit, so its parameters are whole while the backbone scores. A policy may wrap
# other parts of a larger model, never layers inside the backbone that scores.
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(type='MMFullyShardedDataParallel', use_orig_params=True),
)
optim_wrapper = dict(type='FSDPOptimWrapper')
