"""From the latents of a VQ model to its codes, where one image has thousands of them."""

import torch
from torch import Tensor, nn


def nearest_code(latents: Tensor, codebook: Tensor, chunk_size: int = 1024) -> Tensor:
    """The entry of a codebook that is nearest to each latent.

    In float32, because distances of neighbours are lost in the 8 bits of bfloat16, and some latents at a time: a
    table of all distances would take a gigabyte for an image of 90 x 90 codes out of 32768.

    Args:
        latents (Tensor): [B, C, rows, columns].
        codebook (Tensor): [V, C].
        chunk_size (int): Latents at a time. Defaults to 1024.

    Returns:
        Tensor: [B, rows, columns] int64, in [0, V).
    """
    codebook = codebook.float()
    half_squares = codebook.square().sum(dim=1) / 2  # |z - e|^2 = |z|^2 - 2 (z e - |e|^2 / 2)
    latents = latents.float().movedim(1, -1)
    parts = latents.flatten(0, -2).split(chunk_size)
    return torch.cat([(part @ codebook.T - half_squares).argmax(dim=1) for part in parts]).view(latents.shape[:-1])


def codebook_of(embedding: nn.Embedding) -> Tensor:
    """The weight [V, C] of an embedding, by a call: a sharded one is whole only then."""
    return embedding(torch.arange(embedding.num_embeddings, device=embedding.weight.device))
