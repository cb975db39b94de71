"""DeiT-S fine-tuned with MergeMix from MMPretrain's ImageNet-1k weights: model, schedule and runtime, no dataset."""

_base_ = './deit-small_finetune.py'

model = _base_.mergemix_paper_plain

optim_wrapper = _base_.two_losses
