"""Parameters, gradients and optimizer states sharded over the GPUs (FSDP); goes with an FSDPOptimWrapper."""

runner_type = 'FlexibleRunner'

# The decoder layers of the language model are units of their own; all else is in the root.
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
