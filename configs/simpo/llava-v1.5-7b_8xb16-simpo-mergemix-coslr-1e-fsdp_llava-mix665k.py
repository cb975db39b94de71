"""The same with parameters, gradients and optimizer states sharded over the GPUs (FSDP)."""

# The units of FSDP are decoder layers, so the vision tower, which scores the patches, stays whole.
_base_ = ['./llava-v1.5-7b_8xb16-simpo-mergemix-coslr-1e_llava-mix665k.py', '../_base_/strategies/fsdp.py']

optim_wrapper = dict(_base_.sharded_optim_wrapper, _delete_=True, optimizer=_base_.optim_wrapper.optimizer)
# No process holds the whole model: tools/model_converters/save_pretrained.py makes the folder from a checkpoint.
custom_hooks = [hook for hook in _base_.custom_hooks if hook.type != 'SavePretrainedHook']
