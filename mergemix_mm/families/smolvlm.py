"""SmolVLM (https://arxiv.org/abs/2504.05299) and Idefics3: rows of tiles and a global view, each after its markers."""

from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .base import ANY_WORD, MARKER, TEXT, Family, ImageInput
from .layout import canvas_to_views, runs, views_to_canvas
from .towers import SiglipEncoder


@dataclass
class TiledImage:
    """One image of a batch.

    Args:
        row (int): The sample that owns it.
        start (int): Its first tile among the sample's.
        grid (tuple[int, int]): Rows and columns of its tiles; (1, 1) means only the global view.
    """

    row: int
    start: int
    grid: tuple[int, int]

    @property
    def views(self) -> slice:
        """Its tiles, followed by the global view, among the sample's."""
        tiles = self.grid[0] * self.grid[1]
        return slice(self.start, self.start + tiles + (tiles > 1))


class SmolVLMEncoder(SiglipEncoder):
    """`SmolVLMVisionTransformer`: SigLIP whose positions follow from the place within the image, at any size."""

    layer_name = 'SmolVLMEncoderLayer'

    def _embeddings(self, images: Tensor) -> Tensor:
        whole = torch.ones(len(images), *self.patch_grid(images), dtype=torch.bool, device=images.device)
        return self.model.embeddings(images, patch_attention_mask=whole)


class Idefics3Encoder(SmolVLMEncoder):
    """`Idefics3VisionTransformer`: the same with other names."""

    layer_name = 'Idefics3EncoderLayer'


class SmolVLMFamily(Family):
    """``SmolVLMForConditionalGeneration``: ``pixel_values`` [B, most tiles of a sample, 3, h, w], zeros after them.

    Each tile is one run of placeholders. The processor writes the grid into the text: a fake token opens every tile and
    closes an image, and a row of tiles ends with a new line. Grids are read from these tokens. This works for any names
    of the row markers, and however the tokenizer splits them.
    """

    model_types = ('smolvlm', 'idefics3')
    processors = ('SmolVLMProcessor', 'Idefics3Processor')
    chat_template = 'smolvlm'
    row_key = 'pixel_attention_mask'
    tower_adapters = {
        'transformers.models.idefics3.modeling_idefics3.Idefics3VisionTransformer': Idefics3Encoder,
        'transformers.models.smolvlm.modeling_smolvlm.SmolVLMVisionTransformer': SmolVLMEncoder,
    }
    parts = dict(
        vision_tower=('model.vision_model',),
        projector=('model.connector',),
        language_model=('model.text_model', 'lm_head'),
    )
    forward_keys = ('input_ids', 'attention_mask', 'pixel_values', 'pixel_attention_mask')
    pixel_shape = ('samples', 'views', 3, 'height', 'width')

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        embeddings = self.vision_tower.embeddings
        kinds: tuple[Any, Any] = (type(embeddings), type(model.config.vision_config))
        if _misplaces_patches(*kinds):
            # Hooks, so that the class and the names of the weights stay those of the library.
            positions = _Positions(embeddings.num_patches_per_side)
            embeddings.register_forward_pre_hook(positions.find, with_kwargs=True)
            embeddings.position_embedding.register_forward_pre_hook(positions.give)

    def model_kwargs(self, batch: dict) -> dict:
        return self._embed(super().model_kwargs(batch), batch)

    def _embed(self, kwargs: dict, batch: dict) -> dict:
        """Write image features into the text's embeddings, in the dtype of the text.

        The library writes them in their own dtype. This fails if only one of the two parts trains, and under autocast.
        """
        if 'pixel_values' not in kwargs:
            return kwargs
        images = {key: kwargs.pop(key) for key in ('pixel_values', 'pixel_attention_mask') if key in kwargs}
        features = self.base.get_image_features(**images)
        if not isinstance(features, Tensor):  # In transformers 5, they are grouped by sample.
            features = torch.cat(list(features.pooler_output))
        embeds = self.model.get_input_embeddings()(kwargs.pop('input_ids'))
        places = self.placeholders(batch)
        if places.any() and places.sum() != features.shape[:-1].numel():
            raise ValueError(
                f'{int(places.sum())} image tokens in input_ids for {features.shape[:-1].numel()} of the images in '
                'pixel_values: texts and images of a batch must come from one call of the processor'
            )
        return {**kwargs, 'inputs_embeds': embeds.masked_scatter(places[..., None], features.to(embeds.dtype))}

    def image_lengths(self, batch: dict) -> Tensor:
        images, tokens = self._images(batch), runs(self.placeholders(batch))[:, 2]
        tile = tokens[0] if len(tokens) else 0
        return tokens.new_tensor([image.views.stop - image.views.start for image in images]) * tile

    def modality(self, batch: dict) -> Tensor:
        result = super().modality(batch)
        for row, tiles in self._tiles(batch).items():
            for first, last in _marker_spans(batch['input_ids'][row].tolist(), tiles):
                span = result[row, first:last]
                span[span == TEXT] = MARKER
        return result

    def canvases(self, batch: dict) -> list[Tensor]:
        pixels = self.pixels(batch)
        if pixels is None:
            return []
        return [views_to_canvas(pixels[image.row, image.views], image.grid) for image in self._images(batch)]

    def with_canvases(self, batch: dict, canvases: list[Tensor]) -> dict:
        self.check_canvases(canvases, batch)
        if not canvases:
            return dict(batch)
        pixels = batch['pixel_values'].clone()
        for image, canvas in zip(self._images(batch), canvases, strict=True):
            views = canvas_to_views(canvas, pixels[image.row, image.views], image.grid).clone()
            # The library drops views that are zero everywhere, because it takes them for padding.
            views[(views == 0).flatten(1).all(dim=1), 0, 0, 0] = 1e-5
            pixels[image.row, image.views] = views
        return {**batch, 'pixel_values': pixels}

    def largest_image(self, processor: dict) -> ImageInput:
        config = self.model.config
        side, patch = config.vision_config.image_size, config.vision_config.patch_size
        longest = (processor.get('size') or {}).get('longest_edge') or 4 * side
        rows = -(-longest // ((processor.get('max_image_size') or {}).get('longest_edge') or side))
        num_tiles = rows * rows + (rows > 1)  # With the global view.
        tile_tokens = (side // patch) ** 2 // config.scale_factor**2
        fake, line = ANY_WORD + 1, ANY_WORD + 2
        ids = []
        for tile in range(num_tiles):
            ends_row = tile and tile % rows == 0
            ids += [*[line] * bool(ends_row), fake, ANY_WORD, *[self.image_token_id] * tile_tokens]
        shapes = lambda size: dict(pixel_values=(size, num_tiles, 3, side, side))  # noqa: E731
        # The library looks for views that are zero everywhere.
        return ImageInput([*ids, fake], num_tiles * tile_tokens, shapes, is_read=True)

    def _tiles(self, batch: dict) -> dict[int, list[tuple[int, int]]]:
        """First column and end of each tile's placeholders, for the samples that have any."""
        tiles: dict[int, list[tuple[int, int]]] = {}
        for row, start, length in runs(self.placeholders(batch)).tolist():
            tiles.setdefault(row, []).append((start, start + length))
        return tiles

    def _images(self, batch: dict) -> list[TiledImage]:
        """The images of a batch, as its text describes them."""
        images = []
        pixels = self.pixels(batch)
        most = 0 if pixels is None else pixels.size(1)
        for row, tiles in self._tiles(batch).items():
            if len(tiles) > most:
                raise ValueError(
                    f'sample {row} has {len(tiles)} tiles in its text and pixel_values hold at most {most}: texts and '
                    'images of a batch must come from one call of the processor'
                )
            start = 0
            for grid in _grids(batch['input_ids'][row].tolist(), tiles):
                images.append(TiledImage(row, start, grid))
                start = images[-1].views.stop
        return images


class _Positions:
    """Rows of the table of positions for the patches of images: i of n goes to i * side // n in each direction.

    transformers 4 computes them in the dtype of the pixels, after multiplying by a factor just below 1. In float32,
    every row and column except the first takes the position of its predecessor. In bfloat16, some do (10 of Idefics3's
    26). Early releases of version 5 still round to the dtype of the pixels.

    Args:
        side (int): Rows and columns of the table.
    """

    def __init__(self, side: int) -> None:
        self.side = side

    def find(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        """Before the embeddings: find the rows for the patches that are not padding, a mask [N, rows, columns]."""
        mask = kwargs['patch_attention_mask'] if 'patch_attention_mask' in kwargs else args[1]
        rows, columns = (self._places(mask, dim) for dim in (1, 2))
        self.ids = torch.where(mask, rows[:, :, None] * self.side + columns[:, None], 0).flatten(1)

    def give(self, module: nn.Module, args: tuple) -> tuple:
        """Before the table: replace the rows that the library asks for."""
        return (self.ids,)

    def _places(self, mask: Tensor, dim: int) -> Tensor:
        lengths = mask.any(dim=3 - dim).sum(dim=1, keepdim=True).clamp(min=1)
        places = torch.arange(mask.size(dim), device=mask.device) * self.side // lengths
        return places.clamp(max=self.side - 1)  # Padding is beyond it.


@cache
def _misplaces_patches(embeddings: Any, config: Any) -> bool:
    """Whether this version of the library gives patches the positions of others, in float32 or bfloat16."""
    side = 26  # Not a power of two: bfloat16 would divide by it exactly.
    sizes = dict(hidden_size=1, num_attention_heads=1, num_channels=1, image_size=side, patch_size=1)
    with torch.device('cpu'), torch.no_grad():
        expected, mask = torch.arange(float(side * side)), torch.ones(1, side, side, dtype=torch.bool)
        module = embeddings(config(**sizes)).float()
        module.position_embedding.weight.copy_(expected[:, None])
        for value in module.patch_embedding.parameters():
            value.zero_()
        for dtype in (torch.float32, torch.bfloat16):
            module.patch_embedding.to(dtype)
            pixels = torch.zeros(1, 1, side, side, dtype=dtype)
            if not torch.equal(module(pixels, mask).flatten().float(), expected):
                return True
    return False


def _fake_token(ids: list[int], tiles: list[tuple[int, int]]) -> int | None:
    """The token that closes the last image of a sample; the same opens every tile."""
    end = tiles[-1][1]
    return ids[end] if end < len(ids) else None


def _grids(ids: list[int], tiles: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Rows and columns of each image of a sample.

    Between two tiles of one image there is a single fake token, after a new line if a row ends. Between two images
    there are two: one closes the first image, the other opens the second.
    """
    fake = _fake_token(ids, tiles)
    gaps: list[list[int | None]] = [[*ids[end:start]] for (_, end), (start, _) in pairwise(tiles)]
    grids: list[tuple[int, int]] = []
    rows, count = 0, 1
    for gap in [*gaps, [fake, fake]]:
        if gap.count(fake) == 1:
            rows, count = rows + (gap[0] != fake), count + 1
            continue
        if fake not in gap or (rows == 0) != (count == 1) or (rows and (count - 1) % rows):
            raise ValueError(
                f'an image of {count} tiles in {rows} rows is not what the processor writes (tiles row by row, then '
                'the global view, then a closing token): truncation must not cut image tokens, raise max_length'
            )
        grids.append((rows, (count - 1) // rows) if rows else (1, 1))
        rows, count = 0, 1
    return grids


def _marker_spans(ids: list[int], tiles: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """First column and end of the markers around the tiles of a sample.

    Within an image, whole gaps between tiles. Otherwise the fake token that opens a tile with what follows it, and the
    fake token that closes an image.
    """
    fake, spans, before = _fake_token(ids, tiles), [], 0
    for start, end in tiles:
        gap: list[int | None] = [*ids[before:start]]
        if before and gap.count(fake) == 1:
            spans.append((before, start))
        else:
            opening = gap[::-1].index(fake) + 1 if fake in gap else 0
            spans += [(start - opening, start), (before, before + (before > 0))]
        before = end
    return [*spans, (before, before + 1)]
