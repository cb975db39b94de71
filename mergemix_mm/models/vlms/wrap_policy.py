"""Which modules of a vision-language model FSDP shards as units of their own."""

from mmengine.registry import FUNCTIONS
from torch import nn


@FUNCTIONS.register_module()
def wrap_decoder_layers(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy``: every decoder layer of the language model is a unit, and every encoder of a
    `MultiBackbone`; all else is in the root.

    A layer is known by its class, whose name ends with ``DecoderLayer`` in all language models of transformers. The
    layers of vision towers have other names: the tower stays whole, as scoring its patches needs (`gathered`).

    Encoders of a `MultiBackbone` may be of another dtype than the rest. Their units gather when they run: the batches
    of a step have images on all ranks or on none (`TaskMixSampler`, `ModalitySampler`).

    Args:
        module (nn.Module): The module in question.
        recurse (bool): Whether the question is if FSDP shall look at its children (always), or if it is a unit.
        nonwrapped_numel (int): Its parameters that are in no unit yet. Not looked at.

    Examples:
        >>> strategy = dict(type='FSDPStrategy', model_wrapper=dict(auto_wrap_policy='wrap_decoder_layers', ...))
    """
    return recurse or type(module).__name__.endswith(('DecoderLayer', 'EncoderBranch'))
