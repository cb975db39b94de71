"""What `HFVisionLanguageModel` needs to know of a transformers model: its parts, its image tokens and its pixels."""

import torch
from torch import Tensor, nn

# Values of `Family.modality`.
PAD, TEXT, IMAGE, MARKER = 0, 1, 2, 3


class Family:
    """Views on a transformers vision-language model: no parameters, no state.

    As it stands, it serves models that read one image [3, H, W] per placeholder run of fixed length, with
    ``pixel_values`` [N, 3, H, W]. A subclass names the parts; models with tiles or patches override the methods on
    pixels (`canvases`, `with_canvases`, `image_lengths`) as well.

    Args:
        model (nn.Module): The transformers model with its head, e.g. ``LlavaForConditionalGeneration``.
    """

    # Part -> dotted names of its modules and parameters. The longest name decides, so a part may lie inside another.
    # The language model comes first in its own entry; whatever no part names stays frozen.
    parts: dict[str, tuple[str, ...]] = dict(
        vision_tower=('model.vision_tower',),
        projector=('model.multi_modal_projector',),
        language_model=('model.language_model', 'lm_head'),
    )
    # What the model's forward and generate take from a batch.
    forward_keys: tuple[str, ...] = ('input_ids', 'attention_mask', 'pixel_values')

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def base(self) -> nn.Module:
        """The model without its head."""
        return self.model.model

    @property
    def head(self) -> nn.Module:
        """Hidden states -> logits, as the library computes them."""
        return self.model.lm_head

    @property
    def language_model(self) -> nn.Module:
        """The text decoder without the head."""
        return self.model.get_submodule(self.parts['language_model'][0])

    @property
    def vision_tower(self) -> nn.Module:
        """The image encoder."""
        return _unwrap(self.model.get_submodule(self.parts['vision_tower'][0]))

    @property
    def vision_encoder(self) -> nn.Module | None:
        """The module for `build_vision_encoder`; None where token merging cannot serve it."""
        return self.vision_tower

    @property
    def image_token_id(self) -> int:
        """The placeholder of one image token."""
        return self.model.config.image_token_id

    @property
    def marker_ids(self) -> tuple[int, ...]:
        """The tokens that frame an image."""
        return ()

    def placeholders(self, batch: dict) -> Tensor:
        """Where image features replace token embeddings, [B, L] bool."""
        return batch['input_ids'] == self.image_token_id

    def image_lengths(self, batch: dict) -> Tensor:
        """Number of placeholders of each image, [N] int64. As it stands: the same for all."""
        num_images = len(batch['pixel_values']) if batch.get('pixel_values') is not None else 0
        total = int(self.placeholders(batch).sum())
        if total % num_images if num_images else total:
            raise ValueError(
                f'input_ids hold {total} image tokens (id {self.image_token_id}) for {num_images} images in '
                'pixel_values. Texts and images of a batch must come from one call of the processor, and truncation '
                'must not cut image tokens: raise max_length'
            )
        return batch['input_ids'].new_full((num_images,), total // max(num_images, 1))

    def owners(self, batch: dict) -> Tensor:
        """The sample that each image belongs to, [N] int64.

        Raises:
            ValueError: if the placeholders are not those of the images.
        """
        lengths, counts = self.image_lengths(batch), self.placeholders(batch).sum(dim=1)
        ends = counts.cumsum(0)
        owners = torch.searchsorted(ends, lengths.cumsum(0) - lengths, right=True)
        found = counts.new_zeros(len(counts) + 1).index_add(0, owners, lengths)
        if not torch.equal(found[:-1], counts):
            raise ValueError(
                f'the samples hold {counts.tolist()} image tokens (id {self.image_token_id}), which cannot be shared '
                f'out among images of {lengths.tolist()} tokens in this order. Truncation must not cut image tokens: '
                'raise max_length'
            )
        return owners

    def modality(self, batch: dict) -> Tensor:
        """Pad, text, image or marker, [B, L] int64; see `VisionLanguageModel.modality`."""
        ids = batch['input_ids']
        result = torch.full_like(ids, TEXT)
        result[torch.isin(ids, ids.new_tensor(self.marker_ids))] = MARKER
        result[self.placeholders(batch)] = IMAGE
        if batch.get('attention_mask') is not None:
            result[batch['attention_mask'] == 0] = PAD
        return result

    def canvases(self, batch: dict) -> list[Tensor]:
        """The normalised images [3, H, W] before tiling and patching; [] for text alone."""
        pixels = batch.get('pixel_values')
        return [] if pixels is None else list(pixels)

    def with_canvases(self, batch: dict, canvases: list[Tensor]) -> dict:
        """The same batch with other pixels; everything but the pixels is shared with `batch`.

        Raises:
            ValueError: if number or shapes of the canvases are others than `canvases(batch)` has.
        """
        check_canvases(canvases, self.canvases(batch))
        return {**batch, 'pixel_values': torch.stack(canvases)} if canvases else dict(batch)

    def forward_kwargs(self, batch: dict) -> dict:
        """What the base model's forward takes, pixels in the tower's dtype."""
        kwargs = {key: batch[key] for key in self.forward_keys if batch.get(key) is not None}
        if 'pixel_values' in kwargs:
            kwargs['pixel_values'] = kwargs['pixel_values'].to(next(self.vision_tower.parameters()).dtype)
        return kwargs

    def generate_kwargs(self, batch: dict) -> dict:
        """What the model's generate takes of a batch of prompts."""
        return Family.forward_kwargs(self, batch)

    def generate(self, **kwargs) -> Tensor:
        """The library's generation. Janus' own method would drop the logits processors; its guidance is for images."""
        from transformers import GenerationMixin

        return GenerationMixin.generate(self.model, **{'guidance_scale': None, **kwargs})


def check_canvases(canvases: list[Tensor], expected: list[Tensor]) -> None:
    """Refuse canvases that would not give the same tokens."""
    found, wanted = ([list(canvas.shape) for canvas in images] for images in (canvases, expected))
    if found != wanted:
        raise ValueError(f'canvases of shapes {found} cannot replace those of the batch, {wanted}')


def _unwrap(module: nn.Module) -> nn.Module:
    """The module that trains inside peft's copy-keeping wrapper."""
    if hasattr(module, 'modules_to_save') and hasattr(module, 'original_module'):
        return module.modules_to_save[module.active_adapter]
    return module
