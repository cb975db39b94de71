"""The tiny LLaVA with mixed SimPO: the clean image wins against one mixed by MergeMix."""

_base_ = './tiny-llava_1xb64-sft-coslr-300i_shapes.py'

model = dict(head=dict(_delete_=True, type='SimPOHead', beta=1.0), mixer=dict(type='MergeMix'))
custom_hooks = [*_base_.custom_hooks, dict(type='MixVisualizationHook', interval=100)]
