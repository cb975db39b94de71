"""Makes the transformers model that a config of `HFVisionLanguageModel` or `SphinxModel` asks for."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from ....families import FAMILIES, Family, find_family
from ....utils.files import recover_folder
from ....utils.text import one_line, quoted
from ...allowed_parts import check_attention
from ...precision import WANTED, keeps_files
from ..quantization import keep_exact, quantization, refuse_random
from ..weight_names import WRAPPER_PARTS
from .saving import old_rope

# What transformers raises for files that are missing, damaged or unexpected.
_DAMAGED = (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError, UnpicklingError)
# Errors of safetensors, and of the checks of configs in transformers 5. By name: both are imported only when needed.
_DAMAGED_NAMES = {'SafetensorError', 'StrictDataclassError'}


def load_vlm(pretrained: str | None, config: dict | str | None, model_type: str | None = None, **options) -> nn.Module:
    """A transformers vision-language model with its head; see `HFVisionLanguageModel` for the arguments.

    If a `model_type` is given, the model must be of that type.

    Raises:
        ValueError: if an argument cannot be used, or no family knows the model.
        OSError: if there is no such folder and no such model on the hub.
    """
    return _load('AutoModelForImageTextToText', partial(_check_type, wanted=model_type), pretrained, config, **options)


def load_language_model(pretrained: str | None = None, config: dict | str | None = None, **options) -> nn.Module:
    """A transformers causal language model with its head; see `SphinxModel` for the arguments.

    Raises:
        ValueError: if an argument cannot be used.
        OSError: if there is no such folder and no such model on the hub.
    """
    return _load('AutoModelForCausalLM', _check_causal, pretrained, config, **options)


def _load(
    class_name: str,
    check: Callable[[str | None], None],
    pretrained: str | None,
    config: dict | str | None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    attn_implementation: str | dict | None = None,
    trust_remote_code: bool = False,
    quantization_config: dict | None = None,
) -> nn.Module:
    """Make a model of an auto class of transformers; `check` refuses a ``model_type`` before gigabytes are read."""
    if (pretrained is None) == (config is None):
        raise ValueError(
            f'pretrained={pretrained!r} and config={config!r}: give exactly one of them, pretrained= for trained '
            'weights (a hub name or a folder) or config= for random ones'
        )
    import transformers

    for folder in (pretrained, config):
        if isinstance(folder, str):
            # A program may have been killed while it replaced the folder.
            recover_folder(folder)
    auto_class = getattr(transformers, class_name)
    is_causal = class_name == 'AutoModelForCausalLM'
    options: dict[str, Any] = dict(dtype=parse_dtype(dtype), trust_remote_code=trust_remote_code)
    if attn_implementation is not None:
        options['attn_implementation'] = attn_implementation
    if config is not None:
        parsed = _parse_config(config, check, trust_remote_code)
        _tie_as_the_text_model(parsed)
        model = auto_class.from_config(_text_config(parsed) if is_causal else parsed, **options)
        return model if quantization_config is None else refuse_random(model, quantization_config)
    assert pretrained is not None
    found = _checked_config('pretrained', pretrained, check, revision=revision, trust_remote_code=trust_remote_code)
    if not trust_remote_code:
        check_attention(found, f'pretrained={pretrained!r}')
    if getattr(found, 'quantization_config', None) is not None:
        raise ValueError(
            f'pretrained={pretrained!r} holds quantized weights; give the original ones, and quantization_config= to '
            'load them in 4 bits'
        )
    if quantization_config is not None:
        shape = _text_config(found) if is_causal else found
        chosen = quantization(quantization_config, auto_class, shape, **options)
        options['quantization_config'] = chosen
    with _explained('pretrained', pretrained):
        # The library only warns of missing weights, and draws random ones.
        options.update(_old_names(auto_class, found), config=found, revision=revision, output_loading_info=True)
        if is_causal and (text := _text_config(found)) is not found:
            options.update(config=text, key_mapping=_text_names(auto_class._model_mapping[type(text)]))
        if keeps_files():  # The library copies weights that it casts; the others stay mapped to their files.
            options['dtype'] = 'auto'
        model, info = auto_class.from_pretrained(pretrained, **options)
        if keeps_files():
            setattr(model, WANTED, parse_dtype(dtype))
    missing = sorted(info['missing_keys'])
    if missing:
        raise ValueError(
            f'pretrained={pretrained!r} lacks weights of the model (names of transformers {version("transformers")}): '
            f'{", ".join(missing[:3])}{f" and {len(missing) - 3} more" if len(missing) > 3 else ""}'
        )
    return keep_exact(model)


def _check_causal(found: str | None) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = found is None or found in CONFIG_MAPPING_NAMES  # Others may come with their own code.
    if known and found not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f'language_model: model_type={found!r} is not a causal language model of transformers')


def _check_type(found: str | None, wanted: str | None) -> None:
    find_family(found)
    if wanted not in (None, found):
        raise ValueError(
            f'a model of model_type={found!r} was given to a class for {wanted!r} only; HFVisionLanguageModel serves '
            'other models'
        )


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    """A floating dtype from its name; None is float32.

    Raises:
        ValueError: if it is none.
    """
    if dtype is None:
        return torch.float32
    parsed = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(parsed, torch.dtype) or not parsed.is_floating_point:
        raise ValueError(f"dtype={dtype!r} must be 'float32', 'bfloat16' or 'float16' (or None: float32)")
    return parsed


def _parse_config(config: dict | str, check: Callable[[str | None], None], trust_remote_code: bool):
    if isinstance(config, str):
        found = _checked_config('config', config, check, trust_remote_code=trust_remote_code)
        if not trust_remote_code:
            check_attention(found, f'config={found.name_or_path!r}')
        return found
    from transformers import AutoConfig

    config = config.to_dict() if hasattr(config, 'to_dict') else dict(config)  # MMEngine's ConfigDict, nested.
    model_type = config.pop('model_type', None)
    check(model_type)
    _check_version(model_type)
    return _with_old_rope(AutoConfig.for_model(model_type, **config))


def _checked_config(key: str, name: str, check: Callable[[str | None], None], **options):
    """The config of a folder or hub name, if its ``model_type`` passes `check`; arguments as for `find_config`."""
    try:
        found = find_config(key, name, **options)
    except OSError:
        # This version of transformers may not know the type, or its code comes with the weights.
        model_type = _said_type(name, options.get('revision'))
        if model_type is not None:
            check(model_type)
            _check_version(model_type)
        raise
    check(found.model_type)
    return found


def _check_version(model_type: str | None) -> None:
    """Refuse a type of models that the installed transformers does not have, e.g. Qwen3.5 in version 4."""
    from transformers import CONFIG_MAPPING

    if model_type is not None and model_type not in CONFIG_MAPPING:
        raise ValueError(
            f'model_type={model_type!r} is unknown to transformers {version("transformers")}: install a newer version '
            '(docs/families.md says which versions have a model), or set trust_remote_code if its code comes with it'
        )


def _said_type(name: str, revision: str | None) -> str | None:
    """The ``model_type`` that the file of a config says, if it can be read."""
    from transformers import PretrainedConfig

    with suppress(*_DAMAGED):
        return PretrainedConfig.get_config_dict(name, revision=revision)[0].get('model_type')
    return None


def _old_names(auto_class: Any, config) -> dict:
    """The option by which transformers 4 reads CLIP and SigLIP towers that version 5 saved, without their wrapper."""
    vision = getattr(config, 'vision_config', None)
    model_class = auto_class._model_mapping.get(type(config), None)
    known = getattr(model_class, '_checkpoint_conversion_mapping', None)
    if known is None or getattr(vision, 'model_type', None) not in ('clip_vision_model', 'siglip_vision_model'):
        return {}
    path = getattr(FAMILIES.get(config.model_type), 'parts', Family.parts)['vision_tower'][0]
    tower = rf'^(?:model\.)?{path.removeprefix("model.")}\.{WRAPPER_PARTS}'
    return dict(key_mapping={tower: f'{path}.vision_model.', **known})


def _text_config(config):
    """The config of the language model, for a model that also has a vision tower (Gemma 3, Llama 4).

    The library would make the whole model, or a language model of the config of the whole model; it depends on the
    version.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text = config.get_text_config(decoder=True)
    return text if text.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES else config


def _text_names(model_class: Any) -> dict[str, str]:
    """Names of a language model's weights in a checkpoint that also has a vision tower -> their names without it."""
    # Version 4 takes this prefix off afterwards.
    prefix = 'language_model.' if version('transformers') < '5' else ''
    prefix = prefix if model_class.base_model_prefix == 'language_model' else ''
    outer = r'^(?:model\.)?language_model\.'
    return {rf'{outer}lm_head\.': f'{prefix}lm_head.', rf'{outer}(?:model\.)?': f'{prefix}model.'}


def _tie_as_the_text_model(config) -> None:
    """Let the config of the language model say whether head and embeddings are one weight, as transformers 4 does.

    Version 5 reads the whole model's entry, which is True by default, as in configs of Janus and InternVL.
    Checkpoints with a separately trained head would lose it.
    """
    text = config.get_text_config(decoder=True)
    if text is not config and hasattr(text, 'tie_word_embeddings'):
        config.tie_word_embeddings = text.tie_word_embeddings


def find_config(key: str, name: str, **options):
    """Read the config of a folder, or of a model on the hub, that either version of transformers wrote.

    Args:
        key (str): Of our config, for errors.
        name (str): The folder or name.
        **options: Of ``AutoConfig.from_pretrained``.

    Raises:
        ValueError: if it is a folder of adapters, or says what this version of transformers does not know.
        OSError: if there is none, or it is damaged.
    """
    from transformers import AutoConfig

    if Path(name, 'adapter_config.json').is_file() and not Path(name, 'config.json').is_file():
        raise ValueError(
            f'{key}={name!r} holds the adapters of LoRA without their model. Merge them: '
            'python tools/model_converters/save_pretrained.py CONFIG CHECKPOINT OUT --merge-lora'
        )
    with _explained(key, name):
        config = AutoConfig.from_pretrained(name, **options)
    return _with_old_rope(config)


def _with_old_rope(config):
    """Let transformers 4 read the frequencies of positions that version 5 writes. It would use its default otherwise.

    Raises:
        ValueError: if they differ from layer to layer, which version 4 says in other ways.
    """
    from transformers import PretrainedConfig

    for part in (config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))):
        rope = vars(part).get('rope_parameters')
        if not isinstance(rope, dict) or 'rope_theta' not in signature(type(part).__init__).parameters:
            continue
        if any(isinstance(value, dict) for value in rope.values()):
            raise ValueError(
                f'rope_parameters={quoted(rope, 200)} of {type(part).__name__} differ from layer to layer, which '
                f'transformers {version("transformers")} cannot read: use version 5'
            )
        for key, value in old_rope(rope).items():
            setattr(part, key, value)
    return config


@contextmanager
def _explained(key: str, name: str) -> Iterator[None]:
    """Name the config key and the way out where transformers finds no files."""
    try:
        yield
    except Exception as error:
        names = {cls.__name__ for cls in type(error).__mro__}
        if not isinstance(error, _DAMAGED) and not names & _DAMAGED_NAMES:
            raise
        reason = one_line(error, 400)
        raise OSError(
            f'{key}={name!r} is neither a folder that transformers can read nor a model that '
            f'the hub hands out here. Set {key} to a folder (`hf download {name} --local-dir ...` where there is a '
            f'network), or to a name whose files are in the cache of HF_HOME. It says: {reason}'
        ) from error
