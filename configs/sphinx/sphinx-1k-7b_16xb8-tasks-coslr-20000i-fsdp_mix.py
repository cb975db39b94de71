"""Stage 2 of SPHINX-1k: the whole image and 2 x 2 crops, 448 px, 1,455 tokens an image."""

_base_ = './sphinx-7b_16xb8-tasks-coslr-20000i-fsdp_mix.py'

processor = dict(image_size=448, grid=2)
encode = dict(_base_.encode, processor=dict(_base_.processor, **processor), max_length=3072)
model = dict(vlm=dict(grid=2), processor=processor)
train_dataloader = dict(dataset=dict(pipeline=[encode]))
