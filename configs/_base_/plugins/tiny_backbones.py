"""Backbones of the tiny detectors, trained from scratch: a plain ViT, and that ViT together with a ConvNeXt.

They have names of their own, since MMEngine does not let two bases hold `model`. Below the `_base_` list:

    model = dict(backbone=dict(_delete_=True, **_base_.tiny_backbone))
"""

tiny_backbone = dict(
    type='mmpretrain.VisionTransformer',
    arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=128),
    img_size=96,
    patch_size=8,
    out_type='featmap',
)

# The neck brings both maps onto the grid of the first encoder, the ViT, which has stride 8; the ConvNeXt has stride 16.
tiny_mixed_backbone = dict(
    type='MultiBackbone',
    encoders=[
        dict(encoder=tiny_backbone, frozen=False),
        dict(
            encoder=dict(
                type='mmpretrain.ConvNeXt',
                arch=dict(depths=[1, 1, 2, 1], channels=[16, 32, 48, 64]),
                stem_patch_size=2,
                gap_before_final_norm=False,
            ),
            frozen=False,
        ),
    ],
)
