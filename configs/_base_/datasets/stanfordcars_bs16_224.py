"""Stanford Cars (196 models) at 224 px, in batches of 16."""

_base_ = './cub_bs16_224.py'

data_preprocessor = dict(num_classes=196)

cars = dict(type='StanfordCars', data_root='data/Stanford_Cars')
train_dataloader = dict(dataset=cars)
val_dataloader = dict(dataset=cars)

test_dataloader = val_dataloader
