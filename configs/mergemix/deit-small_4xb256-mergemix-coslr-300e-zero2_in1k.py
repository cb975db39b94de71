"""The same training with sharded gradients and optimizer states (DeepSpeed ZeRO-2), by MMEngine's FlexibleRunner."""

_base_ = './deit-small_4xb256-mergemix-coslr-300e_in1k.py'

runner_type = 'FlexibleRunner'

# Stage 2 keeps the parameters whole, which the scoring pass relies on; stage 3 would shard them.
strategy = dict(
    type='DeepSpeedStrategy',
    gradient_clipping=_base_.optim_wrapper.clip_grad.max_norm,
    bf16=dict(enabled=True),
    inputs_to_half=['inputs'],
    zero_optimization=dict(stage=2, overlap_comm=True, contiguous_gradients=True),
)

# DeepSpeed clips by itself, and its wrapper takes no such key.
optim_wrapper = dict(
    _delete_=True,
    type='DeepSpeedOptimWrapper',
    optimizer=_base_.optim_wrapper.optimizer,
    paramwise_cfg=_base_.optim_wrapper.paramwise_cfg,
)
