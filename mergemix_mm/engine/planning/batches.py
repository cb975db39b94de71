"""Batches of the sizes that a config trains on, without data: ids have content, pixels do not."""

from collections.abc import Callable
from typing import Any

import torch
from mmengine.config import Config
from mmpretrain.structures import DataSample
from torch import nn

from ...families.base import ANY_WORD, ImageInput
from ...functional.preference import IGNORE_INDEX
from ...models.tuners import BaseTuner, UnifiedTuner
from .step_memory import StepMemory

# Length of a text if the pipeline has no max_length.
TEXT_TOKENS = 512


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
        text_tokens (int, optional): Tokens of a text, in addition to those of its image. Defaults to None: as many as
            the pipeline's ``max_length`` leaves room for, or 512.

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
    if text_tokens is None:
        most = (longest or TEXT_TOKENS + len(image.ids)) - len(image.ids)
        text_tokens = min(TEXT_TOKENS, most) if room is None else max(room - len(image.ids), 2)
    elif room is not None and len(image.ids) + text_tokens > room:
        raise UnknownBatchError(
            f'--text-tokens {text_tokens}: with {len(image.ids)} of the image these are more than max_length={room} of '
            'the pipeline'
        )
    ids = torch.tensor([ANY_WORD, *image.ids, *[ANY_WORD] * (text_tokens - 1)]).repeat(size, 1)
    labels = ids.clone()
    labels[:, : len(image.ids) + 2] = IGNORE_INDEX  # All of the text but its first word is an answer.
    batch: dict[str, Any] = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels)
    if _learns_pairs(model):
        batch['rejected'] = {key: value.clone() for key, value in batch.items()}
    for name, shape in image.shapes(size).items():
        # One value in memory, however large the tensor is.
        batch[name] = torch.ones(()).expand(shape) if image.is_read else memory.empty(*shape)
    for name, value in image.values.items():
        batch[name] = torch.tensor([value] * size)
    return batch


def _generations(cfg: Config, model: UnifiedTuner, memory: StepMemory, size: int, text_tokens: int | None) -> dict:
    """Prompts, and pixels of the images that are learnt."""
    vlm = model.vlm
    if not hasattr(vlm, '_codes_of_planning'):
        # The codes of an image are unknown. Their number, and the memory to compute them, are as in training.
        encode = vlm.encode_images
        vlm.encode_images = lambda images: torch.zeros(encode(images).shape, dtype=torch.int64)
        vlm._codes_of_planning = True
    text = (_max_length(cfg, 'EncodeGeneration') or TEXT_TOKENS) if text_tokens is None else text_tokens
    side, end = vlm.family.image_prompt_end(_step(cfg, 'EncodeGeneration').get('image_size'))
    ids = torch.tensor([*[ANY_WORD] * max(text - len(end), 1), *end]).repeat(size, 1)
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), task='gen')
    return batch | dict(target_images=memory.empty(size, 3, side, side))


def image_input(cfg: Config, vlm: nn.Module) -> ImageInput:
    """What a model reads of the largest image that its processor accepts.

    Raises:
        UnknownBatchError: if nothing is known of the model's family.
    """
    processor = (cfg.get('model') or {}).get('processor') or {}
    try:
        return vlm.family.largest_image(processor)
    except (NotImplementedError, ValueError) as error:
        raise UnknownBatchError(f'no batch can be made up for the model: {error}') from error


def _learns_pairs(model: BaseTuner) -> bool:
    """Whether the records bring the losers."""
    return getattr(model.head, 'needs_loser', False) and getattr(model, 'mixer', None) is None


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
