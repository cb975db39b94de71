"""Stage 2 of SPHINX: the task mix, at 224 px, from the mixed weights of stage 1."""

_base_ = [
    '../_base_/models/sphinx-7b.py',
    '../_base_/datasets/sphinx-tasks_bs8.py',
    '../_base_/schedules/adamw_sphinx-tasks_20000i.py',
    '../_base_/runtimes/vlm_runtime.py',
    '../_base_/strategies/fsdp.py',
]

# Written by tools/mix_weights.py; README.md has the commands.
model = dict(vlm=dict(pretrained='work_dirs/sphinx-7b-mixed', language_model=None))
train_dataloader = dict(dataset=dict(pipeline=[_base_.encode]))
