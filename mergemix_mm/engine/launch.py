"""What the tools share: common flags, the config, a CPU process group, and the Runner itself."""

import argparse
import atexit
import datetime
import difflib
import functools
import gc
import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING, LogRecord
from pathlib import Path
from typing import Any

import matplotlib
import torch.distributed
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS, RUNNERS, Registry
from mmengine.runner import FlexibleRunner, Runner

from ..utils import files, processes
from ..utils.errors import DataError
from ..utils.images import image_name, read_image
from ..utils.safe_load import CheckpointError, guarded_mmengine
from ..utils.text import printable, shown
from .hooks.plain_checkpoint_hook import PlainCheckpointHook
from .resuming import choose_checkpoint
from .schedules import fit_schedule

# DDP on a CPU takes no device; a wrapper config of one's own replaces MMEngine's other defaults, hence all of them.
_CPU_WRAPPER = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)


# How MMEngine ends its error for a checkpoint that is missing, or a folder.
_NOT_FOUND = ' can not be found.'


class LaunchError(SystemExit):
    """A mistake in the command or the config: ends the program with a message instead of a traceback.

    Control characters of what it quotes (file names, texts of files) are shown, not sent to the terminal.
    """

    def __init__(self, message: str = '') -> None:
        super().__init__(printable(message))


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share, named as in MMPretrain's tools."""
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and metrics; ./work_dirs/<config> if left out')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--no-pin-memory', action='store_true', help='switch pin_memory off in all data loaders')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override config entries: key=value, with dots for nested keys, key="[a,b]" for lists',
    )
    add_trust_argument(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--trust-checkpoint``, the way to files that hold more than weights."""
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='also read checkpoints and annotations that hold more than plain data; such a file can run any code',
    )


@contextmanager
def safe_checkpoints(trust: bool = False) -> Iterator[None]:
    """Read all checkpoints (``load_from``, ``--resume``, ``init_cfg``) without running code of theirs.

    Args:
        trust (bool): Whether ``--trust-checkpoint`` was given. Defaults to False.

    Raises:
        LaunchError: If a file holds more than weights and logs, is damaged, or is not there.
    """
    with guarded_mmengine(trust):
        try:
            yield
        except CheckpointError as error:
            raise LaunchError(str(error)) from None
        except FileNotFoundError as error:
            # MMEngine's own error for a checkpoint has neither number nor name.
            if error.errno is not None or not str(error).endswith(_NOT_FOUND):
                raise
            raise LaunchError(f'CHECKPOINT: there is no file {str(error).removesuffix(_NOT_FOUND)}') from None


def load_config(path: str | os.PathLike, argument: str = 'CONFIG') -> Config:
    """Read a config file; its scope defaults to ``mmpretrain``.

    Args:
        path (str | os.PathLike): The file.
        argument (str): What the command line calls it, for the error. Defaults to ``'CONFIG'``.

    Raises:
        LaunchError: If the config does not exist; the message lists similar files of its folder.
    """
    path = Path(path)
    if not path.is_file():
        close = difflib.get_close_matches(path.name, [found.name for found in path.parent.glob('*.py')], cutoff=0.4)
        hint = f' Close matches in {path.parent}: {", ".join(close)}.' if close else ''
        raise LaunchError(f'{argument}: there is no file {path}.{hint}')
    cfg = Config.fromfile(path)
    if cfg.get('default_scope') is None:
        cfg.default_scope = 'mmpretrain'
    return cfg


def merge_common_args(cfg: Config, args: argparse.Namespace) -> None:
    """Set launcher and work directory: the flag's, the config's, or ``./work_dirs/<config>``, in this order."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs', Path(args.config).stem))


def merge_options(cfg: Config, options: dict | None) -> None:
    """Override config entries with ``--cfg-options``. Comes after the flags, so that it wins, as in MMPretrain."""
    if options is not None:
        cfg.merge_from_dict(options)


def use_own_weights(cfg: Config) -> None:
    """Test the weights that the model is built with; other models would be tested with random ones.

    A language model with weights is enough, for the loss on text before any training; then there is a warning.

    Raises:
        LaunchError: If the config names no such weights.
    """
    vlm = cfg.model.get('vlm') or {}
    language_model = vlm.get('language_model')
    if not vlm.get('pretrained') and isinstance(language_model, dict) and language_model.get('pretrained'):
        print_log(
            "'none': model.vlm.language_model has weights, the rest is random: look at text alone.", level=WARNING
        )
    elif not vlm.get('pretrained'):
        raise LaunchError(
            "CHECKPOINT: 'none' is for models that come with weights, but the config has no model.vlm.pretrained (nor "
            'model.vlm.language_model.pretrained); name a file'
        )
    cfg.load_from = None


def use_amp(cfg: Config) -> None:
    """Train with automatic mixed precision.

    Raises:
        LaunchError: If the config's optimizer wrapper does more than the plain one, which would be lost.
    """
    found = cfg.optim_wrapper.get('type', 'OptimWrapper')
    with OPTIM_WRAPPERS.switch_scope_and_registry(cfg.default_scope) as registry:
        wrapper = registry.get(found) if isinstance(found, str) else found
    if wrapper not in (OptimWrapper, AmpOptimWrapper):
        raise LaunchError(
            f'--amp: would replace optim_wrapper.type={found!r}, where it can only replace OptimWrapper. Leave --amp '
            'out and set the precision where that wrapper takes it: strategy.bf16=dict(enabled=True) or '
            'strategy.fp16=dict(enabled=True) for DeepSpeed, optim_wrapper.opt_level for Apex'
        )
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')


def set_loader_defaults(cfg: Config, *splits: str, pin_memory: bool = True, persistent_workers: bool = True) -> None:
    """Fill in the defaults of ``cfg.<split>_dataloader`` for the splits that the config has.

    Batches are stacked by MMPretrain's ``default_collate`` where its models or datasets are at work. Whatever belongs
    to another library keeps MMEngine's ``pseudo_collate``, a list of images: those of detectors differ in size.

    Args:
        cfg (Config): The config, changed in place.
        *splits (str): ``'train'``, ``'val'`` or ``'test'``.
        pin_memory (bool): False switches it off whatever the config says. Defaults to True.
        persistent_workers (bool): The same. Defaults to True.
    """
    for loader in _loaders(cfg, *splits).values():
        defaults = dict(pin_memory=True, persistent_workers=True)
        if 'collate_fn' not in loader and _is_of_mmpretrain(cfg, loader):
            defaults['collate_fn'] = dict(type='default_collate')
        for key, value in defaults.items():
            loader.setdefault(key, value)
        loader.pin_memory &= pin_memory
        loader.persistent_workers &= persistent_workers


def _is_of_mmpretrain(cfg: Config, loader: dict) -> bool:
    """Whether a loader's batches are for MMPretrain: what they go into, else what they hold, else the scope says so."""
    scope = cfg.get('default_scope') or 'mmpretrain'
    model = cfg.get('model') or {}
    model = _library(model.get('type'), MODELS, model.get('_scope_') or scope)
    datasets = {_library(kind, DATASETS, said or scope) for kind, said in _types(loader.get('dataset'))} - {None}
    return ({model} if model else datasets or {scope}) == {'mmpretrain'}


def _types(dataset: Any, scope: str | None = None) -> list[tuple[str | type, str | None]]:
    """The types of the datasets that hold samples, at the bottom of ``dataset``, ``datasets``, ``tasks`` and so on.

    Each with the scope that it, or a dataset around it, says with ``_scope_``.
    """
    if isinstance(dataset, (list, tuple)):
        return [kind for part in dataset for kind in _types(part, scope)]
    if not isinstance(dataset, dict):
        return []
    scope = dataset.get('_scope_') or scope
    inner = [kind for key, part in dataset.items() if key != 'pipeline' for kind in _types(part, scope)]
    return inner or ([(dataset['type'], scope)] if dataset.get('type') is not None else [])


def _library(kind: str | type | None, registry: Registry, scope: str) -> str | None:
    """The library of OpenMMLab that a type is of or inherits from, by its scope; None if it is of none of them."""
    found = kind
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(scope) as scoped:
            found = scoped.get(kind)
        if found is None:  # Not installed, or unknown: its prefix is all there is.
            return kind.split('.')[0] if '.' in kind else None
    roots = (base.__module__.split('.')[0] for base in getattr(found, '__mro__', ()))
    return next((root for root in roots if root in registry.children), None)


def _loaders(cfg: Config, *splits: str) -> dict[str, dict]:
    """The data loaders that the config has for these splits, by their keys; those of a `BenchmarkLoop` one by one."""
    loaders = {}
    for key in (f'{split}_dataloader' for split in splits):
        found = cfg.get(key)
        if found is None:
            continue
        inner = [] if 'dataset' in found else list(found.values())  # A loader, or loaders by their names.
        several = inner and all(isinstance(value, dict) and 'dataset' in value for value in inner)
        loaders |= {f'{key}.{name}': loader for name, loader in found.items()} if several else {key: found}
    return loaders


def dataset_configs(cfg: Config, *splits: str) -> dict[str, dict]:
    """The datasets of the data loaders that the config has for these splits, by their keys in the config."""
    return {f'{key}.dataset': loader['dataset'] for key, loader in _loaders(cfg, *splits).items()}


def check_data_roots(cfg: Config, *splits: str) -> None:
    """Stop early, naming the config key, where the data of a split are not there.

    Remote roots, datasets without ``data_root`` and datasets that download themselves are left to the dataset.

    Raises:
        LaunchError: If a ``data_root`` does not exist.
    """
    for key, loader in _loaders(cfg, *splits).items():
        _check_data_root(loader['dataset'], f'{key}.dataset', cfg.default_scope)


def _check_data_root(dataset: dict, key: str, scope: str) -> None:
    # Whatever holds datasets: `dataset`, `datasets.0`, the `gen` and `und` of UnifiedDataset, `tasks.vqa.dataset`.
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
    # An unknown type is reported by the registry, which knows the alternatives.
    if dataset_class is None:
        return
    download = inspect.signature(dataset_class).parameters.get('download')
    if download is not None and dataset.get('download', download.default):
        return
    raise LaunchError(
        f'{key}.data_root={root!r}: there is no such folder (from {Path.cwd()}). Put the data there, or name '
        f'their place with --cfg-options {key}.data_root=PATH'
    )


class UnreadableImageError(ValueError):
    """An image of an inherited pipeline cannot be read; the message names its file."""


@contextmanager
def explain_corrupt_images(*splits: str) -> Iterator[None]:
    """Turn what is raised for a record, or a file that is not an image, into a message that says what to do.

    Covered are files that are empty, cut off, of another content, folders, missing or not permitted, read by
    ``LoadImageFromFile`` in this process or in workers of a data loader that it forks (MMEngine's default); and the
    records that a dataset of this package refuses.

    Args:
        *splits (str): The splits that are read, to name their keys.

    Raises:
        LaunchError: Instead of the error of ``LoadImageFromFile``, and of a ``DataError``.
    """
    try:
        with _named_images():
            yield
    except DataError as error:
        skip = ", or pass over them with on_error='skip' of the dataset" if 'train' in splits else ''
        text = str(error).rstrip('.')
        raise LaunchError(f'{text}. List all such records with tools/check_data.py, and repair them{skip}') from error
    except (AssertionError, UnreadableImageError) as error:
        # The error of a worker holds its whole traceback; the message comes last.
        found = re.findall('failed to load image: (.+)', str(error))
        if not found:
            raise
        advice = 'Restore it, or take it out of the annotations'
        if 'train' in splits:
            advice += (
                ". Or skip such files in training with dict(type='LoadImageFromFile', imdecode_backend='pillow', "
                'ignore_empty=True) in train_dataloader.dataset.pipeline; ignore_empty does not skip all of them with '
                'the default backend'
            )
        raise LaunchError(f'{found[-1]}. {advice}') from error


@contextmanager
def _named_images() -> Iterator[None]:
    """Let ``LoadImageFromFile`` name the file that it cannot read, since OpenCV and Pillow get its content only."""
    transform = LoadImageFromFile.transform

    @functools.wraps(transform)
    def named(self: LoadImageFromFile, results: dict) -> dict | None:
        try:
            return transform(self, results)
        except Exception as error:
            path = results.get('img_path')
            if not isinstance(path, (str, os.PathLike)):  # A mistake of the pipeline, not of a file.
                raise
            raise UnreadableImageError(f'failed to load image: {image_name(path)}: {_why(path, error)}') from error

    LoadImageFromFile.transform = named
    try:
        yield
    finally:
        LoadImageFromFile.transform = transform


def _why(path: str | os.PathLike, error: Exception) -> str:
    """What is wrong with an image that MMCV cannot read."""
    reason = f'{type(error).__name__}: {shown(" ".join(str(error).split()), 200)}'
    if '://' in os.fspath(path):
        return reason
    try:
        read_image(path, max_pixels=None)
    except ValueError as found:
        return re.sub('^image .*? (cannot be read: |(?=does not|is a ))', '', str(found))
    return f"{reason}; dict(type='LoadImageFromFile', imdecode_backend='pillow') may read it"


@contextmanager
def explain_stops(cfg: Config) -> Iterator[None]:
    """One line for a run that cannot go on: a full disk, a folder that cannot be written to, a loss that became NaN.

    Args:
        cfg (Config): Names the work directory.

    Raises:
        LaunchError: Instead of those errors.
    """
    try:
        yield
    except FloatingPointError as error:
        raise LaunchError(str(error)) from error
    except Exception as error:
        # "Permission denied" may be of a file that is read.
        denied = isinstance(error, PermissionError)
        line = None if denied else files.cannot_write(error, cfg.get('work_dir') or '.')
        if line is None:
            raise
        raise LaunchError(line.strerror) from error


def check_resume(cfg: Config) -> None:
    """Stop early where the checkpoint that ``--resume`` names is not there; nothing else is taken in its place.

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
    """Have a config, also one of another library, save its checkpoints whole, and stop when the loss is NaN.

    MMEngine's plain ``CheckpointHook`` becomes an ``AtomicCheckpointHook`` wherever it is named, and where a Runner
    would add it by itself; subclasses stay. ``default_hooks.finite_loss=None`` leaves the other hook out.

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


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """Build the Runner, or the FlexibleRunner if the config has a ``strategy``, or what ``runner_type`` names.

    Without an accelerator, ``launcher='pytorch'`` trains over gloo. What torch would refuse or warn about in a data
    loader is switched off: persistent workers where there are no workers, pinned memory where there is no accelerator.
    The Runner saves checkpoints whole and resumes from the newest one that loads; its workers end with it. A schedule
    that was written for a longer run is scaled (:func:`~.schedules.fit_schedule`).

    Raises:
        LaunchError: If the launcher cannot be used, a part of the schedule begins after the run, or the work
            directory cannot be written to.
    """
    use_own_hooks(cfg)
    if (cfg.get('randomness') or {}).get('deterministic'):
        # Some releases of torch refuse products of matrices on CUDA without; it is read once, at the first of them.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    try:
        fit_schedule(cfg)
    except ValueError as error:
        raise LaunchError(str(error)) from error
    processes.end_children_with_parent()
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        processes.end_with_parent()
    for loader in _loaders(cfg, 'train', 'val', 'test').values():
        if not loader.get('num_workers', 0):
            loader.pop('persistent_workers', None)
        if get_device() == 'cpu':
            loader.pop('pin_memory', None)
    if cfg.launcher != 'none' and get_device() == 'cpu':
        _start_cpu_process_group(cfg)
    # FlexibleRunner.from_cfg hands a missing entry on as None, where its constructor would have a default.
    cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))
    with explain_stops(cfg):
        if cfg.get('work_dir') and '://' not in cfg.work_dir:
            files.check_writable(cfg.work_dir)
        if cfg.get('runner_type') is not None:
            runner = RUNNERS.build(cfg)
        else:
            runner = (Runner if cfg.get('strategy') is None else FlexibleRunner).from_cfg(cfg)
    # Names of classes are texts, also where MMEngine's visualizers draw them: a dollar sign starts no formula.
    matplotlib.rcParams['text.parse_math'] = False
    runner.register_hook(PlainCheckpointHook())
    runner.logger.addFilter(_show_control_characters)
    choose_checkpoint(runner)
    return runner


def _show_control_characters(record: LogRecord) -> bool:
    """Log file names and texts of others without steering the terminal; MMEngine adds its own colours later."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def _start_cpu_process_group(cfg: Config) -> None:
    """Start gloo, as MMEngine would ask for a CUDA device first, and let DDP wrap a model without one."""
    if cfg.launcher != 'pytorch':
        raise LaunchError(
            f'--launcher {cfg.launcher}: needs GPUs, and this machine shows none. On CPUs use --launcher pytorch with '
            'torchrun, as tools/dist_train.sh does'
        )
    missing = [name for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
    if missing:
        raise LaunchError(
            f'--launcher pytorch: {", ".join(missing)} not set; start it with torchrun, as tools/dist_train.sh does'
        )
    if not torch.distributed.is_initialized():
        seconds = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout')
        timeout = None if seconds is None else datetime.timedelta(seconds=seconds)
        torch.distributed.init_process_group('gloo', timeout=timeout)
        atexit.register(_stop_process_group)
        print_log('No GPU: the processes talk over gloo.')
    wrapper = dict(_CPU_WRAPPER, find_unused_parameters=cfg.get('find_unused_parameters', False))
    if cfg.get('strategy') is None and cfg.get('runner_type') == 'FlexibleRunner':
        cfg.strategy = dict(type='DDPStrategy')
    if cfg.get('strategy') is None:
        cfg.model_wrapper_cfg = {**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None}
    elif cfg.strategy.type == 'DDPStrategy':
        cfg.strategy.model_wrapper = {**wrapper, **(cfg.strategy.get('model_wrapper') or {}), 'device_ids': None}


def _stop_process_group() -> None:
    """End gloo's threads while Python still runs.

    After a collective, a thread of gloo's drops its tensors, for which it waits for the interpreter. One that still
    waits when the interpreter ends aborts the process ("terminate called without an active exception"). Only the
    destructor of the process group joins these threads, and the wrapped model refers to the group: the Runner, which
    lives in reference cycles, has to go first. The reference held here is the last one, as Python's destructor lets
    the threads have the interpreter while it joins them, and that of the wrapped model does not.
    """
    group = torch.distributed.group.WORLD
    if group is not None:
        torch.distributed.destroy_process_group()
        gc.collect()
        del group
