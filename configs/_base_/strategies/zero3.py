"""Parameters, gradients and optimizer states sharded over the GPUs (DeepSpeed ZeRO-3); goes with a
DeepSpeedOptimWrapper.
"""

runner_type = 'FlexibleRunner'

strategy = dict(
    type='DeepSpeedStrategy',
    gradient_clipping=1.0,
    bf16=dict(enabled=True),
    zero_optimization=dict(
        stage=3,
        overlap_comm=True,
        contiguous_gradients=True,
        stage3_gather_16bit_weights_on_model_save=True,
    ),
)
