"""Parameters, gradients and optimizer states sharded over the GPUs (PyTorch's FSDP). Below the `_base_` list:

optim_wrapper = dict(_base_.sharded_optim_wrapper, _delete_=True, optimizer=_base_.optim_wrapper.optimizer)
"""

runner_type = 'FlexibleRunner'

strategy = dict(
    type='FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        # Each decoder layer of the language model is a unit, and the root holds the rest. A vision tower that scores
        # patches must stay whole.
        auto_wrap_policy='wrap_decoder_layers',
        mixed_precision=dict(param_dtype='bfloat16', reduce_dtype='float32', buffer_dtype='float32'),
        use_orig_params=True,
    ),
)

# A name of its own, since MMEngine does not let two bases hold `optim_wrapper`. It replaces the AmpOptimWrapper of the
# schedule: the model's wrapper casts already, and autocast would cast a second time.
sharded_optim_wrapper = dict(type='FSDPOptimWrapper', clip_grad=dict(max_norm=1.0))
