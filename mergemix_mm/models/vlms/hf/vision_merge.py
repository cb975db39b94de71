"""Token merging inside the vision tower (https://arxiv.org/abs/2210.09461), for a shorter text.

Shapes: B samples, L tokens, N images, P placeholders of an image before merging, K = P - num_merge after it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ....families import Family
from ....families.base import token_padding
from ....functional import merge_schedule
from ...vision_encoders import build_vision_encoder, run_layers


class VisionMerge:
    """Merges the patches of each image between the layers of a LLaVA's tower, up to the layer whose output it reads.

    Merged tokens stand for the mean of their patches, in raster order. Gradients reach the tower if it trains.
    The tower's parts are called, not its forward: under FSDP it must not be a unit of its own.

    Args:
        family (Family): The family, with its model.
        num_merge (int): Number of tokens that each image loses, 0 <= num_merge < P.
        prop_attn (bool): Whether a merged token gets the attention of all its patches: the log of their number is added
            to the logits. Defaults to True.
        inflection (float): Shape of the schedule over the layers, see :func:`merge_schedule`. Defaults to -0.5: more in
            early layers.

    Raises:
        ValueError: if the model is not a LLaVA whose tower can merge so many tokens.
    """

    def __init__(self, family: Family, num_merge: int, prop_attn: bool = True, inflection: float = -0.5) -> None:
        config = family.model.config
        if not family.can_merge_tower or not isinstance(config.vision_feature_layer, int):
            tower = getattr(config, 'vision_config', None)
            raise ValueError(
                f"vision_merge serves models of model_type='llava' with a tower of CLIP or SigLIP that read one "
                f'vision_feature_layer, not model_type={config.model_type!r} with vision_config.model_type='
                f'{getattr(tower, "model_type", None)!r} and vision_feature_layer='
                f'{getattr(config, "vision_feature_layer", None)!r}: remove vision_merge'
            )
        self.family, self.num_merge, self.prop_attn = family, num_merge, prop_attn
        encoder = build_vision_encoder(family.vision_tower)
        if encoder.no_merge is not None:
            raise ValueError(
                f'vision_merge: tokens of `{type(encoder.model).__name__}` cannot merge ({encoder.no_merge}): remove '
                'vision_merge'
            )
        prefix, tower = encoder.num_prefix_tokens, config.vision_config
        num_tokens = prefix + (tower.image_size // tower.patch_size) ** 2
        # Index 0 of the library's hidden states is the input of the first layer.
        self.num_layers = range(len(encoder.layers) + 1)[config.vision_feature_layer]
        try:
            self.schedule = merge_schedule(
                self.num_layers, num_merge, inflection, num_tokens=num_tokens, protected=prefix
            )
        except ValueError as error:
            raise ValueError(
                f'vision_merge=dict(num_merge={num_merge}, inflection={inflection}) with {num_tokens - prefix} patches '
                f'and {self.num_layers} layers up to vision_feature_layer={config.vision_feature_layer}: {error}'
            ) from None

    def prepare(self, batch: dict) -> dict:
        """A shallow copy whose images have K placeholders. Masks, labels and rejected answers shrink as well."""
        if batch.get('pixel_values') is None or not self.num_merge:
            return dict(batch)
        length = int(self.family.image_lengths(batch)[0])
        shrunk = self._shrink(batch, length)
        if batch.get('rejected') is not None:
            shrunk['rejected'] = self._shrink(batch['rejected'], length)
        return shrunk

    def embed(self, inputs: dict) -> dict:
        """Keyword arguments of a forward or a generation -> the same with `inputs_embeds` for ids and pixels."""
        inputs = dict(inputs)
        ids, pixels = inputs.pop('input_ids'), inputs.pop('pixel_values', None)
        embeds = self.family.model.get_input_embeddings()(ids)
        if pixels is not None:
            features = self._encode(pixels).to(embeds.dtype)
            places = ids == self.family.image_token_id
            if places.sum() != features.shape[:2].numel():
                raise ValueError(
                    f'{int(places.sum())} image tokens in input_ids for {len(features)} images of {features.size(1)} '
                    'tokens after vision_merge: call prepare(batch), once, before the forward'
                )
            embeds = embeds.masked_scatter(places[..., None], features)
        return {**inputs, 'inputs_embeds': embeds}

    def _encode(self, pixels: Tensor) -> Tensor:
        """Images [N, 3, H, W] -> what the language model reads of them, [N, K, C]."""
        encoder, config = build_vision_encoder(self.family.vision_tower), self.family.model.config
        x, _ = encoder.embed(pixels)
        layers = encoder.layers[: self.num_layers]
        for x, _ in run_layers(layers, x, self.schedule, encoder.num_prefix_tokens, self.prop_attn):  # noqa: B007, B020
            pass
        x = x[:, 1:] if config.vision_feature_select_strategy == 'default' else x
        return self.family.model.model.multi_modal_projector(x)

    def _shrink(self, batch: dict, length: int) -> dict:
        """Drop the last placeholders of each image, and pad again on the batch's own side."""
        places = self.family.placeholders(batch)
        # Which placeholders go does not matter: features replace those that stay.
        keep = ~places | ((places.cumsum(dim=1) - 1) % length < length - self.num_merge)
        mask = batch.get('attention_mask')
        if mask is not None:
            keep &= mask.bool()
        # A zero in the first column can only be padding on the left.
        left = mask is not None and not bool(mask[:, 0].all())
        padding = token_padding()
        values = {key: batch[key] for key in padding if batch.get(key) is not None}
        if mask is None:
            values['attention_mask'] = torch.ones_like(batch['input_ids'])
        fills = {key: self._pad_token_id() if fill is None else fill for key, fill in padding.items()}
        return {**batch, **{key: _repad(value, keep, fills[key], left) for key, value in values.items()}}

    def _pad_token_id(self) -> int:
        pad = self.family.model.config.get_text_config().pad_token_id
        return pad if pad is not None and pad >= 0 else 0


def _repad(values: Tensor, keep: Tensor, fill: int, left: bool) -> Tensor:
    """The kept values of each row of [B, L], padded to the longest row."""
    rows = [row[kept] for row, kept in zip(values, keep)]
    width = max(len(row) for row in rows)
    return torch.stack(
        [F.pad(row, (width - len(row), 0) if left else (0, width - len(row)), value=fill) for row in rows]
    )
