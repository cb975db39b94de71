"""Batches of the sizes that a config trains on, without images and texts: ids with content, pixels without."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmpretrain.structures import DataSample
from torch import nn

from ...families import Family
from ...families.emu3 import CODES, LINE_END, START
from ...models.tuners import BaseTuner, UnifiedTuner
from ...models.vlms import SphinxModel
from ...models.vlms.sphinx.network import END as VIEW_END
from ...models.vlms.sphinx.network import START as VIEW_START
from .step_memory import StepMemory

# Of a text whose pipeline has no max_length.
TEXT_TOKENS = 512
# Of the processor of InternVL, at most, without the thumbnail.
INTERNVL_TILES = 12
# Any word: an id that is in every vocabulary and stands for no image.
WORD = 8


@dataclass
class ImageInput:
    """What a model reads of one image.

    Args:
        ids (list[int]): Its part of ``input_ids``, with what frames it.
        num_tokens (int): Its placeholders.
        shapes (dict): Name -> shape, for all images of a batch: tensors without content.
        values (dict): Name -> entries of one image: tensors with content.
        is_read (bool): Whether code looks at the values of the tensors of `shapes`, which are ones then. Defaults to
            False.
    """

    ids: list[int]
    num_tokens: int
    shapes: Callable[[int], dict[str, tuple[int, ...]]]
    values: dict[str, list[int]]
    is_read: bool = False


class UnknownBatchError(ValueError):
    """No batch can be made up for a model."""


def training_batches(
    cfg: Config, model: nn.Module, memory: StepMemory, text_tokens: int | None = None
) -> dict[str, Callable[[], dict]]:
    """The batches that a training of a config takes, by the name of their task.

    Args:
        cfg (Config): With ``train_dataloader``.
        model (nn.Module): What `build_weightless` made of ``cfg.model``.
        memory (StepMemory): Makes the tensors without content.
        text_tokens (int, optional): Tokens of a text, beside those of its image. Defaults to None: as many as the
            pipeline's ``max_length`` leaves room for, or 512.

    Returns:
        dict: name -> a function that makes the keyword arguments of ``model.forward``.

    Raises:
        UnknownBatchError: if no batch can be made up.
    """
    size = cfg.train_dataloader.batch_size
    if isinstance(model, BaseTuner):
        batches = {'und': lambda: dict(inputs=_conversations(cfg, model, memory, size, text_tokens), mode='loss')}
        if isinstance(model, UnifiedTuner):
            batches['gen'] = lambda: dict(inputs=_generations(cfg, model, memory, size, text_tokens), mode='loss')
        return batches
    if (
        hasattr(model, 'data_preprocessor')
        and hasattr(model, 'backbone')
        and type(model).__module__.startswith(('mmpretrain.models.classifiers', 'mergemix_mm.models.classifiers'))
    ):
        return {'images': lambda: _images(cfg, model, memory, size)}
    raise UnknownBatchError(
        f'model.type={cfg.model.type!r}: batches can be made up for image classifiers of MMPretrain, for VLMTuner and '
        'for UnifiedTuner only'
    )


def _images(cfg: Config, model: nn.Module, memory: StepMemory, size: int) -> dict:
    height, width = image_size(cfg)
    samples = [DataSample().set_gt_label(0) for _ in range(size)]
    data = dict(inputs=memory.empty(size, 3, height, width, dtype=torch.uint8), data_samples=samples)
    return dict(model.data_preprocessor(data, training=True), mode='loss')


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the images that a pipeline of MMPretrain gives, or the backbone's own."""
    found = None
    for step in cfg.train_dataloader.dataset.get('pipeline', ()):
        if 'Crop' in step['type'] or 'Resize' in step['type']:
            found = step.get('crop_size', step.get('scale', found))
    found = found or cfg.model.backbone.get('img_size') or 224
    return (found, found) if isinstance(found, int) else (found[1], found[0])


def _conversations(cfg: Config, model: BaseTuner, memory: StepMemory, size: int, text_tokens: int | None) -> dict:
    image = image_input(cfg, model.vlm)
    room = _max_length(cfg, 'EncodeConversation')
    longest = getattr(model.vlm.family.base.config.get_text_config(), 'max_position_embeddings', None)
    if text_tokens is None and room is None:
        text_tokens = min(TEXT_TOKENS, (longest or TEXT_TOKENS + len(image.ids)) - len(image.ids))
    elif text_tokens is None:
        text_tokens = max(room - len(image.ids), 2)
    elif room is not None and len(image.ids) + text_tokens > room:
        raise UnknownBatchError(
            f'--text-tokens {text_tokens}: with {len(image.ids)} of the image these are more than max_length={room} of '
            'the pipeline'
        )
    ids = torch.tensor([WORD, *image.ids, *[WORD] * (text_tokens - 1)]).repeat(size, 1)
    labels = ids.clone()
    labels[:, : len(image.ids) + 2] = -100  # All of the text but its first word is an answer.
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    if _learns_pairs(model):
        batch['rejected'] = {key: value.clone() for key, value in batch.items()}
    for name, shape in image.shapes(size).items():
        batch[name] = torch.ones(()).expand(shape) if image.is_read else memory.empty(*shape)
    for name, value in image.values.items():
        batch[name] = torch.tensor([value] * size)
    return batch


def _generations(cfg: Config, model: UnifiedTuner, memory: StepMemory, size: int, text_tokens: int | None) -> dict:
    """Prompts, and pixels of the images that are learnt."""
    vlm = model.vlm
    if not hasattr(vlm, '_codes_of_planning'):
        # Which codes an image has nobody knows; how many, and what it takes to find them, is as in training.
        encode = vlm.encode_images
        vlm.encode_images = lambda images: torch.zeros(encode(images).shape, dtype=torch.int64)
        vlm._codes_of_planning = True
    text = (_max_length(cfg, 'EncodeGeneration') or TEXT_TOKENS) if text_tokens is None else text_tokens
    vocabulary = getattr(vlm.family.model.config, 'vocabulary_map', None)
    if vocabulary:
        side = _step(cfg, 'EncodeGeneration').get('image_size') or 720
        codes = side // vlm.family.model.model.vqmodel.spatial_scale_factor
        grid = [vocabulary[character] for character in f'{codes}*{codes}']
        end = [vocabulary[START], *grid, vocabulary[CODES]]
    else:
        config = vlm.family.model.config
        side = config.vision_config.image_size
        begin = (getattr(vlm.family.model.generation_config, 'generation_kwargs', None) or {}).get('boi_token_id')
        end = [WORD + 1 if begin is None else begin]
    ids = torch.tensor([*[WORD] * max(text - len(end), 1), *end]).repeat(size, 1)
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), task='gen')
    return batch | dict(target_images=memory.empty(size, 3, side, side))


def image_input(cfg: Config, vlm: nn.Module) -> ImageInput:
    """What a model reads of the largest image that its processor lets through.

    Raises:
        UnknownBatchError: if nothing is known of the model's family.
    """
    processor = (cfg.get('model') or {}).get('processor') or {}
    if isinstance(vlm, SphinxModel):
        return _sphinx(vlm, processor)
    kind = vlm.family.model.config.model_type
    if kind not in _INPUTS:
        raise UnknownBatchError(f'model_type={kind!r}: batches can be made up for {sorted(_INPUTS)} and SPHINX only')
    return _INPUTS[kind](vlm.family, processor)


def _square(num_tokens: int, token: int, side: int, frame: tuple[list[int], list[int]] = ([], [])) -> ImageInput:
    """An image in one piece, with one placeholder per token."""
    ids = [*frame[0], *[token] * num_tokens, *frame[1]]
    return ImageInput(ids, num_tokens, lambda size: dict(pixel_values=(size, 3, side, side)), {})


def _llava(family: Family, processor: dict) -> ImageInput:
    config = family.model.config
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    with_class = config.vision_feature_select_strategy != 'default'
    return _square((side // patch) ** 2 + with_class, config.image_token_id, side)


def _llava_next(family: Family, processor: dict) -> ImageInput:
    config = family.model.config
    side = config.vision_config.image_size
    # An image of one of the sizes that it is cut at: the one of most tokens.
    sizes = torch.tensor(config.image_grid_pinpoints)
    lengths = family.image_lengths(dict(input_ids=sizes, pixel_values=sizes, image_sizes=sizes)).tolist()
    num_tokens, (height, width) = max(zip(lengths, sizes.tolist(), strict=True))
    tiles = (height // side) * (width // side) + 1
    image = _square(num_tokens, family.image_token_id, side)
    image.shapes = lambda size: dict(pixel_values=(size, tiles, 3, side, side))
    image.values['image_sizes'] = [height, width]
    return image


def _internvl(family: Family, processor: dict) -> ImageInput:
    height, width = family.model.config.vision_config.image_size
    tiles = processor.get('max_patches') or INTERNVL_TILES
    columns = next(number for number in range(math.isqrt(tiles), 0, -1) if tiles % number == 0)
    views = tiles + (tiles > 1)  # With the thumbnail.
    image = _square(views * family.tile_length, family.image_token_id, height)
    image.shapes = lambda size: dict(pixel_values=(size * views, 3, height, width))
    image.values['original_sizes'] = [height * (tiles // columns), width * columns]
    return image


def _smolvlm(family: Family, processor: dict) -> ImageInput:
    config = family.model.config
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    longest = (processor.get('size') or {}).get('longest_edge') or 4 * side
    rows = -(-longest // ((processor.get('max_image_size') or {}).get('longest_edge') or side))
    num_tiles = rows * rows + (rows > 1)  # With the global view.
    tile_tokens = (side // patch) ** 2 // config.scale_factor**2
    fake, line = WORD + 1, WORD + 2
    ids = []
    for tile in range(num_tiles):
        ends_row = tile and tile % rows == 0
        ids += [*[line] * bool(ends_row), fake, WORD, *[family.image_token_id] * tile_tokens]
    shapes = lambda size: dict(pixel_values=(size, num_tiles, 3, side, side))  # noqa: E731
    # The library looks for views that are zero everywhere.
    return ImageInput([*ids, fake], num_tiles * tile_tokens, shapes, {}, is_read=True)


def _paligemma(family: Family, processor: dict) -> ImageInput:
    config = family.model.config
    side, patch = config.vision_config.image_size, config.vision_config.patch_size
    return _square((side // patch) ** 2, config.image_token_id, side)


def _janus(family: Family, processor: dict) -> ImageInput:
    config = family.model.config
    vision = config.vision_config
    return _square(vision.num_image_tokens, config.image_token_id, vision.image_size)


def _qwen2_vl(family: Family, processor: dict) -> ImageInput:
    config = family.model.config
    vision = config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    size = processor.get('size') or {}
    pixels = processor.get('max_pixels') or size.get('longest_edge') or 16384 * side**2
    rows, columns = _most_square(pixels // side**2)
    grid = [1, rows * vision.spatial_merge_size, columns * vision.spatial_merge_size]
    ids = [config.vision_start_token_id, *[config.image_token_id] * (rows * columns), config.vision_end_token_id]
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    return ImageInput(
        ids,
        rows * columns,
        lambda size: dict(pixel_values=(size * math.prod(grid), width)),
        dict(image_grid_thw=grid),
    )


def _emu3(family: Family, processor: dict) -> ImageInput:
    config = family.model.config
    factor = 2 ** (len(config.vq_config.channel_multiplier) - 1)
    pixels = processor.get('max_pixels') or 1024 * 1024
    codes = math.isqrt(pixels) // factor
    side, num_tokens = codes * factor, codes * (codes + 1)
    image = _square(num_tokens, config.image_token_id, side)
    # Start, "90*90", and the token before the codes; line ends are among the placeholders.
    image.ids[:0] = [config.vocabulary_map[name] for name in (START, LINE_END, CODES)]
    image.values['image_sizes'] = [side, side]
    return image


def _sphinx(vlm: SphinxModel, processor: dict) -> ImageInput:
    first, vision = vlm.family.image_token_id, vlm.family.model.vision
    tokens = processor.get('view_tokens')
    if not tokens or not processor.get('image_size'):
        raise UnknownBatchError('model.processor must say view_tokens and image_size of the images of SPHINX')
    start, end = first + 1 + VIEW_START, first + 1 + VIEW_END
    lengths = [tokens] + [processor.get('crop_tokens') or tokens] * (vision.num_views - 1)
    ids = [one for length in lengths for one in (start, *[first] * length, end)]
    side = processor['image_size']
    return ImageInput(ids, sum(lengths), lambda size: dict(pixel_values=(size, 3, side, side)), {})


_INPUTS = {
    'emu3': _emu3,
    'idefics3': _smolvlm,
    'internvl': _internvl,
    'janus': _janus,
    'llava': _llava,
    'llava_next': _llava_next,
    'paligemma': _paligemma,
    'qwen2_5_vl': _qwen2_vl,
    'qwen2_vl': _qwen2_vl,
    'smolvlm': _smolvlm,
}


def _most_square(area: int) -> tuple[int, int]:
    """Rows and columns of the largest grid of at most `area` cells and at most twice as wide as high."""
    grids = [(rows, area // rows) for rows in range(max(math.isqrt(area // 2), 1), math.isqrt(area) + 1)]
    return max(grids, key=lambda grid: (math.prod(grid), grid[0]))


def _learns_pairs(model: BaseTuner) -> bool:
    """Whether the records bring the losers."""
    return type(model.head).__name__ == 'SimPOHead' and getattr(model, 'mixer', None) is None


def _max_length(cfg: Config, kind: str) -> int | None:
    step = _step(cfg, kind)
    return step.get('max_length')


def _step(cfg: Config, kind: str) -> dict:
    """The first step of this type in the pipelines of the training data, however deep; {} if there is none."""
    found = [part for part in _dicts(cfg.train_dataloader.dataset) if str(part.get('type')).endswith(kind)]
    return found[0] if found else {}


def _dicts(part):
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from _dicts(value)
    elif isinstance(part, list | tuple):
        for entry in part:
            yield from _dicts(entry)
