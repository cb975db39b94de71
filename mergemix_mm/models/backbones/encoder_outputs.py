"""Runs an image encoder of any library: one function per library, each of which gives one tensor."""

from collections.abc import Callable
from inspect import signature

from mmengine.utils import to_2tuple
from torch import Tensor, nn

Run = Callable[[nn.Module, Tensor], Tensor]


def find_run(encoder: nn.Module) -> Run:
    """How an encoder is run.

    Args:
        encoder (nn.Module): A backbone of MMPretrain, a vision model of transformers or timm, a model with BLIP-2's
            Q-Former, or a module that gives a map.

    Returns:
        Callable: encoder, images [B, 3, H, W] -> tokens [B, L, C], a map [B, C, h, w], or a Q-Former's queries.
    """
    libraries = {cls.__module__.split('.')[0] for cls in type(encoder).__mro__}
    if is_qformer(encoder):
        return _run_qformer
    if 'transformers' in libraries:
        return _run_transformers
    if 'timm' in libraries and hasattr(encoder, 'forward_features'):
        return _run_timm
    return _run_backbone


def is_qformer(encoder: nn.Module) -> bool:
    """Whether an encoder is a vision model with BLIP-2's Q-Former behind it, whose outputs are no map."""
    return all(hasattr(encoder, name) for name in ('vision_model', 'query_tokens', 'qformer'))


def _run_backbone(encoder: nn.Module, images: Tensor) -> Tensor:
    """A backbone of OpenMMLab: a tuple of one output."""
    output = encoder(images)
    if isinstance(output, Tensor):
        return output
    if len(output) != 1:
        raise ValueError(f'it gives {len(output)} outputs where one is needed: name one stage in its out_indices')
    return output[0]


def _run_timm(encoder: nn.Module, images: Tensor) -> Tensor:
    """The features behind the final norm, without pooling."""
    features = encoder.forward_features(images)
    return features.permute(0, 3, 1, 2) if getattr(encoder, 'output_fmt', 'NCHW') == 'NHWC' else features


def _run_transformers(encoder: nn.Module, images: Tensor) -> Tensor:
    """The last hidden state, normalised: CLIP itself normalises the class token only."""
    hidden = encoder(pixel_values=images, **_positions(encoder, images))[0]
    tower = getattr(encoder, 'vision_model', encoder)
    return tower.post_layernorm(hidden) if type(tower).__name__ == 'CLIPVisionTransformer' else hidden


def _run_qformer(encoder: nn.Module, images: Tensor) -> Tensor:
    """The outputs of the query tokens, before any projection."""
    vision = encoder.vision_model
    hidden = vision(pixel_values=images, **_positions(vision, images))[0]
    # transformers keeps the Q-Former in float32 beside a vision model in half precision.
    hidden = hidden.to(next(encoder.qformer.parameters()).dtype)
    queries = encoder.query_tokens.expand(len(hidden), -1, -1)
    return encoder.qformer(query_embeds=queries, encoder_hidden_states=hidden)[0]


def _positions(model: nn.Module, images: Tensor) -> dict[str, bool]:
    """Ask for resized position embeddings where the model does not resize them unasked, if they have to be."""
    if 'interpolate_pos_encoding' not in signature(model.forward).parameters:
        return {}
    return dict(interpolate_pos_encoding=tuple(images.shape[-2:]) != to_2tuple(model.config.image_size))
