"""The same training with sharded gradients and optimizer states (DeepSpeed ZeRO-2), by MMEngine's FlexibleRunner."""

_base_ = ['./deit-small_4xb256-mergemix-coslr-300e_in1k.py', '../_base_/strategies/zero2.py']

strategy = dict(
    gradient_clipping=_base_.optim_wrapper.clip_grad.max_norm,
    # The images, which DeepSpeed does not cast with the parameters.
    inputs_to_half=['inputs'],
)
optim_wrapper = dict(
    _base_.sharded_optim_wrapper,
    _delete_=True,
    optimizer=_base_.optim_wrapper.optimizer,
    paramwise_cfg=_base_.optim_wrapper.paramwise_cfg,
)
