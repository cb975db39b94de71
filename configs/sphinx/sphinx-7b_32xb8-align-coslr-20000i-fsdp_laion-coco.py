"""Stage 1 of SPHINX on synthetic captions, started from the end of the run on real captions; then the two are mixed."""

_base_ = './sphinx-7b_32xb8-align-coslr-20000i-fsdp_laion400m.py'

model = dict(
    vlm=dict(pretrained='work_dirs/sphinx-7b_32xb8-align-coslr-20000i-fsdp_laion400m/pretrained', language_model=None)
)
train_dataloader = dict(dataset=dict(tasks=dict(caption=dict(dataset=dict(data_root='data/laion-coco')))))
