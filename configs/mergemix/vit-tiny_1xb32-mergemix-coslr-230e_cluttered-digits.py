"""The same small ViT on digits hidden in clutter, 20 images per class: here it matters which pixels a mix keeps."""

_base_ = './vit-tiny_1xb32-mergemix-coslr-30e_digits.py'

data_preprocessor = dict(mean=[60.8] * 3, std=[48.0] * 3)

clutter = dict(clutter=True, train_per_class=20)
# The digit may be anywhere, but 200 images show few of the places; shifts of up to 8 px add more.
train_pipeline = [dict(type='RandomCrop', crop_size=32, padding=8), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(**clutter, pipeline=train_pipeline))
val_dataloader = dict(dataset=clutter)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-3))

# 200 images are 7 steps per epoch: 1,610 steps, as many as in tools/benchmarks/mixing_study.py.
train_cfg = dict(max_epochs=230, val_interval=46)

default_hooks = dict(logger=dict(interval=35), checkpoint=dict(interval=46))
