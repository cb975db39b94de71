"""Janus and Janus-Pro (https://arxiv.org/abs/2501.17811): a vision tower reads images, VQ codes generate them."""

from collections.abc import Collection

import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

from ....families.nearest_code import codebook_of, nearest_code
from ..base import IMAGE, PAD
from .base import UnifiedModel, last_tokens


@MODELS.register_module()
class JanusModel(UnifiedModel):
    r"""``JanusForConditionalGeneration`` with training and sampling of image generation.

    A prompt is ``<｜begin▁of▁sentence｜><|User|>: {prompt}\n\n<|Assistant|>:<begin_of_image>``; the tokenizer writes
    the first token. A prompt must end with ``<begin_of_image>``, because nothing is added; JanusProcessor adds it to a
    text with ``generation_mode='image'``. The image follows directly and ends the sequence: the generation head only
    knows codes, so ``<end_of_image>`` cannot be learnt. ``labels`` are indices into the codebook, [0, codebook size).

    Images to be generated are squares of ``patches * 2 ** (len(vq_config.channel_multiplier) - 1)`` pixels, where
    ``patches = vision_config.image_size // vision_config.patch_size``: 384 in the released models, with 576 codes;
    normalised with mean and standard deviation 0.5. ``codes`` of a batch are [B, T].

    An image's codes are the entries of the codebook that are nearest by angle, as in the training of the VQ model. The
    library also compares lengths when it encodes (never when it decodes), which gives other codes.

    Args:
        pretrained (str, optional): As `HFVisionLanguageModel` takes it, e.g. ``'deepseek-community/Janus-Pro-1B'``.
        config (dict | str, optional): As there.
        trainable (Collection[str]): Parts that train: ``'vision_tower'``, ``'projector'``, ``'language_model'``,
            ``'generation'`` (embeddings, aligner and head of the codes). The VQ model never does. Defaults to the last
            three.
        **kwargs: Further arguments of `HFVisionLanguageModel`.

    Raises:
        ValueError: If the model is not a Janus.

    Examples:
        >>> vlm = dict(type='JanusModel', pretrained='deepseek-community/Janus-Pro-1B', dtype='bfloat16')
    """

    model_type = 'janus'

    def __init__(
        self,
        pretrained: str | None = None,
        config: dict | str | None = None,
        trainable: Collection[str] = ('projector', 'language_model', 'generation'),
        **kwargs,
    ) -> None:
        super().__init__(pretrained, config, trainable=trainable, **kwargs)

    @property
    def _janus(self) -> nn.Module:
        return self.family.model.model

    def head_of(self, batch: dict) -> nn.Module:
        """The generation head, or the language model's for conversations."""
        return self._janus.generation_head if self.is_generation(batch) else self.head

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1] -> codes [B, T] int64, row by row.

        Raises:
            ValueError: If the images have another size than the model's.
        """
        vq = self._janus.vqmodel
        side = vq.config.num_patches * 2 ** (len(vq.config.channel_multiplier) - 1)
        if images.shape[1:] != (3, side, side):
            raise ValueError(
                f'JanusModel: target_images of shape {list(images.shape)} must be [B, 3, {side}, {side}], the size of '
                "the model's images; resize them in the pipeline"
            )
        # Rounded latents would be nearest to other codes.
        with torch.autocast(images.device.type, enabled=False):
            latents = vq.quant_conv(vq.encoder(images.to(vq.dtype)))
            # Stored entries have different lengths, so they are normalised. Latents need not be: their length changes
            # nothing in the comparison.
            codebook = F.normalize(codebook_of(vq.quantize.embedding).float(), dim=-1)
            return nearest_code(latents, codebook).flatten(1)

    def decode_codes(self, codes: Tensor) -> Tensor:
        return self._janus.vqmodel.decode(codes.flatten(1))

    def check_prompts(self, prompts: dict, codes: Tensor | None = None) -> None:
        """Refuse prompts whose last token is not begin-of-image, and codes of another number.

        That token is ``generation_kwargs['boi_token_id']`` of the generation config. Without it, all prompts must end
        with the same token.
        """
        ids = prompts['input_ids']
        ends = ids[last_tokens(prompts['attention_mask'].bool())]
        known = (getattr(self.family.model.generation_config, 'generation_kwargs', None) or {}).get('boi_token_id')
        expected = ends[0] if known is None else known
        if len(ends) != len(ids) or (ends != expected).any() or (ids == self.family.image_token_id).any():
            raise ValueError(
                f'JanusModel: prompts for images end with tokens {ends.tolist()} instead of <begin_of_image>'
                f'{"" if known is None else f" ({known})"}, or hold image tokens themselves. Write them as '
                "'<|User|>: {prompt}\\n\\n<|Assistant|>:<begin_of_image>' and do not truncate them"
            )
        rows, columns = self.code_grid(prompts)
        if codes is not None and codes.shape[1:] != (rows * columns,):
            raise ValueError(
                f'JanusModel: codes of shape {list(codes.shape)} must be [B, {rows * columns}], the number of codes of '
                "the model's images"
            )

    def code_grid(self, prompts: dict) -> tuple[int, int]:
        """The model's own, the same for all images."""
        return (self._janus.vqmodel.config.num_patches,) * 2

    def image_tokens(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Placeholders, and the codes."""
        return torch.full_like(codes, self.family.image_token_id), codes

    def embed(self, batch: dict) -> Tensor:
        embeds = self.family.language_model.get_input_embeddings()(batch['input_ids'])
        images = self.embed_codes(batch['codes']).to(embeds.dtype)
        return embeds.masked_scatter(self.family.placeholders(batch)[..., None], images)

    def embed_codes(self, codes: Tensor, ends_row: bool = False) -> Tensor:
        """Through the embeddings and the aligner of codes; the end of a row is not marked."""
        return self.family.model.prepare_embeddings_for_image_generation(codes)

    def code_logits(self, hidden: Tensor) -> Tensor:
        return self._janus.generation_head(hidden)

    def prompt_text(self, batch: dict) -> Tensor:
        """All tokens but padding, the image and the token before it."""
        text = self.family.modality(batch)
        text = (text != PAD) & (text != IMAGE)
        return text & ~last_tokens(text)
