"""4-bit weights of the language model, on which adapters train (QLoRA, https://arxiv.org/abs/2305.14314)."""

from collections.abc import Iterator
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from ..decoders import find_decoder, is_linear

# What bitsandbytes puts behind the name of a quantized weight in a state dict, and what only that of a weight has.
STATISTICS = ('absmax', 'quant_map', 'nested_absmax', 'nested_quant_map', 'quant_state.')
MARK = '.weight.quant_state.'


def quantization(options: dict, auto_class: Any, config: Any, dtype: torch.dtype, **kwargs: Any) -> Any:
    """The config of transformers by which the linear layers of the text decoder are loaded in 4 bits.

    All other modules are named as those to skip: head, projector, vision tower, image generation, routers of experts.

    Args:
        options (dict): ``quantization_config`` of a vision-language model.
        auto_class (Any): Auto class of transformers.
        config (Any): The model's config.
        dtype (torch.dtype): Of the weights that are not quantized, and of computation unless the options say another.
        **kwargs: Of ``auto_class.from_config``.

    Raises:
        ValueError: If an option is unknown, or bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig

    options = dict(options)
    method, four = options.pop('quant_method', 'bitsandbytes'), options.get('load_in_4bit')
    allowed = set(signature(BitsAndBytesConfig.__init__).parameters) - {'self', 'kwargs', 'load_in_8bit'}
    unknown = sorted(options.keys() - allowed)
    if method != 'bitsandbytes' or four is not True or unknown:
        raise ValueError(
            f'quantization_config has quant_method={method!r}, load_in_4bit={four!r} and unknown keys {unknown}; '
            f"allowed are 'bitsandbytes', True and keys of {sorted(allowed)}"
        )
    if find_spec('bitsandbytes') is None:
        raise ValueError("quantization_config needs bitsandbytes: pip install -e '.[quantization]'")
    with torch.device('meta'):
        model = auto_class.from_config(config, **kwargs)
    options.setdefault('bnb_4bit_compute_dtype', dtype)
    skipped = [*(options.pop('llm_int8_skip_modules', None) or ()), *_others(model)]
    return BitsAndBytesConfig(llm_int8_skip_modules=skipped, **options)


def keep_exact(model: nn.Module) -> nn.Module:
    """Switch a path of bitsandbytes off that rounds the statistics of weights in place, in eval mode on some CPUs."""
    for _, layer in _quantized(model):
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # An attribute of bitsandbytes' layers.
    return model


def refuse_random(model: nn.Module, options: dict) -> nn.Module:
    """Refuse to quantize the random weights of a model without ``pretrained``."""
    raise ValueError(f'quantization_config={options!r} needs pretrained=: random weights are not quantized')


def is_quantized(module: nn.Module) -> bool:
    """Whether a module contains weights of 4 bits."""
    return any(True for _ in _quantized(module))


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the layers that are quantized: the linear ones of the text decoder, except routers of experts."""
    path, decoder = find_decoder(model)
    return [f'{path}.{name}' for name, module in decoder.named_modules() if is_linear(module)]


def keep_own_weights(module: nn.Module, state_dict: dict[str, Tensor], prefix: str) -> None:
    """Give a state dict the module's own values of quantized weights, which no training changes, in place.

    So a checkpoint of a quantized model also fits the original weights.

    Raises:
        ValueError: If the checkpoint's quantized weights are others, or it has none and the module has some.
    """
    written = {name.partition(MARK)[0] for name in state_dict if name.startswith(prefix) and MARK in name}
    own = {f'{prefix}{name}': layer for name, layer in _quantized(module)}
    if own.keys() - written and any(f'{name}.weight' in state_dict for name in own):
        raise ValueError(
            'the weights of the checkpoint are not quantized, those of the model are: set quantization_config as in '
            'the training of the checkpoint'
        )
    weights = dict(module.named_parameters(prefix.removesuffix('.')))
    for name in written:
        weight = f'{name}.weight'
        found = {
            key: state_dict.pop(key) for key in (weight, *(key for key in state_dict if _is_statistic(key, weight)))
        }
        if name in own:
            expected = own[name].state_dict(prefix=f'{name}.')
            if any(
                not torch.equal(value.cpu(), expected[key].cpu()) for key, value in found.items() if key in expected
            ):
                raise ValueError(
                    f'{weight} of the checkpoint was quantized from other weights, or with other options, than that of '
                    'the model: pretrained and quantization_config must be those of its training'
                )
        if weight in weights:
            state_dict[weight] = weights[weight].detach()


def _is_statistic(key: str, weight: str) -> bool:
    return key.startswith(f'{weight}.') and key.removeprefix(f'{weight}.').startswith(STATISTICS)


def _quantized(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose weight has 4 bits, by their names. By the name of the class: bitsandbytes need not be installed."""
    for name, layer in module.named_modules():
        if type(layer._parameters.get('weight')).__name__ == 'Params4bit':
            yield name, layer


def _others(model: nn.Module) -> list[str]:
    """The outermost modules beside the decoder, and modules of the decoder that look linear and are not."""
    path, decoder = find_decoder(model)
    parts, names = path.split('.'), []
    for depth in range(len(parts)):
        outer = '.'.join(parts[:depth])
        children = dict(model.get_submodule(outer).named_children())
        names += [f'{outer}.{name}'.lstrip('.') for name in children if name != parts[depth]]
    chosen = set(linear_layers(model))
    looks = (f'{path}.{name}' for name, module in decoder.named_modules() if isinstance(module, nn.Linear))
    return [*names, *(name for name in looks if name not in chosen)]
