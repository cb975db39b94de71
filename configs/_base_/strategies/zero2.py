"""Gradients and optimizer states sharded over the GPUs (DeepSpeed ZeRO-2). Below the `_base_` list:

optim_wrapper = dict(_base_.sharded_optim_wrapper, _delete_=True, optimizer=_base_.optim_wrapper.optimizer)
"""

runner_type = 'FlexibleRunner'

strategy = dict(
    type='DeepSpeedStrategy',
    gradient_clipping=1.0,
    bf16=dict(enabled=True),
    # Stage 2 keeps the parameters whole, so a model that scores its own patches can be trained.
    zero_optimization=dict(stage=2, overlap_comm=True, contiguous_gradients=True),
)

# A name of its own, since MMEngine does not let two bases hold `optim_wrapper`. DeepSpeed casts and clips itself, and
# its wrapper refuses keys for that.
sharded_optim_wrapper = dict(type='DeepSpeedOptimWrapper')
