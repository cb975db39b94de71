"""The tiny Janus with AIA.

The paper's targets belong to other numbers of tokens. This config shows how AIA is used, not that it helps.
"""

_base_ = './tiny-janus_1xb32-ntp-coslr-400i_shapes.py'

custom_hooks = [*_base_.custom_hooks, dict(type='AIAHook', preset='janus_pro')]
