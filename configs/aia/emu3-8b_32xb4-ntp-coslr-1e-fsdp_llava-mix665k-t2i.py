"""Emu3-8B on both tasks with next-token losses only, sharded (FSDP)."""

_base_ = [
    '../_base_/models/emu3-8b.py',
    '../_base_/datasets/llava-mix665k-t2i_bs16.py',
    '../_base_/schedules/adamw_unified_1e.py',
    '../_base_/runtimes/vlm_runtime.py',
    '../_base_/strategies/fsdp.py',
]

train_dataloader = dict(
    batch_size=4,
    sampler=dict(batch_size=4),
    dataset=dict(gen=dict(pipeline=[_base_.encode_gen]), und=dict(pipeline=[_base_.encode])),
)
