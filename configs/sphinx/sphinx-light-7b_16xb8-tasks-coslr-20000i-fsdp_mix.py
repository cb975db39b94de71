"""Stage 2 of the light SPHINX: the task mix, started from the projection of stage 1."""

_base_ = [
    '../_base_/models/sphinx-light-7b.py',
    '../_base_/datasets/sphinx-tasks_bs8.py',
    '../_base_/schedules/adamw_sphinx-tasks_20000i.py',
    '../_base_/runtimes/vlm_runtime.py',
    '../_base_/strategies/fsdp.py',
]

model = dict(
    vlm=dict(
        pretrained='work_dirs/sphinx-light-7b_32xb8-projector-coslr-20000i_laion400m/pretrained', language_model=None
    )
)
train_dataloader = dict(dataset=dict(pipeline=[_base_.encode]))
