"""Stage 2 of SPHINX-2k: the whole image and 3 x 3 crops, 672 px, 2,910 tokens an image."""

_base_ = './sphinx-7b_16xb8-tasks-coslr-20000i-fsdp_mix.py'

processor = dict(image_size=672, grid=3)
encode = dict(_base_.encode, processor=dict(_base_.processor, **processor), max_length=4096)
model = dict(vlm=dict(grid=3), processor=processor)
train_dataloader = dict(dataset=dict(pipeline=[encode]))
