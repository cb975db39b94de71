"""What a tuner may ask of a vision-language model, whichever library it comes from.

Shapes: B samples, L tokens, C channels, N images in the whole batch (in sample order), T generated tokens. A batch is
the dict of tensors that the model's processor returns for padded conversations, with ``labels`` [B, L] (-100 except at
answer tokens). It is padded on either side. A batch of text only has no ``pixel_values``.
"""

from abc import abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.model import BaseDataPreprocessor, BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn

from ...families.base import IMAGE, MARKER, PAD, TEXT

__all__ = ['IMAGE', 'MARKER', 'PAD', 'TEXT', 'Generation', 'VLMDataPreprocessor', 'VisionLanguageModel']


@dataclass
class Generation:
    """Answers of a model.

    Args:
        sequences (Tensor): [B, T] int64, the new tokens. After the end token of a sample there is padding.
        logps (Tensor): [B] float32, sum of the log-probabilities of a sample's new tokens, up to and including its
            end token.
    """

    sequences: Tensor
    logps: Tensor


class VisionLanguageModel(BaseModule):
    """A vision-language model that can be tuned on images that are mixed outside of it."""

    def prepare(self, batch: dict) -> dict:
        """A shallow copy of a batch, ready for all other methods. It is called once per step, before them."""
        return dict(batch)

    @abstractmethod
    def canvases(self, batch: dict) -> tuple[list[Tensor], Tensor]:
        """The images of a batch before tiling and patching.

        Returns:
            tuple: normalised images [3, H, W], one per image, and the sample that owns each, [N] int64.
        """

    @abstractmethod
    def with_canvases(self, batch: dict, canvases: list[Tensor]) -> dict:
        """The same batch with other pixels: same token counts, tiles and thumbnails rebuilt; `batch` stays as it is."""

    @abstractmethod
    def hidden(self, batch: dict, **attention_kwargs) -> Tensor:
        """One forward without the head: last hidden states after the final norm, [B, L, C].

        Args:
            batch (dict): A prepared batch.
            **attention_kwargs: Handed to every attention layer of the language model.
        """

    @property
    @abstractmethod
    def head(self) -> nn.Module:
        """Hidden states [..., C] -> logits [..., V]; an ``nn.Linear`` if nothing else is in between."""

    @abstractmethod
    def modality(self, batch: dict) -> Tensor:
        """What each token of a batch is, [B, L] int64: ``PAD``, ``TEXT``, ``IMAGE``, or ``MARKER`` for the tokens that
        frame an image (start, end, row, new line).
        """

    @property
    @abstractmethod
    def vision_encoder(self) -> nn.Module | None:
        """The library's module whose patches MergeMix scores (see `build_vision_encoder`); None if there is none."""

    @abstractmethod
    def generate(self, batch: dict, **kwargs) -> Generation:
        """Answer a batch of prompts; `kwargs` are the library's generation options."""

    @abstractmethod
    def save_pretrained(self, folder: str | Path, dtype: str | torch.dtype | None = None) -> None:
        """Write the model in its library's own format, with all weights in one dtype: None is that of its config."""


@MODELS.register_module()
class VLMDataPreprocessor(BaseDataPreprocessor):
    """Moves the tensors of ``inputs``, nested ones included, to the device.

    The processor has already resized and normalised the images. Data samples hold texts and stay as they are.

    Args:
        non_blocking (bool): Whether to copy without waiting, from pinned memory. Defaults to False.
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        """dict(inputs=batch, data_samples=...) -> the same with the batch on the device."""
        return {**data, 'inputs': self.cast_data(data['inputs'])}
