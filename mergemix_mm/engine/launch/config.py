"""The config that a tool runs: from its file and the flags, checked, and with defaults filled in."""

import argparse
import difflib
import inspect
import os
from logging import WARNING
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS, Registry, init_default_scope

from ...utils.metafiles import metafiles_parsed_once
from .errors import LaunchError


def load_config(path: str | os.PathLike, argument: str = 'CONFIG') -> Config:
    """Read a config file; its scope defaults to ``mmpretrain``.

    Args:
        path (str | os.PathLike): The file.
        argument (str): Its name on the command line, for the error. Defaults to ``'CONFIG'``.

    Raises:
        LaunchError: If the file does not exist; the message lists similar names in its folder.
    """
    path = Path(path)
    if not path.is_file():
        close = difflib.get_close_matches(path.name, [found.name for found in path.parent.glob('*.py')], cutoff=0.4)
        hint = f' Close matches in {path.parent}: {", ".join(close)}.' if close else ''
        raise LaunchError(f'{argument}: there is no file {path}.{hint}')
    with metafiles_parsed_once():
        cfg = Config.fromfile(path)
    if cfg.get('default_scope') is None:
        cfg.default_scope = 'mmpretrain'
    return cfg


def merge_common_args(cfg: Config, args: argparse.Namespace) -> None:
    """Set launcher and work directory: of the flag, else of the config, else ``./work_dirs/<config>``."""
    # MMEngine reads the variable. torchrun sets it, older launchers only pass the flag.
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))


def read_config(path: str | os.PathLike, options: dict | None = None) -> Config:
    """Read a config for a tool without a Runner: with ``--cfg-options`` applied and its scope as the default one.

    As in the Runner, ``data_preprocessor`` of the config is that of its model, unless the model has one of its own.

    Args:
        path (str | os.PathLike): The file.
        options (dict, optional): The value of ``--cfg-options``. Defaults to None.

    Raises:
        LaunchError: If the config does not exist.
    """
    cfg = load_config(path)
    merge_options(cfg, options)
    init_default_scope(cfg.default_scope)
    if isinstance(cfg.get('model'), dict) and cfg.get('data_preprocessor') is not None:
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    return cfg


def merge_options(cfg: Config, options: dict | None) -> None:
    """Override config entries with ``--cfg-options``. Called after the flags are merged, so that it wins over them."""
    if options is not None:
        cfg.merge_from_dict(options)


def use_own_weights(cfg: Config) -> None:
    """Test a model with the weights that it is built with, instead of a checkpoint.

    Models that are built without weights are refused: the test would be one of random weights. A language model with
    weights is enough to look at the loss on text before training; this logs a warning.

    Raises:
        LaunchError: If the config names no weights.
    """
    vlm = cfg.model.get('vlm') or {}
    language_model = vlm.get('language_model')
    if not vlm.get('pretrained') and isinstance(language_model, dict) and language_model.get('pretrained'):
        print_log("'none': model.vlm.language_model has weights, the rest is random: look only at text.", level=WARNING)
    elif not vlm.get('pretrained'):
        raise LaunchError(
            "CHECKPOINT: 'none' is for models that come with weights, but the config has no model.vlm.pretrained (nor "
            'model.vlm.language_model.pretrained); name a file'
        )
    cfg.load_from = None


def use_amp(cfg: Config) -> None:
    """Make a config train with automatic mixed precision.

    Raises:
        LaunchError: If the optimizer wrapper of the config is not the plain one: replacing it would lose what it does.
    """
    found = cfg.optim_wrapper.get('type', 'OptimWrapper')
    with OPTIM_WRAPPERS.switch_scope_and_registry(cfg.default_scope) as registry:
        wrapper = registry.get(found) if isinstance(found, str) else found
    if wrapper not in (OptimWrapper, AmpOptimWrapper):
        raise LaunchError(
            f'--amp: would replace optim_wrapper.type={found!r}, where it can only replace OptimWrapper. Leave --amp '
            'out and set the precision where that wrapper takes it: optim_wrapper.opt_level for Apex'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def figure_path(output: str | os.PathLike, config: str | os.PathLike) -> Path:
    """The file of a figure that a tool draws for a config.

    Args:
        output (str | os.PathLike): The value of ``--output-dir``: a file that ends in ``.png``, or a folder, in which
            the figure gets the name of the config.
        config (str | os.PathLike): The config.
    """
    path = Path(output)
    return path if path.suffix.lower() == '.png' else path / f'{Path(config).stem}.png'


def read_in_this_process(loader: dict) -> None:
    """Let a data loader start no worker processes, for tools that read a few samples.

    Args:
        loader (dict): Its config, changed in place.
    """
    loader.update(num_workers=0, persistent_workers=False)
    for key in ('prefetch_factor', 'timeout', 'worker_init_fn'):
        loader.pop(key, None)


def set_loader_defaults(cfg: Config, *splits: str, pin_memory: bool = True, persistent_workers: bool = True) -> None:
    """Fill in the defaults of ``cfg.<split>_dataloader`` for the splits that the config has.

    If models or datasets of MMPretrain are used, its ``default_collate`` stacks batches. Those of other libraries keep
    MMEngine's ``pseudo_collate``, which gives lists of images: the images of detectors differ in size.

    Args:
        cfg (Config): The config, changed in place.
        *splits (str): ``'train'``, ``'val'`` or ``'test'``.
        pin_memory (bool): False switches it off whatever the config says. Defaults to True.
        persistent_workers (bool): False switches them off whatever the config says. Defaults to True.
    """
    for loader in data_loaders(cfg, *splits).values():
        defaults: dict[str, Any] = dict(pin_memory=True, persistent_workers=True)
        if 'collate_fn' not in loader and _is_of_mmpretrain(cfg, loader):
            defaults['collate_fn'] = dict(type='default_collate')
        for key, value in defaults.items():
            loader.setdefault(key, value)
        loader['pin_memory'] &= pin_memory
        loader['persistent_workers'] &= persistent_workers


def _is_of_mmpretrain(cfg: Config, loader: dict) -> bool:
    """Whether a loader's batches are for MMPretrain: the model decides, else the datasets, else the scope."""
    scope = cfg.get('default_scope') or 'mmpretrain'
    model = cfg.get('model') or {}
    model = _library(model.get('type'), MODELS, model.get('_scope_') or scope)
    datasets = {_library(kind, DATASETS, said or scope) for kind, said in _types(loader.get('dataset'))} - {None}
    return ({model} if model else datasets or {scope}) == {'mmpretrain'}


def _types(dataset: Any, scope: str | None = None) -> list[tuple[str | type, str | None]]:
    """The types of the datasets that hold samples, inside of ``dataset``, ``datasets``, ``tasks`` and so on.

    Each comes with the ``_scope_`` of itself or of a dataset around it.
    """
    if isinstance(dataset, (list, tuple)):
        return [kind for part in dataset for kind in _types(part, scope)]
    if not isinstance(dataset, dict):
        return []
    scope = dataset.get('_scope_') or scope
    inner = [kind for key, part in dataset.items() if key != 'pipeline' for kind in _types(part, scope)]
    return inner or ([(dataset['type'], scope)] if dataset.get('type') is not None else [])


def _library(kind: str | type | None, registry: Registry, scope: str) -> str | None:
    """The scope of the OpenMMLab library that a type comes or inherits from; None if it comes from none of them."""
    found = kind
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(scope) as scoped:
            found = scoped.get(kind)
        if found is None:  # Not installed, or unknown: only its prefix tells.
            return kind.split('.')[0] if '.' in kind else None
    roots = (base.__module__.split('.')[0] for base in getattr(found, '__mro__', ()))
    return next((root for root in roots if root in registry.children), None)


def data_loaders(cfg: Config, *splits: str) -> dict[str, dict]:
    """The data loaders of these splits by their keys in the config; those of a `BenchmarkLoop` one by one."""
    loaders: dict[str, dict] = {}
    for key in (f'{split}_dataloader' for split in splits):
        found = cfg.get(key)
        if found is None:
            continue
        inner = [] if 'dataset' in found else list(found.values())  # A loader, or loaders by their names.
        several = inner and all(isinstance(value, dict) and 'dataset' in value for value in inner)
        loaders |= {f'{key}.{name}': loader for name, loader in found.items()} if several else {key: found}
    return loaders


def dataset_configs(cfg: Config, *splits: str) -> dict[str, dict]:
    """The datasets of the data loaders of these splits, by their keys in the config."""
    return {f'{key}.dataset': loader['dataset'] for key, loader in data_loaders(cfg, *splits).items()}


def check_data_roots(cfg: Config, *splits: str) -> None:
    """Stop early, naming the config key, if the data of a split do not exist.

    Remote roots, datasets without ``data_root`` and datasets that download their data are not checked.

    Raises:
        LaunchError: If a ``data_root`` does not exist.
    """
    for key, loader in data_loaders(cfg, *splits).items():
        _check_data_root(loader['dataset'], f'{key}.dataset', cfg.default_scope)


def _check_data_root(dataset: dict, key: str, scope: str) -> None:
    # Datasets inside of others: `dataset`, `datasets.0`, the `gen` and `und` of UnifiedDataset, `tasks.vqa.dataset`.
    for name, part in dataset.items():
        members = enumerate(part) if isinstance(part, (list, tuple)) else [(None, part)]
        for index, member in members:
            if isinstance(member, dict):
                _check_data_root(member, f'{key}.{name}' if index is None else f'{key}.{name}.{index}', scope)
    root = dataset.get('data_root')
    if not root or '://' in root or dataset.get('backend_args') or Path(root).expanduser().exists():
        return
    with DATASETS.switch_scope_and_registry(scope) as registry:
        dataset_class = registry.get(dataset['type']) if isinstance(dataset['type'], str) else dataset['type']
    # The registry reports an unknown type later, with alternatives.
    if dataset_class is None:
        return
    download = inspect.signature(dataset_class).parameters.get('download')
    if download is not None and dataset.get('download', download.default):
        return
    raise LaunchError(
        f'{key}.data_root={root!r}: there is no such folder (from {Path.cwd()}). Put the data there, or name '
        f'their place with --cfg-options {key}.data_root=PATH'
    )


def check_resume(cfg: Config) -> None:
    """Stop early if the checkpoint that ``--resume`` names does not exist; no other one is taken instead.

    Raises:
        LaunchError: If it does not exist.
    """
    named = cfg.get('load_from')
    if cfg.get('resume') and named and '://' not in named and not Path(named).exists():
        raise LaunchError(
            f'--resume {named}: there is no such file (from {Path.cwd()}). Without a value, --resume takes the newest '
            f'checkpoint of {cfg.get("work_dir")}'
        )


def use_own_hooks(cfg: Config) -> None:
    """Give a config, also one of another library, this project's hooks for checkpoints and for losses that become NaN.

    MMEngine's plain ``CheckpointHook`` becomes an ``AtomicCheckpointHook``, also where the config does not name it and
    the Runner would add it. Subclasses stay. ``default_hooks.finite_loss=None`` leaves out the ``NonFiniteLossHook``.

    Args:
        cfg (Config): The config, changed in place.
    """
    defaults = cfg.get('default_hooks') or {}
    if 'checkpoint' not in defaults:
        defaults['checkpoint'] = dict(type='CheckpointHook', interval=1)
    defaults.setdefault('finite_loss', dict(type='NonFiniteLossHook'))
    if defaults['finite_loss'] is None:
        defaults.pop('finite_loss')
    elif isinstance(defaults['finite_loss'], dict):  # --cfg-options default_hooks.finite_loss.patience=20
        defaults['finite_loss'].setdefault('type', 'NonFiniteLossHook')
    cfg.default_hooks = defaults
    with HOOKS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        for hook in [*cfg.default_hooks.values(), *(cfg.get('custom_hooks') or ())]:
            if isinstance(hook, dict) and hook.get('type') is not None:
                found = registry.get(hook['type']) if isinstance(hook['type'], str) else hook['type']
                if found is CheckpointHook:
                    hook['type'] = 'AtomicCheckpointHook'
