"""Janus-Pro-7B on both tasks with next-token losses only, sharded (DeepSpeed ZeRO-3)."""

_base_ = [
    '../_base_/models/janus-pro-7b.py',
    '../_base_/datasets/llava-mix665k-t2i_bs16.py',
    '../_base_/schedules/adamw_unified_1e.py',
    '../_base_/runtimes/vlm_sharded_runtime.py',
    '../_base_/strategies/zero3.py',
]

train_dataloader = dict(dataset=dict(gen=dict(pipeline=[_base_.encode_gen]), und=dict(pipeline=[_base_.encode])))
optim_wrapper = dict(_base_.sharded_optim_wrapper, _delete_=True, optimizer=_base_.optim_wrapper.optimizer)
