"""Finds the adapter of a model by the names of its classes, without importing optional libraries."""

from collections.abc import Callable
from importlib import import_module

from torch import nn

from ...families.base import declared
from ...families.towers import (
    CLIPEncoder,
    Dinov2Encoder,
    Dinov2WithRegistersEncoder,
    DINOv3Encoder,
    SiglipEncoder,
)
from ...families.vision_encoder import UnsupportedEncoderError, VisionEncoder

# Class name of the library -> where its adapter is, or the adapter itself (docs/extend/custom_encoder.md). The first
# match along the method resolution order wins. Families of vision-language models declare those of their own towers.
ADAPTERS: dict[str, str | Callable[[nn.Module], VisionEncoder]] = {
    'mmpretrain.models.backbones.deit3.DeiT3': 'mmpretrain.DeiT3Encoder',
    'mmpretrain.models.backbones.vit_eva02.ViTEVA02': 'mmpretrain.EVA02Encoder',
    'mmpretrain.models.backbones.vision_transformer.VisionTransformer': 'mmpretrain.MMPretrainEncoder',
    'timm.models.eva.Eva': 'timm.EvaEncoder',
    'timm.models.vision_transformer.VisionTransformer': 'timm.TimmEncoder',
    # Two names each: in transformers 5, CLIP and SigLIP have no wrapper.
    'transformers.models.clip.modeling_clip.CLIPVisionModel': CLIPEncoder,
    'transformers.models.clip.modeling_clip.CLIPVisionTransformer': CLIPEncoder,
    'transformers.models.dinov2.modeling_dinov2.Dinov2Model': Dinov2Encoder,
    'transformers.models.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersModel': (
        Dinov2WithRegistersEncoder
    ),
    'transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTModel': DINOv3Encoder,
    'transformers.models.siglip.modeling_siglip.SiglipVisionModel': SiglipEncoder,
    'transformers.models.siglip.modeling_siglip.SiglipVisionTransformer': SiglipEncoder,
}
# Wrappers of other libraries and the attribute that holds the encoder. In transformers 5, CLIPVisionModel and
# SiglipVisionModel are not wrappers and have no such attribute. A wrapper of this package offers `scoring_encoder`.
WRAPPERS = {
    'mmpretrain.models.backbones.timm_backbone.TIMMBackbone': 'timm_model',
    'mmpretrain.models.peft.lora.LoRAModel': 'module',
    'transformers.models.clip.modeling_clip.CLIPVisionModel': 'vision_model',
    'transformers.models.clip.modeling_clip.CLIPVisionModelWithProjection': 'vision_model',
    'transformers.models.siglip.modeling_siglip.SiglipVisionModel': 'vision_model',
}


def build_vision_encoder(model: nn.Module) -> VisionEncoder:
    """Describe a model's parts to token merging and scoring.

    Args:
        model (nn.Module): A vision transformer of MMPretrain, transformers or timm, or a module around one, whose
            attribute ``scoring_encoder`` is the vision transformer.

    Returns:
        VisionEncoder: views on the model. They are cheap to make and need not be kept.

    Raises:
        UnsupportedEncoderError: if no adapter can serve the model (Swin, BEiT, ResNet, ...).
    """
    if isinstance(inside := getattr(model, 'scoring_encoder', None), nn.Module):
        return build_vision_encoder(inside)
    towers = {name: adapter for family in declared() for name, adapter in family.tower_adapters.items()}
    adapters = {**towers, **ADAPTERS}
    names = [f'{cls.__module__}.{cls.__name__}' for cls in type(model).__mro__]
    for name in names:
        inner = getattr(model, WRAPPERS[name], None) if name in WRAPPERS else None
        if inner is not None:
            return build_vision_encoder(inner)
        if name in adapters:
            return _load(adapters[name])(model)
    raise UnsupportedEncoderError(model, 'no adapter knows its parts')


def _load(adapter: str | Callable[[nn.Module], VisionEncoder]) -> Callable[[nn.Module], VisionEncoder]:
    if not isinstance(adapter, str):
        return adapter
    module, name = adapter.split('.')
    return getattr(import_module(f'.{module}', __package__), name)
