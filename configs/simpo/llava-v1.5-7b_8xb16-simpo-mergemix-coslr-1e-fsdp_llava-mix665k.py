"""The same with parameters, gradients and optimizer states sharded over the GPUs (FSDP)."""

# The tower, which scores, stays whole in the root.
_base_ = ['./llava-v1.5-7b_8xb16-simpo-mergemix-coslr-1e_llava-mix665k.py', '../_base_/strategies/fsdp.py']

# The model's wrapper casts, not autocast.
optim_wrapper = dict(
    _delete_=True, type='FSDPOptimWrapper', optimizer=_base_.optim_wrapper.optimizer, clip_grad=dict(max_norm=1.0)
)
# A sharded model cannot be saved from one process: tools/model_converters/save_pretrained.py turns a checkpoint into
# transformers' format.
custom_hooks = [dict(type='StepSeedHook')]
