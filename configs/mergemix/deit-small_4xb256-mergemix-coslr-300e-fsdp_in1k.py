"""The same training with parameters sharded over the GPUs (FSDP), by MMEngine's FlexibleRunner."""

_base_ = ['./deit-small_4xb256-mergemix-coslr-300e_in1k.py', '../_base_/strategies/fsdp.py']

# Without `auto_wrap_policy` the model is one unit, so its parameters are whole while the backbone scores. A policy may
# wrap other parts of a larger model, but no layers inside the backbone that scores.
strategy = dict(model_wrapper=dict(_delete_=True, type='MMFullyShardedDataParallel', use_orig_params=True))
optim_wrapper = dict(type=_base_.sharded_optim_wrapper.type)
