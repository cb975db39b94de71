"""The parts of SPHINX as the other vision-language models have them."""

from inspect import signature

import torch
from torch import Tensor, nn

from ....families import Family
from ....families.base import ImageInput
from ...vision_encoders import UnsupportedEncoderError, build_vision_encoder
from .network import END, NUM_MARKERS, START, SphinxNetwork


class SphinxFamily(Family):
    """Views on a :class:`SphinxNetwork`.

    Encoders that are ``frozen`` belong to no part, so nothing can make them train.
    """

    def __init__(self, model: SphinxNetwork) -> None:
        super().__init__(model)
        decoder = model.get_submodule(model.decoder_name)
        self._takes_positions = 'position_ids' in signature(decoder.forward).parameters
        if not self._takes_positions:
            self.no_packing = f'{type(decoder).__name__} takes no position_ids'
        branches = enumerate(model.vision.backbone.branches)
        names = {module: name for name, module in model.named_modules()}
        self.parts = dict(
            vision_tower=tuple(f'vision.backbone.branches.{index}' for index, one in branches if not one.frozen),
            projector=('vision.neck', 'markers'),
            # Decoder and head: a given module may contain other models, such as a tower of its own, which never run.
            language_model=(model.decoder_name, names[model.language_model.get_output_embeddings()]),
        )

    @property
    def base(self) -> nn.Module:
        return self.language_model

    @property
    def head(self) -> nn.Module:
        return self.model.head

    @property
    def vision_encoder(self) -> nn.Module | None:
        """The first encoder whose patches can be scored and whose normalisation is the common one."""
        for branch in self.model.vision.backbone.branches:
            try:
                build_vision_encoder(branch)
            except UnsupportedEncoderError:
                continue
            if not branch.renormalises:
                return branch  # Not the encoder inside: `gathered` looks for FSDP's unit, which is the branch.
        return None

    @property
    def image_token_id(self) -> int:
        return self.model.image_token_id

    @property
    def marker_ids(self) -> tuple[int, ...]:
        return tuple(range(self.image_token_id + 1, self.image_token_id + 1 + NUM_MARKERS))

    def image_lengths(self, batch: dict) -> Tensor:
        """Number of placeholders of each image, [N] int64: those behind the starts of its views."""
        ids = batch['input_ids'].flatten()
        real = self.model.views(ids)
        starts = ids == self.marker_ids[START]
        view = starts.cumsum(0)[ids == self.image_token_id] - 1
        lengths = ids.new_zeros(real.shape)
        lengths[real] = torch.bincount(view.clamp(min=0), minlength=int(starts.sum()))
        return lengths.sum(dim=1)

    def largest_image(self, processor: dict) -> ImageInput:
        tokens, side = processor.get('view_tokens'), processor.get('image_size')
        if not tokens or not side:
            raise ValueError('model.processor must say view_tokens and image_size of the images of SPHINX')
        lengths = [tokens] + [processor.get('crop_tokens') or tokens] * (self.model.vision.num_views - 1)
        start, end = self.marker_ids[START], self.marker_ids[END]
        ids = [one for length in lengths for one in (start, *[self.image_token_id] * length, end)]
        return ImageInput(ids, sum(lengths), lambda size: dict(pixel_values=(size, 3, side, side)))

    def forward_kwargs(self, batch: dict) -> dict:
        """As they are: every encoder has its own dtype.

        With the positions of tokens, which the library counts from the left end of the padding if it is not told.
        """
        kwargs = self.generate_kwargs(batch)
        mask = kwargs.get('attention_mask')
        if mask is not None and self._takes_positions:
            kwargs['position_ids'] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return kwargs

    def generate_kwargs(self, batch: dict) -> dict:
        self.pixels(batch)
        return {key: batch[key] for key in self.forward_keys if batch.get(key) is not None}

    def generate(self, **kwargs) -> Tensor:
        return self.model.language_model.generate(**kwargs)
