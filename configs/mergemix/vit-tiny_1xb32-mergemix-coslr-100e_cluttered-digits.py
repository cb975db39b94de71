"""The same small ViT on digits hidden in clutter, 20 training images per class: which pixels a mix keeps matters."""

_base_ = './vit-tiny_1xb32-mergemix-coslr-30e_digits.py'

data_preprocessor = dict(mean=[60.8] * 3, std=[48.0] * 3)

clutter = dict(clutter=True, train_per_class=20)
train_dataloader = dict(dataset=clutter)
val_dataloader = dict(dataset=clutter)
test_dataloader = val_dataloader

# 200 images are 7 steps per epoch.
train_cfg = dict(max_epochs=100, val_interval=20)

default_hooks = dict(logger=dict(interval=35), checkpoint=dict(interval=20))
