"""The same with sharded gradients and optimizer states (DeepSpeed ZeRO-2)."""

_base_ = './llava-v1.5-7b_8xb16-simpo-mergemix-coslr-1e_llava-mix665k.py'

runner_type = 'FlexibleRunner'

strategy = dict(
    type='DeepSpeedStrategy',
    gradient_clipping=_base_.optim_wrapper.clip_grad.max_norm,
    bf16=dict(enabled=True),
    zero_optimization=dict(stage=2, overlap_comm=True, contiguous_gradients=True),
)
# DeepSpeed clips by itself, and its wrapper takes no such key.
optim_wrapper = dict(_delete_=True, type='DeepSpeedOptimWrapper', optimizer=_base_.optim_wrapper.optimizer)
