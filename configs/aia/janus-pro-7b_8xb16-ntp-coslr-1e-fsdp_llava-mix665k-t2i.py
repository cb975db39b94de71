"""Janus-Pro-7B on both tasks with next-token losses only, sharded (FSDP)."""

_base_ = [
    '../_base_/models/janus-pro-7b.py',
    '../_base_/datasets/llava-mix665k-t2i_bs16.py',
    '../_base_/schedules/adamw_unified_1e.py',
    '../_base_/runtimes/vlm_runtime.py',
    '../_base_/strategies/fsdp.py',
]

train_dataloader = dict(dataset=dict(gen=dict(pipeline=[_base_.encode_gen]), und=dict(pipeline=[_base_.encode])))
