"""Makes the transformers model that a config of `HFVisionLanguageModel` asks for."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from .families import find_family


def load_model(
    pretrained: str | None = None,
    config: dict | str | None = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | dict | None = None,
    trust_remote_code: bool = False,
    model_type: str | None = None,
) -> nn.Module:
    """A transformers vision-language model with its head; see `HFVisionLanguageModel` for the arguments.

    With a `model_type`, it must be of that type.

    Raises:
        ValueError: if an argument cannot be used, or no family knows the model.
        OSError: if there is no such folder and no such model on the hub.
    """
    if (pretrained is None) == (config is None):
        raise ValueError(
            f'HFVisionLanguageModel: pretrained={pretrained!r} and config={config!r}: give exactly one of them, '
            'pretrained= for trained weights (a hub name or a folder) or config= for random ones'
        )
    from transformers import AutoModelForImageTextToText

    options = dict(dtype=_parse_dtype(dtype), trust_remote_code=trust_remote_code)
    if attn_implementation is not None:
        options['attn_implementation'] = attn_implementation
    if config is not None:
        config = _parse_config(config, trust_remote_code)
        _check_type(config.model_type, model_type)
        return AutoModelForImageTextToText.from_config(config, **options)
    config = _find_config('pretrained', pretrained, revision=revision, trust_remote_code=trust_remote_code)
    _check_type(config.model_type, model_type)  # Before gigabytes are read.
    with _explained('pretrained', pretrained):
        return AutoModelForImageTextToText.from_pretrained(pretrained, config=config, revision=revision, **options)


def _check_type(found: str, wanted: str | None) -> None:
    find_family(found)
    if wanted not in (None, found):
        raise ValueError(
            f'a model of model_type={found!r} was given to a class for {wanted!r} alone; HFVisionLanguageModel serves '
            'other models'
        )


def _parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    if dtype is None:
        return torch.float32
    parsed = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
        raise ValueError(
            f"HFVisionLanguageModel: dtype={dtype!r} must be 'float32', 'bfloat16' or 'float16' (or None: float32)"
        )
    return parsed


def _parse_config(config: dict | str, trust_remote_code: bool):
    if isinstance(config, str):
        return _find_config('config', config, trust_remote_code=trust_remote_code)
    from transformers import AutoConfig

    config = config.to_dict() if hasattr(config, 'to_dict') else dict(config)  # MMEngine's ConfigDict, nested.
    model_type = config.pop('model_type', None)
    find_family(model_type)
    return AutoConfig.for_model(model_type, **config)


def _find_config(key: str, name: str, **options):
    from transformers import AutoConfig

    if Path(name, 'adapter_config.json').is_file() and not Path(name, 'config.json').is_file():
        raise ValueError(
            f'HFVisionLanguageModel: {key}={name!r} holds the adapters of LoRA without their model. Merge them: '
            'python tools/model_converters/save_pretrained.py CONFIG CHECKPOINT OUT --merge-lora'
        )
    with _explained(key, name):
        return AutoConfig.from_pretrained(name, **options)


@contextmanager
def _explained(key: str, name: str) -> Iterator[None]:
    """Name the config key and the way out where transformers finds no files."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise OSError(
            f'HFVisionLanguageModel: {key}={name!r} is neither a folder that transformers can read nor a model that '
            f'the hub hands out here. Set {key} to a folder (`hf download {name} --local-dir ...` where there is a '
            f'network), or to a name whose files are in the cache of HF_HOME.\n{error}'
        ) from error
