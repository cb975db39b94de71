"""SPHINX (https://arxiv.org/abs/2311.07575): several vision backbones and scales of an image in one language model."""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from ....utils.files import recover_folder
from ....utils.safe_load import guarded_mmengine
from ....utils.wrappers import unwrapped
from ...allowed_parts import FLAG
from ..family_model import FamilyModel
from ..hf.loading import load_language_model, parse_dtype
from ..hf.saving import replaced_folder, save_model, whole_weights
from . import SphinxFamily, SphinxNetwork, ViewEncoder
from .files import CONFIG_FILE, LANGUAGE_MODEL, frozen_encoders, load_vision, read_layout, save_vision, write_layout

# Of the layout, beside the language model.
NEEDED = ('backbone', 'neck', 'image_token_id')


@MODELS.register_module()
class SphinxModel(FamilyModel):
    """A language model of transformers that reads images through a mix of vision backbones.

    An image is a square canvas (`SphinxProcessor` pads it), of which the backbones see the whole and, with ``grid`` 2
    or 3, its crops. A view becomes ``[start, sequences, class, patches, end]``: 291 tokens with SPHINX's four encoders.
    The three markers (start, end, and skip for a crop that only holds padding) are learnt, and shared by all views.

    A batch must hold ``input_ids`` with the ids that `SphinxProcessor` writes for images, and ``pixel_values``
    [N, 3, S, S] in the backbone's common normalisation.

    Args:
        language_model (dict | nn.Module, optional): The causal language model: ``pretrained`` (name on the hub, or
            folder) or ``config`` (random weights), and further arguments as `HFVisionLanguageModel` has them:
            ``dtype``, ``revision``, ``attn_implementation``, ``trust_remote_code``, ``quantization_config``. Of a model
            with a vision tower (Gemma 3, Llama 4), the language model is read. This and the next three arguments are
            required without ``pretrained``. Defaults to None.
        backbone (dict | nn.Module, optional): A `MultiBackbone`. Encoders that are ``frozen`` (the default) are not
            changed and stay in eval mode, whatever ``trainable`` says.
        neck (dict | nn.Module, optional): An `EmbeddingMixNeck` whose ``out_channels`` are the language model's width.
        image_token_id (int, optional): Id of the first of the four tokens that `SphinxProcessor` adds to the tokenizer:
            the number of tokens that the tokenizer has without them, 32000 for Llama 2.
        grid (int, optional): Crops per side: 1 (only the whole image), 2 or 3. Defaults to None: 1, or that of
            ``pretrained`` if backbone, neck or id are read from there.
        crop_pool (int, optional): Side of the squares of patches that are averaged in crops. Defaults to None: patches
            are not averaged, or as in ``pretrained`` (see ``grid``).
        trainable (Collection[str]): Parts that train: ``'language_model'`` (with its head), ``'projector'`` (neck and
            markers), ``'vision_tower'`` (encoders with ``frozen=False``). Defaults to the first two.
        pretrained (str, optional): A folder of :meth:`save_pretrained`: the weights of neck, markers and encoders that
            are not frozen, and every argument that is not given here. Defaults to None.
        lora (dict, optional): As for `HFVisionLanguageModel`. Defaults to None.
        gradient_checkpointing (bool): As there. Defaults to False.
        trust_remote_code (bool): Whether the folder of ``pretrained`` may name any type for its parts, which can run
            any function, and weights of any kind. If False, it may only name registered modules, and models of
            transformers and timm. Defaults to False.
        init_cfg (dict, optional): MMEngine's initialisation. Defaults to None.
        packed (bool): As for `HFVisionLanguageModel`. Defaults to False.

    Raises:
        ValueError: If an argument is missing or cannot be used, or parts do not fit each other.
        OSError: If weights cannot be found.

    Examples:
        >>> vlm = dict(
        ...     type='SphinxModel', language_model=dict(pretrained='meta-llama/Llama-2-7b-hf'), image_token_id=32000,
        ...     backbone=dict(type='MultiBackbone', encoders=[...]),
        ...     neck=dict(type='EmbeddingMixNeck', in_channels=[1024, 3072, 1536], sequence_channels=[768],
        ...               out_channels=4096, grid=16, class_token=True))
        >>> vlm = dict(type='SphinxModel', pretrained='work_dirs/sphinx/pretrained')
    """

    def __init__(
        self,
        language_model: dict | nn.Module | None = None,
        backbone: dict | nn.Module | None = None,
        neck: dict | nn.Module | None = None,
        image_token_id: int | None = None,
        grid: int | None = None,
        crop_pool: int | None = None,
        trainable: Collection[str] = ('language_model', 'projector'),
        pretrained: str | None = None,
        lora: dict | None = None,
        gradient_checkpointing: bool = False,
        trust_remote_code: bool = False,
        init_cfg: dict | None = None,
        packed: bool = False,
    ) -> None:
        if pretrained is not None:
            recover_folder(pretrained)
        given = dict(backbone=backbone, neck=neck, image_token_id=image_token_id, grid=grid, crop_pool=crop_pool)
        complete = None not in (backbone, neck, image_token_id)
        layout = {} if pretrained is None or complete else read_layout(pretrained, trust_remote_code)
        layout.update({name: value for name, value in given.items() if value is not None})
        if language_model is None and pretrained is not None:
            language_model = dict(pretrained=str(Path(pretrained, LANGUAGE_MODEL)), trust_remote_code=trust_remote_code)
        needed = dict(language_model=language_model, **{name: layout.get(name) for name in NEEDED})
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise ValueError(
                f'SphinxModel: {", ".join(missing)} must be given: {Path(pretrained, CONFIG_FILE)} does not say them'
                if pretrained is not None
                else f'SphinxModel: {", ".join(missing)} must be given, or pretrained=, a folder that has them'
            )
        # A folder's config may name further weights: these are read without running code that they contain.
        self._guard = nullcontext if trust_remote_code or pretrained is None else _guard
        assert language_model is not None  # Else it is missing.
        with self._guard():
            network = _build_network(language_model, **layout)
        if pretrained is not None:
            load_vision(network, pretrained)
        family = SphinxFamily(network)
        if 'vision_tower' in trainable and not family.parts['vision_tower']:
            raise ValueError(
                f"SphinxModel: trainable={list(trainable)} asks for 'vision_tower', but all encoders are frozen: set "
                'frozen=False for those of backbone.encoders that should train'
            )
        super().__init__(family, trainable, lora, gradient_checkpointing, init_cfg, packed)
        self._layout = layout

    def init_weights(self) -> None:
        """Initialise the encoders of OpenMMLab; encoders that have their weights already keep them."""
        super().init_weights()
        with self._guard():
            self.family.model.vision.backbone.init_weights()

    def _decoder_inputs(self, inputs: dict) -> dict:
        inputs = dict(inputs)
        embeds = self.family.model.embed(inputs.pop('input_ids'), inputs.pop('pixel_values', None))
        return {**inputs, 'inputs_embeds': embeds}

    def encode_images(self, images: Tensor, real: Tensor | None = None) -> Tensor:
        """Tokens of images as the language model gets them, without markers; see :class:`ViewEncoder`."""
        return self.family.model.vision(images, real)

    def save_pretrained(self, folder: str | Path, dtype: str | torch.dtype | None = None) -> None:
        """Write ``language_model``, a folder of transformers; ``vision.safetensors``: neck, markers and all encoders
        that are not frozen (frozen ones come from where the config has them); and ``config.json``: the config of
        backbone and neck.

        An existing folder of that name is replaced in one step, after everything is written. Sharded weights are put
        together one after the other: all processes call this method, and the main one writes.

        Args:
            folder (str | Path): The folder.
            dtype (str | torch.dtype, optional): Of the language model's weights. Defaults to None: the dtype that they
                were loaded with, to which weights that trained in float32 are rounded. Other weights keep their dtype.

        Raises:
            ValueError: With LoRA, whose adapters have to be merged before.
        """
        if unwrapped(self.model) is not self.family.model:
            raise ValueError(
                'SphinxModel: the adapters of LoRA have to be added to the weights first: '
                'python tools/model_converters/save_pretrained.py CONFIG CHECKPOINT OUT --merge-lora'
            )
        dtype = self.loaded_dtype if dtype is None else parse_dtype(dtype)
        network, prefix = cast(SphinxNetwork, unwrapped(self.model)), f'{LANGUAGE_MODEL}.'
        frozen = frozen_encoders(network)
        with whole_weights(
            network,
            folder,
            dtype=lambda name: dtype if name.startswith(prefix) else None,
            needed=lambda name, weight: not name.startswith(frozen),
        ) as weights:
            if weights is None:
                return
            own = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
            with replaced_folder(folder) as temporary:
                save_model(network.language_model, temporary / LANGUAGE_MODEL, dtype, own)
                save_vision(network, temporary, weights)
                write_layout(self._layout, temporary)


def _guard() -> AbstractContextManager:
    return guarded_mmengine(flag=FLAG)


def _build_network(
    language_model: dict | nn.Module,
    backbone: dict | nn.Module,
    neck: dict | nn.Module,
    image_token_id: int,
    grid: int = 1,
    crop_pool: int | None = None,
) -> SphinxNetwork:
    if isinstance(language_model, dict):
        language_model = load_language_model(**language_model)
    backbone, neck = (MODELS.build(part) if isinstance(part, dict) else part for part in (backbone, neck))
    return SphinxNetwork(language_model, ViewEncoder(backbone, neck, grid, crop_pool), image_token_id)
