"""The parts of SPHINX as the other vision-language models have them."""

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
        branches = enumerate(model.vision.backbone.branches)
        self.parts = dict(
            vision_tower=tuple(f'vision.backbone.branches.{index}' for index, one in branches if not one.frozen),
            projector=('vision.neck', 'markers'),
            # The decoder comes first. The second entry includes the head, wherever the library keeps it.
            language_model=(f'language_model.{model.language_model.base_model_prefix}', 'language_model'),
        )

    @property
    def base(self) -> nn.Module:
        return self.model.language_model.base_model

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
        """As they are: every encoder has its own dtype."""
        return {key: batch[key] for key in self.forward_keys if batch.get(key) is not None}

    def generate_kwargs(self, batch: dict) -> dict:
        return self.forward_kwargs(batch)

    def generate(self, **kwargs) -> Tensor:
        return self.model.language_model.generate(**kwargs)
