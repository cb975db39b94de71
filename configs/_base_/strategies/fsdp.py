"""Parameters, gradients and optimizer states sharded over the GPUs (FSDP2 of PyTorch): one more entry of `_base_`.

The optimizer wrapper of the config stays: `AmpOptimWrapper` in bfloat16 gathers the weights in bfloat16.
"""

runner_type = 'FlexibleRunner'
strategy = dict(type='FSDP2Strategy')
