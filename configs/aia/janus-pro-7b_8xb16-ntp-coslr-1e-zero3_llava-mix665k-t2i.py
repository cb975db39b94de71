"""Janus-Pro-7B on both tasks with next-token losses alone, sharded (DeepSpeed ZeRO-3)."""

_base_ = [
    '../_base_/models/janus-pro-7b.py',
    '../_base_/datasets/llava-mix665k-t2i_bs16.py',
    '../_base_/schedules/adamw_unified_1e.py',
    '../_base_/runtimes/vlm_runtime.py',
    '../_base_/strategies/zero3.py',
]

train_dataloader = dict(dataset=dict(gen=dict(pipeline=[_base_.encode_gen]), und=dict(pipeline=[_base_.encode])))
# DeepSpeed clips by itself, and its wrapper takes no such key.
optim_wrapper = dict(_delete_=True, type='DeepSpeedOptimWrapper', optimizer=_base_.optim_wrapper.optimizer)
# A sharded model cannot be saved from one process: tools/model_converters/save_pretrained.py turns a checkpoint into
# transformers' format.
custom_hooks = [dict(type='StepSeedHook')]
