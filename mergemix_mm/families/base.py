"""`Family`: everything that this package knows about one family of vision-language models, in one declaration."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..functional.preference import IGNORE_INDEX
from .refused import REFUSED
from .vision_encoder import VisionEncoder

# Values of `Family.modality`.
PAD, TEXT, IMAGE, MARKER = 0, 1, 2, 3
# The id of any word: it is in every vocabulary and stands for no image. Only planned batches use it.
ANY_WORD = 8

# model_type of the config -> its family; 'model_type/tower_type' -> that of such models with this tower. Subclasses of
# `Family` that name `model_types` add themselves; other callables may be added by hand (docs/extend/custom_vlm.md).
FAMILIES: dict[str, Callable[[nn.Module], 'Family']] = {}


@dataclass
class ImageInput:
    """What a model reads of one image, without its content. Memory is planned with it.

    Args:
        ids (list[int]): The part of ``input_ids`` that stands for the image, with the tokens that frame it.
        num_tokens (int): Number of placeholders among them.
        shapes (Callable): Number of images -> dict of name and shape: tensors of a batch whose content is never read.
        values (dict): Name -> entries of one image: tensors of a batch whose content is read.
        is_read (bool): Whether the library reads the values of the tensors of `shapes` (they are then ones). Defaults
            to False.
    """

    ids: list[int]
    num_tokens: int
    shapes: Callable[[int], dict[str, Any]]
    values: dict[str, list[int]] = field(default_factory=dict)
    is_read: bool = False


@dataclass(frozen=True)
class ImagePrompt:
    """How a processor writes the prompt of an image that is to be generated.

    Args:
        image_size (int): Height and width of the image in pixels.
        is_turn (bool): Whether the prompt is a user's turn of the chat template. Otherwise it is plain text.
        before (str): Text in front of the prompt.
        after (str): Text after the prompt, up to the token after which image tokens begin.
        options (dict): Options with which the processor writes both.
    """

    image_size: int
    is_turn: bool
    before: str
    after: str
    options: dict[str, Any]


class Family:
    """All that is known about one family of transformers' vision-language models.

    The *class* declares how the family's processor writes texts and images. Datasets and collation read it: they have
    no model. An *instance* views one model of the family: it has neither parameters nor state. Tuners, generation,
    merging and planning read it.

    The defaults serve models that read one image [3, H, W] per run of placeholders of fixed length, with
    ``pixel_values`` [N, 3, H, W]. A subclass names the parts. Models with tiles or patches also override the methods on
    pixels (`canvases`, `with_canvases`, `image_lengths`).

    A subclass that names ``model_types`` serves these models as soon as it is defined.

    Args:
        model (nn.Module): The transformers model with its head, e.g. ``LlavaForConditionalGeneration``.
    """

    # ------------------------------------------------------------------ the processor, and what it writes
    # `config.model_type` of the models, and class names of their processors.
    model_types: ClassVar[tuple[str, ...]] = ()
    processors: ClassVar[tuple[str, ...]] = ()
    # `config.vision_config.model_type`, where models with other towers are of another family. (): any tower.
    tower_types: ClassVar[tuple[str, ...]] = ()
    # File of chat_templates/ for processors without a template, or with one that does not mark answers.
    chat_template: ClassVar[str | None] = None
    # Batch keys with one entry per token, and what stands at padding; None: the sample's `pad_token_id`.
    token_padding: ClassVar[dict[str, int | None]] = dict(input_ids=None, labels=IGNORE_INDEX, attention_mask=0)
    # In a batch that has this key, the first dimension of image tensors is the sample instead of the image.
    row_key: ClassVar[str | None] = None
    # Text that the processor writes before and after an image. It is tokenized together with the text around it.
    image_margins: ClassVar[tuple[str, str]] = ('', '')
    # Tokens that the chat template writes before and after an image. They are cut off together with it.
    image_frame: ClassVar[tuple[str, str] | None] = None
    # Whether prompt (prefix) and answer (suffix) are tokenized one by one, and `token_type_ids` tell them apart.
    is_prefix_model: ClassVar[bool] = False
    # Whether the processor takes the images of a text as lists of one image each.
    nests_images: ClassVar[bool] = False
    # Whether only the single image of a text is cut into tiles. The processor takes the images of a text as one list.
    tiles_single_images: ClassVar[bool] = False
    # Class names of image processors that pad before they read `input_data_format`: they get arrays.
    array_image_processors: ClassVar[tuple[str, ...]] = ()
    # Added tokens that answers of the family consist of (a regular expression): records may write them.
    answer_tokens: ClassVar[str | None] = None

    # ------------------------------------------------------------------ the model
    # Part -> dotted names of its modules and parameters. The longest name decides, so a part may lie inside another.
    # The language model comes first in its own entry. What no part names stays frozen.
    parts: dict[str, tuple[str, ...]] = dict(
        vision_tower=('model.vision_tower',),
        projector=('model.multi_modal_projector',),
        language_model=('model.language_model', 'lm_head'),
    )
    # What the model's forward and generate take from a batch.
    forward_keys: tuple[str, ...] = ('input_ids', 'attention_mask', 'pixel_values')
    # Shape of `pixel_values`: the name of a dimension, or its size.
    pixel_shape: ClassVar[tuple[str | int, ...]] = ('images', 3, 'height', 'width')
    # Class of a tower, with its module -> the adapter by which its patches are scored and merged.
    tower_adapters: ClassVar[dict[str, Callable[[nn.Module], VisionEncoder]]] = {}
    # Whether `vision_merge` can shorten what the language model reads of the tower.
    can_merge_tower: ClassVar[bool] = False
    # Why conversations cannot share a row without padding (`packed=True`); None: they can.
    no_packing: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if 'model_types' in vars(cls):
            for model_type in cls.model_types:
                keys = [f'{model_type}/{tower_type}' for tower_type in cls.tower_types] or [model_type]
                FAMILIES.update(dict.fromkeys(keys, cls))

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @classmethod
    def reads(cls, processor: Any) -> bool:
        """Whether a processor is one of the family: by the name of its class."""
        return type(processor).__name__ in cls.processors

    @classmethod
    def placeholder(cls, processor: Any) -> str | None:
        """What a text has for an image, until the processor replaces it; None if the processor takes no images."""
        return getattr(processor, 'image_token', None)

    @classmethod
    def image_token(cls, processor: Any) -> str | None:
        """The token that the processor writes for an image, once or several times among others."""
        return cls.placeholder(processor)

    @classmethod
    def preamble(cls, processor: Any) -> str:
        """What the processor writes in front of every conversation, in addition to the chat template."""
        return ''

    @classmethod
    def opening(cls, template: str) -> str:
        """What a released chat template writes between the begin token and the first turn.

        Templates of this package write it as their variable ``opening``, so that no file repeats the text of a release.

        Args:
            template (str): The processor's own chat template, in Jinja.
        """
        return ''

    @classmethod
    def image_processor(cls, processor: Any) -> Any:
        """A copy of the processor that adds nothing but image tokens to a text that the chat template has written.

        Raises:
            ValueError: if the processor would write or cut images in a way that the family does not serve.
        """
        return copy.copy(processor)

    @classmethod
    def image_prompt(cls, processor: Any, image_size: int | None = None) -> ImagePrompt | None:
        """How a prompt for an image is written.

        Args:
            processor: The family's processor.
            image_size (int, optional): Height and width in pixels. Defaults to None: that of the released models.

        Returns:
            ImagePrompt | None: None for families that do not generate images.

        Raises:
            ValueError: if the model cannot generate images of this size.
        """
        return None

    def complete_processor(self, processor: Any) -> None:
        """Set on a processor what its class knows only of the released models, and does not save."""

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
        return _trained_module(self.model.get_submodule(self.parts['vision_tower'][0]))

    @property
    def vision_encoder(self) -> nn.Module | None:
        """The library's module whose patches MergeMix scores; None if token merging cannot serve the tower."""
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
        """Number of placeholders of each image, [N] int64. By default, all images have the same number."""
        pixels = self.pixels(batch)
        num_images = 0 if pixels is None else len(pixels)
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
        # An image belongs to the first sample whose placeholders end after the first token of the image.
        owners = torch.searchsorted(ends, lengths.cumsum(0) - lengths, right=True)
        # The sums per sample differ if an image would be split between two samples.
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

    def pixels(self, batch: dict) -> Tensor | None:
        """``pixel_values`` of a batch; None for a batch of text only. Whatever reads them asks for them here.

        Raises:
            ValueError: if they have another shape than those of the family's processor (`pixel_shape`).
        """
        pixels = batch.get('pixel_values')
        if pixels is None:
            return None
        shape = list(pixels.shape) if isinstance(pixels, Tensor) else []
        wanted = zip(shape, self.pixel_shape)
        if len(shape) != len(self.pixel_shape) or any(not isinstance(one, str) and one != size for size, one in wanted):
            found = f'of shape {shape}' if isinstance(pixels, Tensor) else f'a {type(pixels).__name__}'
            raise ValueError(
                f'pixel_values are {found}; {type(self).__name__} reads a tensor of shape '
                f'[{", ".join(map(str, self.pixel_shape))}], as the processor of its model makes it'
            )
        return pixels

    def canvases(self, batch: dict) -> list[Tensor]:
        """The normalised images [3, H, W] before tiling and patching; [] for a batch of text only."""
        pixels = self.pixels(batch)
        return [] if pixels is None else list(pixels)

    def with_canvases(self, batch: dict, canvases: list[Tensor]) -> dict:
        """The same batch with other pixels. It shares everything but the pixels with `batch`.

        Raises:
            ValueError: if the canvases differ from ``canvases(batch)`` in number or shape.
        """
        self.check_canvases(canvases, batch)
        return {**batch, 'pixel_values': torch.stack(canvases)} if canvases else dict(batch)

    def check_canvases(self, canvases: list[Tensor], batch: dict) -> None:
        """Refuse canvases that would not give the same tokens as those of `batch`, whose pixels are not read.

        Raises:
            ValueError: if they differ from ``canvases(batch)`` in number or shape.
        """
        pixels = self.pixels(batch)
        # On the meta device, tiles are joined to shapes without content.
        shapes = batch if pixels is None else {**batch, 'pixel_values': pixels.to('meta')}
        check_canvases(canvases, self.canvases(shapes))

    def forward_kwargs(self, batch: dict) -> dict:
        """What the base model's forward takes; see :meth:`model_kwargs`."""
        return self.model_kwargs(batch)

    def generate_kwargs(self, batch: dict) -> dict:
        """What the model's generate takes from a batch of prompts; see :meth:`model_kwargs`."""
        return self.model_kwargs(batch)

    def model_kwargs(self, batch: dict) -> dict:
        """What forward and generate both take, with pixels in the tower's dtype.

        Raises:
            ValueError: if the batch has videos, or pixels of another shape.
        """
        videos = [key for key in batch if 'video' in key and batch[key] is not None]
        if videos:
            raise ValueError(
                f'the batch has {", ".join(videos)}: videos are not supported; allowed are texts and images'
            )
        kwargs = {key: batch[key] for key in self.forward_keys if batch.get(key) is not None}
        if (pixels := self.pixels(kwargs)) is not None:
            # Processors give float32, and the library does not cast for every tower.
            kwargs['pixel_values'] = pixels.to(next(self.vision_tower.parameters()).dtype)
        return kwargs

    def positions(self, inputs: dict) -> Tensor:
        """The positions of the tokens of a padded batch, [B, L] or [..., B, L] int64, counted in each conversation.

        Args:
            inputs (dict): What the model reads of the batch, with ``attention_mask`` [B, L].
        """
        return (inputs['attention_mask'].long().cumsum(dim=1) - 1).clamp(min=0)

    def generate(self, **kwargs: Any) -> Tensor:
        """The library's generation. Janus' own method would drop the logits processors; its guidance is for images."""
        from transformers import GenerationMixin

        return GenerationMixin.generate(self.model, **{'guidance_scale': None, **kwargs})

    def largest_image(self, processor: dict) -> ImageInput:
        """What the model reads of the largest image that its processor accepts.

        Args:
            processor (dict): The options of the processor that decide about sizes (``model.processor`` of a config).

        Raises:
            NotImplementedError: if the family does not say it.
            ValueError: if an option is missing.
        """
        raise NotImplementedError(f'{type(self).__name__} does not say what it reads of its largest image')

    def image_prompt_end(self, image_size: int | None = None) -> tuple[int, list[int]]:
        """The side of an image that is to be generated, in pixels, and the ids that end its prompt.

        Args:
            image_size (int, optional): The side. Defaults to None: that of the released models.

        Raises:
            NotImplementedError: if the family does not generate images.
        """
        raise NotImplementedError(f'{type(self).__name__} does not generate images')


def find_family(model_type: str | None, tower_type: str | None = None) -> Callable[[nn.Module], Family]:
    """The class that knows models of this type.

    Args:
        model_type (str): ``config.model_type`` of a transformers model.
        tower_type (str, optional): Its ``config.vision_config.model_type``. Defaults to None: a tower that is of no
            family of its own.

    Raises:
        ValueError: if there is none, with the reason if the type is known (`refused.py`).
    """
    if model_type not in FAMILIES:
        reason = REFUSED.get(str(model_type), 'it is not a vision-language model that can be tuned here')
        raise ValueError(
            f'model_type={model_type!r}: {reason}. Supported are {sorted(FAMILIES)}; others need a Family '
            '(docs/extend/custom_vlm.md)'
        )
    return FAMILIES.get(f'{model_type}/{tower_type}', FAMILIES[model_type])


def build_family(model: nn.Module) -> Family:
    """The family's view on a transformers model with its head.

    Raises:
        ValueError: if no family knows the model.
    """
    tower = getattr(model.config, 'vision_config', None)
    return find_family(model.config.model_type, getattr(tower, 'model_type', None))(model)


def family_of(processor: Any) -> type[Family]:
    """The family that a processor belongs to; `Family` itself for a processor of no family."""
    return next((family for family in declared() if family.reads(processor)), Family)


def declared() -> list[type[Family]]:
    """All classes of families. A batch or a tokenizer does not say which of them it belongs to."""
    return [
        Family,
        *dict.fromkeys(one for one in FAMILIES.values() if isinstance(one, type) and issubclass(one, Family)),
    ]


def token_padding() -> dict[str, int | None]:
    """Batch keys with one entry per token, of any family, and what stands at padding (see `Family.token_padding`)."""
    return {key: value for family in declared() for key, value in family.token_padding.items()}


def check_canvases(canvases: list[Tensor], expected: list[Tensor]) -> None:
    """Refuse canvases that would not give the same tokens."""
    found, wanted = ([list(canvas.shape) for canvas in images] for images in (canvases, expected))
    if found != wanted:
        raise ValueError(f'canvases of shapes {found} cannot replace those of the batch, {wanted}')


def square_image(num_tokens: int, token: int, side: int) -> ImageInput:
    """An image of side x side pixels that is read in one piece: one placeholder `token` per image token."""
    return ImageInput([token] * num_tokens, num_tokens, lambda size: dict(pixel_values=(size, 3, side, side)))


def _trained_module(module: nn.Module) -> nn.Module:
    """The module that trains inside peft's wrapper of ``modules_to_save``."""
    if hasattr(module, 'modules_to_save') and hasattr(module, 'original_module'):
        return module.modules_to_save[module.active_adapter]
    return module
