"""Parameters, gradients and optimizer states sharded over the GPUs (DeepSpeed ZeRO-3), used as zero2.py."""

_base_ = './zero2.py'

strategy = dict(zero_optimization=dict(stage=3, stage3_gather_16bit_weights_on_model_save=True))
