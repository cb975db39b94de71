"""What FSDP2 makes of a model: which modules are units of their own, and what is not sharded."""

from mmengine.registry import FUNCTIONS
from torch import nn

# Layers of language models of transformers with other names than `...DecoderLayer`.
OTHER_LAYERS = {'GPT2Block', 'GPTNeoXLayer', 'GPTJBlock', 'BloomBlock', 'MptBlock', 'CodeGenBlock', 'MambaBlock'}


@FUNCTIONS.register_module()
def wrap_decoder_layers(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """The units of :class:`FSDP2Strategy`: every decoder layer of the language model, and every encoder of a
    `MultiBackbone` that does not train. Everything else is in the root.

    A layer is recognised by its class, whose name ends with ``DecoderLayer`` in most language models of transformers.
    The layers of vision towers have other names. The tower stays whole, because its patches are scored (`gathered`).

    Frozen encoders may have another dtype than the rest. A rank whose batch has no images takes part in gathering them
    (`join_units`). Encoders that train are in the root, whose gradients may differ between the ranks.

    Args:
        module (nn.Module): The module in question.
        recurse (bool): False asks whether the module is a unit. True asks whether to look at its children, as the
            first FSDP of torch does; the answer is always True.
        nonwrapped_numel (int): Not used.

    Examples:
        >>> strategy = dict(type='FSDP2Strategy', units='wrap_decoder_layers')
    """
    # By name, because each language model has its own class of layers.
    name = type(module).__name__
    if name.endswith('EncoderBranch'):
        return recurse or not any(parameter.requires_grad for parameter in module.parameters())
    return recurse or name.endswith('DecoderLayer') or name in OTHER_LAYERS


def exact_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Parameters that are not sharded, in modules that a model computes exactly (its ``exact_modules``)."""
    parts = [part for module in model.modules() for part in getattr(module, 'exact_modules', ())]
    return list(dict.fromkeys(one for part in parts for one in part.parameters()))
