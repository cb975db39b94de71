"""FGVC-Aircraft (100 variants) at 224 px, in batches of 16."""

_base_ = './cub_bs16_224.py'

data_preprocessor = dict(num_classes=100)

aircraft = dict(type='FGVCAircraft', data_root='data/fgvc-aircraft-2013b')
train_dataloader = dict(dataset=dict(split='trainval', **aircraft))
val_dataloader = dict(dataset=dict(split='test', **aircraft))

test_dataloader = val_dataloader
