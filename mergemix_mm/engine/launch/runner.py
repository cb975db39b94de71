"""Builds the Runner of a config, with this project's hooks and, on CPUs, a process group."""

import atexit
import datetime
import gc
import os
from logging import LogRecord

import matplotlib
import torch.distributed
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import FlexibleRunner, Runner

from ...utils import files, processes
from ...utils.text import printable
from ..hooks.plain_checkpoint_hook import PlainCheckpointHook
from ..schedules import fit_schedule
from ..strategies import FSDP2Strategy
from .config import data_loaders, use_own_hooks
from .errors import LaunchError, explain_stops
from .resuming import choose_checkpoint

# DDP on a CPU takes no device. A wrapper config replaces all of MMEngine's defaults, so they are repeated here.
_CPU_WRAPPER = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)


def build_runner(cfg: Config) -> Runner | FlexibleRunner:
    """Build the Runner, or the FlexibleRunner if the config has a ``strategy``, or what ``runner_type`` names.

    Without an accelerator, ``launcher='pytorch'`` trains over gloo. Options of data loaders that torch would refuse or
    warn about are switched off: persistent workers without workers, pinned memory without an accelerator. The Runner
    saves checkpoints whole and resumes from the newest one that can be loaded; its workers end with it. A schedule that
    was written for a longer run is scaled (:func:`~mergemix_mm.engine.fit_schedule`).

    Raises:
        LaunchError: If the launcher cannot be used, a part of the schedule begins after the end of the run, the work
            directory is not writable, or sharded weights cannot serve a hook or a data loader.
    """
    use_own_hooks(cfg)
    if (cfg.get('randomness') or {}).get('deterministic'):
        # Without it, some releases of torch refuse matrix products on CUDA. It is read only once, at the first product.
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
    try:
        fit_schedule(cfg)
    except ValueError as error:
        raise LaunchError(str(error)) from error
    # A killed run would leave workers that keep its memory, and under torchrun processes that keep its port.
    processes.end_children_with_parent()
    if 'TORCHELASTIC_RUN_ID' in os.environ:
        processes.end_with_parent()
    for loader in data_loaders(cfg, 'train', 'val', 'test').values():
        if not loader.get('num_workers', 0):
            loader.pop('persistent_workers', None)
        if get_device() == 'cpu':
            loader.pop('pin_memory', None)
    if cfg.launcher != 'none' and get_device() == 'cpu':
        _start_cpu_process_group(cfg)
    # FlexibleRunner.from_cfg passes None for a missing entry, and so loses the default of its constructor.
    cfg.setdefault('env_cfg', dict(dist_cfg=dict(backend='nccl')))
    with explain_stops(cfg):  # Building opens the log and may write the config.
        if cfg.get('work_dir') and '://' not in cfg.work_dir:
            files.check_writable(cfg.work_dir)
        if cfg.get('runner_type') is not None:
            runner = RUNNERS.build(cfg)
        else:
            runner = (Runner if cfg.get('strategy') is None else FlexibleRunner).from_cfg(cfg)
    if isinstance(getattr(runner, 'strategy', None), FSDP2Strategy):
        _check_sharded(runner)
    # Names of classes are plain texts: a dollar sign in one starts no formula where MMEngine's visualizers draw it.
    matplotlib.rcParams['text.parse_math'] = False
    runner.register_hook(PlainCheckpointHook())
    runner.logger.addFilter(_show_control_characters)
    choose_checkpoint(runner)
    return runner


def _check_sharded(runner: FlexibleRunner) -> None:
    """Refuse what needs whole weights, and loaders that leave some processes without a batch."""
    if any(isinstance(hook, EMAHook) for hook in runner.hooks):
        raise LaunchError(
            'custom_hooks: EMAHook copies the model, whose weights FSDP2Strategy shards; remove the hook, or train '
            'without the strategy'
        )
    for key, loader in data_loaders(runner.cfg, 'val', 'test').items():
        if (loader.get('sampler') or {}).get('round_up') is False and get_world_size() > 1:
            raise LaunchError(
                f'{key}.sampler.round_up=False: FSDP2Strategy needs as many batches on every process, as the others '
                'would wait for weights of one that has ended; remove it'
            )


def _show_control_characters(record: LogRecord) -> bool:
    """Write out control characters in file names and foreign texts that are logged; MMEngine adds its colours later."""
    record.msg, record.args = printable(record.getMessage()), ()
    return True


def _start_cpu_process_group(cfg: Config) -> None:
    """Start gloo before MMEngine does, which would ask for a CUDA device, and let DDP wrap a model on the CPU."""
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

    After a collective, a thread of gloo drops its tensors, for which it needs the interpreter. A thread that still
    waits for it when the interpreter ends aborts the process ("terminate called without an active exception"). Only the
    destructor of the process group joins these threads. The wrapped model refers to the group, so the Runner, which is
    part of reference cycles, must be collected first. The reference here must be the last one: Python's destructor
    gives up the interpreter while it joins the threads, and the destructor in the wrapped model does not.
    """
    group = torch.distributed.group.WORLD
    if group is not None:
        torch.distributed.destroy_process_group()
        gc.collect()
        del group
