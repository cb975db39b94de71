"""Folders of models: written whole or not at all, in one dtype; they replace only folders of models."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from mmengine.dist import is_main_process
from torch import Tensor, nn

from ....utils import files
from ....utils.distributed import together
from ....utils.wrappers import unwrapped, without_wrappers
from ..quantization import is_quantized
from ..weight_names import with_wrapper

# Every folder of a model or of adapters has one of these files.
MODEL_FILES = {'config.json', 'adapter_config.json'}
# Named tokens of every tokenizer. Other names belong to a model, such as `image_token`.
NAMED_TOKENS = {f'{name}_token' for name in ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask')}


def check_replaceable(folder: str | Path) -> None:
    """Refuse to replace a folder that is not a model: a folder of checkpoints must not be deleted by mistake.

    Raises:
        NotADirectoryError: if `folder` is a file.
        FileExistsError: if it holds files but not a model.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f'{folder} is a file; name a folder to write the model to')
    found = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if found and not MODEL_FILES & set(found):
        raise FileExistsError(
            f'{folder} holds other files than a model ({", ".join(found[:3])} ...), which replacing it would delete; '
            'name a new folder'
        )


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """A temporary folder next to `folder`. It replaces `folder` when the block ends without an error.

    Raises:
        NotADirectoryError: if `folder` is a file.
        FileExistsError: if it holds files, and no model.
    """
    check_replaceable(folder)
    with files.replaced_folder(folder) as new:
        yield new


@contextmanager
def whole_weights(
    model: nn.Module,
    folder: str | Path,
    dtype: Callable[[str], torch.dtype | None] = lambda name: None,
    needed: Callable[[str, Tensor], bool] = lambda name, weight: True,
) -> Iterator[dict[str, Tensor] | None]:
    """The state dict of a model, to be saved. For a sharded model, a collective.

    The weights of a sharded model are put together one after the other, and wait in files beside `folder`. So no
    process holds the whole model.

    Args:
        model (nn.Module): The model; wrappers around it and inside of it are left out of the names.
        folder (str | Path): Where the model will be saved.
        dtype (Callable): Name -> the dtype to which floats of a sharded model are cast, so that their files are no
            larger than needed; None for their own. Defaults to their own.
        needed (Callable): Name and weight -> whether a weight of a sharded model is put together. Defaults to all.

    Yields:
        dict[str, Tensor] | None: The weights; None on processes that only give their shards.

    Raises:
        OSError: If the files cannot be written.
    """
    model = unwrapped(model)
    with without_wrappers(model):
        named = model.state_dict(keep_vars=True)
    if not any(_is_shard(value) for value in named.values()):
        yield {name: value.detach() for name, value in named.items()}
        return
    folder, error = Path(folder).absolute(), None
    waiting = folder.with_name(f'{folder.name}-weights')
    # If the main process cannot write, the others must not wait for it in the collectives that follow.
    scratch = together(lambda: files.begin_replacement(waiting) if is_main_process() else None)[0]
    try:
        stored: dict[Tensor, Tensor] = {}
        for name, value in named.items():
            if value in stored or not needed(name, value):
                continue
            tensor: Any = value.detach()
            tensor = tensor.full_tensor() if _is_shard(tensor) else tensor
            stored[value] = tensor.new_empty(0)
            if not is_main_process() or error is not None:
                continue
            try:
                with files.explained(folder):
                    stored[value] = _in_file(tensor, dtype(name), Path(scratch, str(len(stored))))
            except Exception as raised:  # The others are in the middle of their collectives.
                error = raised
        if error is not None:
            raise error
        yield {name: stored[value] for name, value in named.items() if value in stored} if is_main_process() else None
    finally:
        if is_main_process():
            files.end_replacement(scratch)


def _in_file(tensor: Tensor, dtype: torch.dtype | None, path: Path) -> Tensor:
    """A tensor whose elements are in a file, which is written."""
    tensor = tensor.to(device='cpu', dtype=dtype if tensor.is_floating_point() else None).contiguous()
    if not tensor.numel():
        return tensor
    content = tensor.reshape(-1).view(torch.uint8)
    content.numpy().tofile(path)
    mapped = torch.from_file(str(path), shared=False, size=content.numel(), dtype=torch.uint8)
    return mapped.view(tensor.dtype).view(tensor.shape)


def save_model(model: nn.Module, folder: Path, dtype: torch.dtype, weights: dict[str, Tensor] | None = None) -> None:
    """Write a model of transformers with all its weights in one dtype, and a config that says which.

    After training, weights that trained are float32, and others may have a lower precision. The library would load such
    a folder as it is, and multiply one by the other. The config also says whether head and embeddings are one weight,
    at both places where the versions of transformers look for it, and has frequencies of positions under the names of
    both. Compiled or wrapped modules inside of the model are written under their original names.

    Args:
        model (nn.Module): The model; it stays as it is.
        folder (Path): An existing folder.
        dtype (torch.dtype): Dtype of the weights in the folder.
        weights (dict[str, Tensor], optional): Of :func:`whole_weights`. Defaults to None: those of a model that is not
            sharded.

    Raises:
        ValueError: If weights of the model are quantized.
    """
    model = unwrapped(model)
    if is_quantized(model):
        raise ValueError(
            'a model with quantized weights is not written: make a folder of its checkpoint and the original weights, '
            'by tools/model_converters/save_pretrained.py with --cfg-options ...quantization_config=None'
        )
    with without_wrappers(model), _any_generation_config(model, folder):
        weights = model.state_dict() if weights is None else weights
        model.save_pretrained(folder, state_dict=with_wrapper(model, _cast(weights, dtype)))
    content = write_dtype(folder, dtype)
    for part in (content, *content.values()):
        if isinstance(part, dict) and isinstance(part.get('rope_parameters'), dict):
            part.update(old_rope(part['rope_parameters']))
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None:
        for part in (content, content.get('text_config')):
            if part is not None:
                part['tie_word_embeddings'] = head.weight is embeddings.weight
    files.write_json(folder / 'config.json', content)


def write_dtype(folder: Path, dtype: torch.dtype) -> dict:
    """Write one dtype into all parts of the config of a folder, and return the config."""
    path = folder / 'config.json'
    content = json.loads(path.read_text(encoding='utf-8'))
    content['dtype'] = content.pop('torch_dtype', None)
    _set_dtype(content, str(dtype).removeprefix('torch.'))
    files.write_json(path, content)
    return content


def save_adapters(model: nn.Module, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
    """Write adapters of LoRA, and other parts that trained, in peft's format and the dtype in which they trained.

    Args:
        model (nn.Module): Peft's model.
        folder (Path): An existing folder.
        weights (dict[str, Tensor], optional): As for :func:`save_model`.
    """
    model = unwrapped(model)
    with without_wrappers(model):
        # Embeddings do not train. Otherwise peft would ask the hub whether they have grown.
        model.save_pretrained(folder, save_embedding_layers=False, state_dict=weights)


def _cast(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Floats in one dtype. Names of one weight share a tensor again, which the library then writes once."""
    cast: dict[tuple, Tensor] = {}
    for name, value in weights.items():
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype)
        if place not in cast:
            changes = value.is_floating_point() and value.dtype != dtype
            cast[place] = value.to('cpu', dtype) if changes else value
        weights[name] = cast[place]
    return weights


@contextmanager
def _any_generation_config(model: nn.Module, folder: Path) -> Iterator[None]:
    """Write a generation config with a temperature but without sampling: transformers 4 reads but does not write it."""
    own: Any = getattr(model, 'generation_config', None)
    try:
        if own is not None:
            own.validate(strict=True)
    except ValueError:
        model.generation_config = type(own)()
        try:
            yield
        finally:
            model.generation_config = own
        own.to_json_file(folder / 'generation_config.json')
    else:
        yield


def save_processor(processor, folder: str | Path) -> None:
    """Write a processor so that transformers 4.57 and 5 read it.

    Version 5 writes a class of tokenizers and a place for named tokens that version 4 does not know. Version 5
    also reads those of version 4.

    Args:
        processor (ProcessorMixin | SphinxProcessor): Whatever has a ``save_pretrained``.
        folder (str | Path): Where to.
    """
    processor.save_pretrained(folder)
    for path in Path(folder).rglob('tokenizer_config.json'):
        content = json.loads(path.read_text(encoding='utf-8'))
        extra = content.get('extra_special_tokens')
        if content.get('tokenizer_class') != 'TokenizersBackend' and not isinstance(extra, list):
            continue
        if content.get('tokenizer_class') == 'TokenizersBackend':
            content['tokenizer_class'] = 'PreTrainedTokenizerFast'
        if isinstance(extra, list):
            named = {key: content[key] for key in content if key.endswith('_token') and key not in NAMED_TOKENS}
            content['extra_special_tokens'] = {key: token for key, token in named.items() if isinstance(token, str)}
            content |= dict(additional_special_tokens=extra) if extra else {}
        files.write_json(path, content)


def _set_dtype(content: dict, dtype: str) -> None:
    """Set the dtype of a config and of the configs inside it."""
    for key, value in content.items():
        if key in ('dtype', 'torch_dtype'):
            content[key] = dtype
        elif isinstance(value, dict):
            _set_dtype(value, dtype)


def old_rope(rope: dict) -> dict:
    """What transformers 4 calls the ``rope_parameters`` of version 5, which reads both.

    Args:
        rope (dict): ``rope_parameters`` of a config. The result is empty for kinds that version 4 does not have.
    """
    kind = rope.get('rope_type', 'default')
    if 'rope_theta' not in rope or kind == 'axial':
        return {}
    others = {key: value for key, value in rope.items() if key not in ('rope_theta', 'partial_rotary_factor', 'type')}
    found = dict(rope_theta=rope['rope_theta'], rope_scaling=None)
    if set(others) - {'rope_type'} or kind != 'default':
        found['rope_scaling'] = dict(others, rope_type=kind, type=kind)
    if 'partial_rotary_factor' in rope:
        found['partial_rotary_factor'] = rope['partial_rotary_factor']
    return found


def check_whole(model: nn.Module) -> None:
    """Refuse a model whose weights are sharded over processes."""
    names = [name for name, parameter in model.named_parameters() if _is_shard(parameter)]
    if names:
        raise RuntimeError(f'the weights are sharded over processes ({", ".join(names[:3])} ...)')


def _is_shard(tensor: Tensor) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
