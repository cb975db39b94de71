"""Runs an image encoder of any library: one function per library, each of which returns one tensor."""

from collections.abc import Callable, Sequence
from inspect import signature

from mmengine.utils import to_2tuple
from torch import Tensor, nn

from ..vision_encoders.timm import check_timm_size

Run = Callable[[nn.Module, Tensor], Tensor]
# Classes of transformers whose last hidden state has not been through their final norm: of version 4, of version 5.
CLIP_TOWERS = {'CLIPVisionTransformer', 'CLIPVisionModel'}


def find_run(encoder: nn.Module) -> Run:
    """Find the function that runs an encoder.

    Args:
        encoder (nn.Module): A backbone of MMPretrain, a vision model of transformers or timm, a model with BLIP-2's
            Q-Former, or a module that returns a map.

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
    """Whether an encoder is a vision model followed by BLIP-2's Q-Former, whose outputs are not a map."""
    return all(hasattr(encoder, name) for name in ('vision_model', 'query_tokens', 'qformer'))


def check_size(encoder: nn.Module, image_size: Sequence[int]) -> None:
    """Refuse images of another size than the one that an encoder of timm was built for.

    Raises:
        ValueError: If the size is another one; the message names the options of timm that help.
    """
    model = getattr(encoder, 'timm_model', encoder)  # MMPretrain's TIMMBackbone.
    if any(cls.__module__.split('.')[0] == 'timm' for cls in type(model).__mro__):
        check_timm_size(model, image_size)


def _run_backbone(encoder: nn.Module, images: Tensor) -> Tensor:
    """A backbone of OpenMMLab: a tuple of one output."""
    output = encoder(images)
    if isinstance(output, Tensor):
        return output
    if len(output) != 1:
        raise ValueError(f'it gives {len(output)} outputs where one is needed: name one stage in its out_indices')
    return output[0]


def _run_timm(encoder: nn.Module, images: Tensor) -> Tensor:
    """The features after the final norm, without pooling."""
    features = encoder.forward_features(images)
    return features.permute(0, 3, 1, 2) if getattr(encoder, 'output_fmt', 'NCHW') == 'NHWC' else features


def _run_transformers(encoder: nn.Module, images: Tensor) -> Tensor:
    """The last hidden state, normalised: CLIP itself normalises the class token only."""
    # Inside a wrapper of transformers 4, or inside a model with a projection, whose output is pooled over the image.
    tower = getattr(encoder, 'vision_model', encoder)
    hidden = _call_transformers(tower if hasattr(encoder, 'visual_projection') else encoder, images)
    names = {cls.__name__ for cls in type(tower).__mro__}
    return tower.post_layernorm(hidden) if names & CLIP_TOWERS else hidden


def _run_qformer(encoder: nn.Module, images: Tensor) -> Tensor:
    """The outputs of the query tokens, before any projection."""
    hidden = _call_transformers(encoder.vision_model, images)
    # transformers keeps the Q-Former in float32 beside a vision model in half precision.
    hidden = hidden.to(next(encoder.qformer.parameters()).dtype)
    queries = encoder.query_tokens.expand(len(hidden), -1, -1)
    return encoder.qformer(query_embeds=queries, encoder_hidden_states=hidden)[0]


def _call_transformers(model: nn.Module, images: Tensor) -> Tensor:
    """The last hidden state; position embeddings are resized if the model can do that and does not do it unasked.

    Raises:
        ValueError: If the model takes one size only, and the images have another.
    """
    size = getattr(model.config, 'image_size', None)
    if size is None or tuple(images.shape[-2:]) == to_2tuple(size):
        return model(pixel_values=images)[0]
    if 'interpolate_pos_encoding' in signature(model.forward).parameters:
        return model(pixel_values=images, interpolate_pos_encoding=True)[0]
    try:
        return model(pixel_values=images)[0]
    except ValueError as error:
        height, width = images.shape[-2:]
        side = size if isinstance(size, int) else size[0]
        raise ValueError(
            f'images of {height} x {width} pixels, but its config says image_size={size}, and it has no '
            f'interpolate_pos_encoding: set input_size={side} of the encoder, or image_size in its config ({error})'
        ) from error
