"""Which modules of a vision-language model FSDP shards as units of their own."""

from mmengine.registry import FUNCTIONS
from torch import nn

# Layers of language models of transformers with other names than `...DecoderLayer`.
OTHER_LAYERS = {'GPT2Block', 'GPTNeoXLayer', 'GPTJBlock', 'BloomBlock', 'MptBlock', 'CodeGenBlock', 'MambaBlock'}


@FUNCTIONS.register_module()
def wrap_decoder_layers(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy``: every decoder layer of the language model and every encoder of a
    `MultiBackbone` is a unit. Everything else is in the root.

    A layer is recognised by its class, whose name ends with ``DecoderLayer`` in most language models of transformers.
    The layers of vision towers have other names. The tower stays whole, because its patches are scored (`gathered`).

    Encoders of a `MultiBackbone` may have another dtype than the rest. Their units gather when they run: the batches
    of a step have images on all ranks or on none (`TaskMixSampler`, `ModalitySampler`).

    Args:
        module (nn.Module): The module in question.
        recurse (bool): True when FSDP asks whether to look at the module's children, which is always answered with
            True. False when it asks whether the module is a unit.
        nonwrapped_numel (int): Number of its parameters outside of units. Not used.

    Examples:
        >>> strategy = dict(type='FSDPStrategy', model_wrapper=dict(auto_wrap_policy='wrap_decoder_layers', ...))
    """
    # By name, because each language model has its own class of layers.
    name = type(module).__name__
    return recurse or name.endswith(('DecoderLayer', 'EncoderBranch')) or name in OTHER_LAYERS
