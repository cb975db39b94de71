"""The same with parameters, gradients and optimizer states sharded over the GPUs (FSDP)."""

_base_ = './llava-v1.5-7b_8xb16-simpo-mergemix-coslr-1e_llava-mix665k.py'

runner_type = 'FlexibleRunner'

# The decoder layers of the language model are units of their own; the tower, which scores, stays whole in the root.
strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy='wrap_decoder_layers',
        mixed_precision=dict(param_dtype='bfloat16', reduce_dtype='float32', buffer_dtype='float32'),
        use_orig_params=True,
    ),
)
# The model's wrapper casts, not autocast.
optim_wrapper = dict(
    _delete_=True, type='FSDPOptimWrapper', optimizer=_base_.optim_wrapper.optimizer, clip_grad=dict(max_norm=1.0)
)
# A sharded model cannot be saved from one process: tools/model_converters/save_pretrained.py turns a checkpoint into
# transformers' format.
custom_hooks = [dict(type='StepSeedHook')]
