"""A ViT of 0.14 million weights with MergeMix for images of 32 px, from scratch."""

_base_ = './vit_mergemix.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=128),
        img_size=32,
        patch_size=4,
        drop_path_rate=0.0,
    ),
    # MMPretrain starts this head at zero, which suits pre-trained features. From scratch and with few images, the
    # same model then hardly learns (docs/benchmarks/mergemix.md).
    head=dict(in_channels=64, init_cfg=None),
    # A spread of 0.02 suits wide layers and slows narrow ones down; PyTorch's own initialisation knows the width.
    init_cfg=None,
    # Half of the batches stay unmixed: a small model with few epochs has to see whole images as well.
    train_cfg=dict(probs=[0.5]),
)
