"""A tiny vision transformer of MMPretrain with 4 x 4 patches."""

import torch

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=16, num_layers=4, num_heads=2, feedforward_channels=32),
    img_size=32,
    patch_size=8,
)


def randomised(model, std=0.3):
    """The model with random values everywhere: fresh position embeddings and norms would hide mistakes."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return model
