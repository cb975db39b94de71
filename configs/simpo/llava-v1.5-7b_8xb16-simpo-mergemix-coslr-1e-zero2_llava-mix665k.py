"""The same with sharded gradients and optimizer states (DeepSpeed ZeRO-2)."""

_base_ = ['./llava-v1.5-7b_8xb16-simpo-mergemix-coslr-1e_llava-mix665k.py', '../_base_/strategies/zero2.py']

optim_wrapper = dict(_base_.sharded_optim_wrapper, _delete_=True, optimizer=_base_.optim_wrapper.optimizer)
