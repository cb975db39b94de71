"""Emu3 (https://arxiv.org/abs/2409.18869) reads and generates images as sequences of VQ codes."""

from collections.abc import Collection, Iterable
from typing import Any

import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ....families.emu3 import Emu3Family
from ....functional.preference import IGNORE_INDEX
from .base import UnifiedModel


@MODELS.register_module()
class Emu3Model(UnifiedModel):
    """``Emu3ForConditionalGeneration`` with training of image generation.

    A prompt is ``<|extra_203|>{prompt}<|image start|>{rows}*{columns}<|image token|>``: the first token begins the
    sequence, and ``rows`` and ``columns`` are those of the image's codes, its height and width in pixels divided by
    ``2 ** (len(vq_config.channel_multiplier) - 1)`` (8 in the released models). Prompts must have this form, because
    nothing is added; Emu3Processor writes it with ``return_for_image_generation=True``. All images of a batch have one
    size.

    The image follows row by row, each row ended by ``<|extra_200|>``, and ends the sequence. Only codes are labelled
    (with their ids in the vocabulary), as in Emu3's own training: the size says where rows end. `generate_image`
    therefore chooses only among codes. The tokens after the last row are always the same and are left out.

    Images to be generated are normalised with mean and standard deviation 0.5. ``codes`` of a batch are
    [B, rows, columns], indices into the codebook.

    Args:
        pretrained (str, optional): As `HFVisionLanguageModel` takes it, e.g. ``'BAAI/Emu3-Gen-hf'``.
        config (dict | str, optional): As there.
        trainable (Collection[str]): Parts that train: ``'language_model'``, or none. The VQ model never does. Defaults
            to ``('language_model',)``.
        attention_dropout (float): Of the attention weights in training, in [0, 1). It replaces the config's 0.1 (the
            library's default, also in the released models), with which a recorded interaction intensity would be that
            after dropout. The layers' outputs are still dropped at the config's rate. Defaults to 0.0.
        **kwargs: Further arguments of `HFVisionLanguageModel`.

    Raises:
        ValueError: If the model is not an Emu3.

    Examples:
        >>> vlm = dict(type='Emu3Model', pretrained='BAAI/Emu3-Gen-hf', dtype='bfloat16', gradient_checkpointing=True)
    """

    model_type = 'emu3'
    family: Emu3Family

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict | str | None = None,
        trainable: Collection[str] = ('language_model',),
        attention_dropout: float = 0.0,
        **kwargs,
    ) -> None:
        super().__init__(pretrained, config, trainable=trainable, **kwargs)
        modules: Iterable[Any] = self.family.language_model.modules()
        for module in modules:
            if hasattr(module, 'attention_dropout'):
                module.attention_dropout = attention_dropout

    def head_of(self, batch: dict) -> nn.Module:
        """The language model's head, whatever the batch."""
        return self.head

    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> codes [B, rows, columns] int64."""
        return self.family.encode(images)

    def decode_codes(self, codes: Tensor) -> Tensor:
        return self.family.model.model.vqmodel.decode(codes)

    def check_prompts(self, prompts: dict, codes: Tensor | None = None) -> None:
        """Refuse prompts that do not end with the size of an image, or, with `codes`, with the size of these codes."""
        grid = self.code_grid(prompts)
        if codes is not None and tuple(codes.shape[1:]) != grid:
            raise ValueError(
                f'Emu3Model: the prompts announce images of {grid[0]}*{grid[1]} codes, but target_images have codes of '
                f'shape {list(codes.shape[1:])}: write the size of the resized image into the prompt'
            )

    def code_grid(self, prompts: dict) -> tuple[int, int]:
        """The size that the prompts name, which must be the same in all of them.

        Raises:
            ValueError: If it differs, or a prompt does not end with a size.
        """
        real = prompts['attention_mask'].bool()
        found = {self.family.announced_grid(ids[kept]) for ids, kept in zip(prompts['input_ids'], real, strict=True)}
        (grid,) = found if len(found) == 1 else (None,)
        if grid is None:
            raise ValueError(
                f'Emu3Model: prompts for images must end with "<|image start|>{{rows}}*{{columns}}<|image token|>", '
                f'the same size for the whole batch, and not be truncated; found {sorted(map(str, found))}'
            )
        return grid

    def image_tokens(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Ids of codes and line ends; the line ends are not labelled."""
        ids = self.family.to_ids(codes)
        # Without the line ends in the last column.
        labels = ids.unflatten(1, (codes.size(1), -1))[..., :-1]
        return ids, F.pad(labels, (0, 1), value=IGNORE_INDEX).flatten(1)

    def embed(self, batch: dict) -> Tensor:
        return self.family.language_model.get_input_embeddings()(batch['input_ids'])

    def embed_codes(self, codes: Tensor, ends_row: bool) -> Tensor:
        """As tokens of the vocabulary, with the line end after the last code of a row."""
        ids = self.family.to_ids(codes[:, None])
        return self.family.language_model.get_input_embeddings()(ids if ends_row else ids[:, :-1])

    def code_logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)[..., self.family.code_ids.to(hidden.device)]
