"""Supervised fine-tuning of Qwen2.5-VL-3B on the conversations of LLaVA-v1.5."""

_base_ = [
    '../_base_/models/qwen2.5-vl-3b.py',
    '../_base_/datasets/llava-mix665k_bs16.py',
    '../_base_/schedules/adamw_vlm_1e.py',
    '../_base_/runtimes/vlm_runtime.py',
]

train_dataloader = dict(dataset=dict(pipeline=[_base_.encode]))
optim_wrapper = dict(optimizer=dict(lr=1e-5))
