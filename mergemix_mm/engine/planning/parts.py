"""The parameters of a model, part by part."""

from dataclasses import dataclass, field

from torch import nn

from ...models.tuners import BaseTuner
from ...models.vlms.freezing import part_of

# What no part of a vision-language model names: it never trains.
REST = 'frozen'


@dataclass
class PartSize:
    """A part of a model.

    Args:
        name (str): ``'language_model'``, ``'backbone'``, ...
        parameters (int): How many it has.
        trained (int): How many of them train.
        bytes (int): What they take.
        dtypes (set[str]): ``{'float32'}``, ...
    """

    name: str
    parameters: int = 0
    trained: int = 0
    bytes: int = 0
    dtypes: set[str] = field(default_factory=set)


def part_sizes(model: nn.Module) -> list[PartSize]:
    """The parts of a model in the order of its parameters; shared parameters count once.

    The parts of a tuner are those that ``trainable`` knows, and ``frozen``; those of other models are their children.
    """
    is_tuner = isinstance(model, BaseTuner)
    network = model.vlm.family.model if is_tuner else model
    sizes: dict[str, PartSize] = {}
    for name, parameter in network.named_parameters():
        part = (part_of(name, model.vlm.family.parts) or REST) if is_tuner else name.partition('.')[0]
        size = sizes.setdefault(part, PartSize(part))
        size.parameters += parameter.numel()
        size.trained += parameter.numel() * parameter.requires_grad
        size.bytes += parameter.numel() * parameter.element_size()
        size.dtypes.add(str(parameter.dtype).removeprefix('torch.'))
    return list(sizes.values())
