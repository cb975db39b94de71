"""Stage 2 of SPHINX-1k whose crops are pooled: 687 tokens an image."""

_base_ = './sphinx-1k-7b_16xb8-tasks-coslr-20000i-fsdp_mix.py'

# 32 queries, the class token and 8 x 8 patches of a crop.
processor = dict(crop_tokens=97)
encode = dict(_base_.encode, processor=dict(_base_.processor, **processor))
model = dict(vlm=dict(crop_pool=2), processor=processor)
train_dataloader = dict(dataset=dict(pipeline=[encode]))
