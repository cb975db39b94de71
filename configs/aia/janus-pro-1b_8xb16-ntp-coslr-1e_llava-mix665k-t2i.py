"""Janus-Pro-1B on both tasks with next-token losses only."""

_base_ = [
    '../_base_/models/janus-pro-1b.py',
    '../_base_/datasets/llava-mix665k-t2i_bs16.py',
    '../_base_/schedules/adamw_unified_1e.py',
    '../_base_/runtimes/vlm_runtime.py',
]

train_dataloader = dict(dataset=dict(gen=dict(pipeline=[_base_.encode_gen]), und=dict(pipeline=[_base_.encode])))
