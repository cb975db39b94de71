"""Several image encoders side by side, the backbone of SPHINX (https://arxiv.org/abs/2311.07575)."""

import math
from collections.abc import Sequence

from mmengine.model import BaseModule, ModuleList
from mmengine.registry import MODELS
from torch import Tensor, nn

from .encoder_branch import EncoderBranch
from .token_map import TokenMap

KEYS = ('encoder', 'input_size', 'mean', 'std', 'frozen')


@MODELS.register_module()
class MultiBackbone(BaseModule):
    """Runs several encoders on the same images, each in its own resolution and normalisation, frozen or not.

    Encoders are

    - backbones of MMPretrain that return tokens or one map: vision transformers with ``out_type='raw'`` (which keeps
      the class token) or ``'featmap'``, ConvNeXt with ``gap_before_final_norm=False``, ResNet, ...;
    - vision models of transformers: CLIP (the final norm is applied to all tokens, a projection is left out), SigLIP,
      DINOv2, ConvNeXt, ...; and of timm;
    - models of transformers with BLIP-2's Q-Former (``Blip2VisionModelWithProjection`` only reads the vision half of a
      checkpoint).

    :class:`EmbeddingMixNeck` takes the output.

    Args:
        encoders (Sequence[dict]): One dict per encoder with

            - **encoder** (dict | nn.Module): The encoder, or its config: a type of MMPretrain, or the path of a class
              or function of another library. A ``config`` with a ``model_type`` becomes a config of transformers. Only
              encoders of OpenMMLab that are built from a config are initialised by ``init_weights``; all others come
              with their weights and keep them.
            - **input_size** (int, optional): Side of the square that images are resized to (bilinear, antialias), in
              pixels. Defaults to None: not resized.
            - **mean**, **std** (Sequence[float], optional): What its images are normalised with, [3] each. Defaults to
              None: the common mean and std.
            - **frozen** (bool): Whether it takes no gradient and stays in eval mode, also through ``train()``: neither
              weights nor buffers change. Defaults to True. With False, parts that do not reach the output (pooling
              heads) get no gradient: set ``find_unused_parameters=True`` for DDP.

        mean (Sequence[float], optional): Common mean that the incoming images are normalised with, [3]. Needed if an
            encoder has its own; all are on one scale, 0 to 1 or 0 to 255. Defaults to None.
        std (Sequence[float], optional): Common standard deviation, likewise. Defaults to None.
        init_cfg (dict, optional): Initialization config, e.g. of a checkpoint of the whole. Defaults to None.

    Raises:
        ValueError: If there is no encoder, one is given twice, or an argument cannot be used.

    Examples:
        >>> backbone = dict(
        ...     type='MultiBackbone', mean=CLIP_MEAN, std=CLIP_STD,
        ...     encoders=[
        ...         dict(encoder=dict(type='transformers.CLIPVisionModel.from_pretrained',
        ...                           pretrained_model_name_or_path='openai/clip-vit-large-patch14'), input_size=224),
        ...         dict(encoder=dict(type='timm.create_model', model_name='convnext_tiny', pretrained=True),
        ...              mean=IMAGENET_MEAN, std=IMAGENET_STD, input_size=512),
        ...         dict(encoder=dict(type='mmpretrain.VisionTransformer', arch='base', out_type='raw'), frozen=False),
        ...     ])
    """

    def __init__(
        self,
        encoders: Sequence[dict],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        _check_encoders(encoders)
        self.branches = ModuleList(
            EncoderBranch(**entry, common_mean=mean, common_std=std, name=f'encoders[{i}]')
            for i, entry in enumerate(encoders)
        )
        # Images that no branch resizes have to consist of whole patches of all encoders at once.
        divisor = math.lcm(*(branch.patch_divisor for branch in self.branches))
        for branch in self.branches:
            branch.divisor = divisor if branch.input_size is None else None

    def forward(self, images: Tensor) -> tuple[TokenMap | Tensor, ...]:
        """Run all encoders.

        Args:
            images (Tensor): [B, 3, H, W], normalised with the common mean and std.

        Returns:
            tuple[TokenMap | Tensor, ...]: per encoder, in order, a map of tokens (features [B, C, h, w], class token
            [B, C] or None), or the queries of a Q-Former [B, n, C]; in the dtype of the images.

        Raises:
            ValueError: If the images do not fit an encoder, or its output is neither of these.
        """
        return tuple(branch(images) for branch in self.branches)


def _check_encoders(encoders: Sequence[dict]) -> None:
    if not encoders or not isinstance(encoders, Sequence):
        raise ValueError(f'MultiBackbone: encoders={encoders!r} must be a list of at least one dict(encoder=...)')
    for i, entry in enumerate(encoders):
        if not isinstance(entry, dict) or not isinstance(entry.get('encoder'), dict | nn.Module):
            raise ValueError(f'MultiBackbone: encoders[{i}] must be a dict with encoder=dict(...) or a module: {entry}')
        if unknown := set(entry) - set(KEYS):
            raise ValueError(f'MultiBackbone: encoders[{i}] has unknown keys {sorted(unknown)}; allowed are {KEYS}')
        for k, other in enumerate(encoders[:i]):
            if _is_same(entry, other):
                raise ValueError(
                    f'MultiBackbone: encoders[{k}] and encoders[{i}] are the same encoder. Remove one; for another '
                    'resolution of it, give a second copy (a config, not the same module) with another input_size'
                )


def _is_same(entry: dict, other: dict) -> bool:
    """The same module, or the same config at the same resolution."""
    if isinstance(entry['encoder'], nn.Module):
        return entry['encoder'] is other['encoder']
    return entry['encoder'] == other['encoder'] and entry.get('input_size') == other.get('input_size')
