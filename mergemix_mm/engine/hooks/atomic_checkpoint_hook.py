"""A checkpoint hook that never leaves half a file, whatever stops the run."""

import hashlib
import os
import pickle
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import torch
from mmengine.dist import all_gather_object, all_reduce, get_rank, get_world_size, is_main_process, master_only
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from torch import Tensor

from ...models.vision_encoders import sharded_units
from ...utils import files
from ...utils.distributed import together
from ...utils.numbers import check_number
from ...utils.wrappers import unwrapped
from .non_finite_loss_hook import is_finite
from .step_seed_hook import StepSeedHook

_GRADIENTS = 'accumulated_gradients'
# Best checkpoints that a better one has replaced. They are deleted when a checkpoint that no longer names them is on
# the disk: a run that resumes from an older one still finds what it names.
_SUPERSEDED = 'superseded_ckpts'
# The epoch (of an epoch loop) or the iteration of the last validation; a resumed run compares it with its own.
_VALIDATED = 'last_validation'
# In the meta data of a checkpoint: the samples of an iteration, over all processes.
_SAMPLES = 'samples_per_iteration'


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, with the same arguments and file names, for runs that may be killed.

    - A checkpoint, and ``last_checkpoint``, replace the older ones only when they are on the disk, and older ones are
      deleted only after that. So there is a checkpoint to resume from at every moment after the first one. This holds
      for files and for folders (shards of all processes) on local disks. Remote ones (``backend_args``) are written as
      MMEngine writes them.
    - Only checkpoints in the hook's own folder are deleted. A checkpoint that came from elsewhere, or whose folder was
      moved, names its best and oldest checkpoints by old paths; these stand for the files of the same name in the own
      folder.
    - With ``accumulative_counts``, a checkpoint between two updates of the weights would lose gradients. Iteration
      loops save at the next update instead, and log it. Epoch loops can only be resumed from the end of an epoch, so
      they keep the gradients in the checkpoint.
    - Weights that became NaN or infinite are not saved: the run stops.
    - A run that resumes with another number of samples per iteration, as on other processes, is warned of.
    - A run that was killed between a checkpoint and the validation that was due validates first when it resumes.

    ``tools/train.py`` replaces every plain ``CheckpointHook`` of a config by this hook.

    Raises:
        ValueError: If ``interval``, ``max_keep_ckpts`` or ``save_begin`` is not an integer.
        FloatingPointError: When saving, if weights became NaN or infinite.
        OSError: When saving, if the disk is full or the folder is not writable; one line names it and the free space.
    """

    _training = False
    _loaded_samples: int | None = None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # With NaN, MMEngine would silently save nothing, or delete nothing.
        for name in ('interval', 'max_keep_ckpts', 'save_begin'):
            check_number(f'AtomicCheckpointHook: {name}', getattr(self, name), 'an integer', integer=True)

    def before_train(self, runner) -> None:
        """Find the folder, take over what an interrupted run left there, and do what that run had no time to do."""
        hub = runner.message_hub
        resumed = dict(hub.runtime_info) if runner.iter > 0 else {}
        # MMEngine's hook reads these, and would delete the files that they name, in whatever folder.
        for key in [key for key in hub.runtime_info if key == 'keep_ckpt_ids' or key.startswith('best_ckpt')]:
            hub.pop_info(key)
        super().before_train(runner)
        self._training = True
        self._local = self.file_client_args is None and isinstance(self.file_backend, LocalBackend)
        self._meta: dict = {}
        self._gradients: list | None = None
        self._owed = False
        self._keep: list[int] = []
        self._superseded: list[str] = []
        # Some models hold infinite buffers on purpose, such as masks; only new NaN and infinities stop the run.
        self._unusual = {name for name, tensor in _state(runner) if not is_finite(tensor)}
        if self._local and is_main_process():
            for folder in {self.out_dir, runner.work_dir}:
                files.check_writable(folder)
                for path in files.clear_leftovers(folder):
                    runner.logger.info(f'Removed {path}, which a killed run has left.')
        if resumed:
            self._compare_samples(runner)
            self._take_over(runner, resumed)
            self._restore_gradients(runner)
            self._validate_if_due(runner, resumed)
        else:
            hub.update_info(_VALIDATED, 0)

    def _take_over(self, runner, resumed: dict) -> None:
        """Continue with the checkpoints of the own folder that the resumed one names; ignore all others."""
        if not self._is_own(runner):
            runner.logger.info(
                f'Resumed from the checkpoint of another folder; nothing is deleted there, new ones go to '
                f'{self.out_dir}.'
            )
            return
        if isinstance(ids := resumed.get('keep_ckpt_ids'), list | tuple):
            self._keep = [step for step in ids if type(step) is int and step >= 0]
        for key in self.key_indicators if self.save_best else ():
            prefix = 'best_' if key == 'auto' else f'best_{key}_'.replace('/', '_')
            if (path := self._own_path(resumed.get(self._best_key('best_ckpt', key)), prefix)) is not None:
                self._set_best(runner, key, path)
        superseded = resumed.get(_SUPERSEDED)
        superseded = superseded if isinstance(superseded, list | tuple) else ()
        self._superseded = [path for path in (self._own_path(name, 'best_') for name in superseded) if path]
        self.last_ckpt = self._own_path(resumed.get('last_ckpt'), '')
        self._remove_outdated(runner)

    def _compare_samples(self, runner) -> None:
        """Warn of a run that is resumed on other processes, if its data do not continue where they were."""
        before, now = self._loaded_samples, _samples_per_iteration(runner)
        if type(before) is int and now is not None and before != now:
            size, rest = divmod(before, get_world_size())
            advice = '' if rest else f' To continue, set train_dataloader.batch_size={size}, and that of its sampler.'
            runner.logger.warning(
                f'An iteration had {before} samples over all processes, and has {now} now: the resumed run repeats or '
                f'leaves out data.{advice}'
            )

    def _is_own(self, runner) -> bool:
        """Whether the run was resumed from a checkpoint of the folder that it writes to."""
        source = runner._resume if isinstance(runner._resume, str) else runner._load_from
        if source is None or not self._local:
            return source is None or str(source).startswith(str(self.out_dir))
        return Path(source).absolute().parent.resolve() == Path(self.out_dir).resolve()

    def _own_path(self, named, prefix: str) -> str | None:
        """The checkpoint of the own folder with the name of this path; None if it does not exist.

        The path comes from a file, so it is not followed: only its last part counts.
        """
        if not isinstance(named, str | os.PathLike):
            return None
        name = str(named).replace('\\', '/').rsplit('/', 1)[-1]
        path = self.file_backend.join_path(self.out_dir, name)
        if not name.startswith(prefix) or not self._is_checkpoint(name):
            return None
        if (self._local and Path(path).is_symlink()) or not self.file_backend.exists(path):
            return None
        return path

    def _is_checkpoint(self, name: str) -> bool:
        """Whether a name is one that this hook gives to checkpoints."""
        return re.fullmatch(f'(best_.+_)?{name_pattern(self.filename_tmpl)}', name) is not None

    def _validate_if_due(self, runner, resumed: dict) -> None:
        """Validate now if the killed run had no time for it.

        MMEngine would continue with the next epoch, and the best checkpoint could be another one in the end.
        """
        loop = runner.train_loop
        place, end = _place(loop), loop.max_epochs if hasattr(loop, 'run_epoch') else loop.max_iters
        if runner.val_loop is None or resumed.get(_VALIDATED) in (None, place) or place < loop.val_begin:
            return
        loop._decide_current_val_interval()
        if place % loop.val_interval == 0 or place == end:
            runner.logger.info('The checkpoint was saved before a validation that was due then; it comes first.')
            for hook in runner.hooks:
                if isinstance(hook, StepSeedHook):
                    hook.start(runner)
            runner.val_loop.run()

    def after_val_epoch(self, runner, metrics: dict | None = None) -> None:
        """Remember that the validation was done, and save the best checkpoint."""
        if self._training:
            runner.message_hub.update_info(_VALIDATED, _place(runner.train_loop))
        super().after_val_epoch(runner, metrics)

    def after_train(self, runner) -> None:
        """Publish the checkpoints."""
        self._training = False
        super().after_train(runner)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._loaded_gradients = checkpoint.get(_GRADIENTS)
        self._loaded_samples = (checkpoint.get('meta') or {}).get(_SAMPLES)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        # FlexibleRunner writes the counters of this moment, which after a validation are already those of the next
        # epoch.
        checkpoint['meta'].update(self._meta)
        if (samples := _samples_per_iteration(runner)) is not None:
            checkpoint['meta'][_SAMPLES] = samples
        if self._gradients is not None:
            checkpoint[_GRADIENTS] = self._gradients

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Save when a checkpoint is due, or was due earlier and the weights are up to date now."""
        if self.by_epoch:
            return
        due = self.every_n_train_iters(runner, self.interval, self.save_begin) or (
            self.save_last and self.is_last_train_iter(runner)
        )
        if due and not _is_updated(runner):
            runner.logger.info(
                f'The checkpoint of iteration {runner.iter + 1} moves to the next update of the weights '
                '(optim_wrapper.accumulative_counts).'
            )
            self._owed = True
        elif due or (self._owed and _is_updated(runner)):
            runner.logger.info(f'Saving checkpoint at {runner.iter + 1} iterations')
            self._save_checkpoint(runner)

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        self._refuse_bad_weights(runner)
        self._owed = False
        hub = runner.message_hub
        if self.max_keep_ckpts > 0:
            self._keep = [other for other in self._keep if other != step] + [step]
            # Also those that are deleted only after this one is written: if the run is killed before that, the resumed
            # run deletes them.
            hub.update_info('keep_ckpt_ids', list(self._keep))
        hub.update_info(_SUPERSEDED, list(self._superseded))
        name = self.filename_tmpl.format(step)
        path = self.file_backend.join_path(self.out_dir, name)
        hub.update_info('last_ckpt', path)
        self._gradients = _gather_gradients(runner)
        try:
            self._write(
                runner,
                name,
                dict(meta),
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                by_epoch=self.by_epoch,
                **self.args,
            )
        finally:
            self._gradients = None
        self.last_ckpt = path
        if is_main_process():
            files.write_text(Path(runner.work_dir, 'last_checkpoint'), str(path))
        self._remove_outdated(runner)

    def _save_best_checkpoint(self, runner, metrics: dict) -> None:
        if not self.save_best:
            return
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        step = runner.epoch if self.by_epoch else runner.iter
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        hub, improved = runner.message_hub, False
        for key, rule in zip(self.key_indicators, self.rules, strict=True):
            score, score_key = metrics[key], self._best_key('best_score', key)
            best = hub.runtime_info.get(score_key, self.init_value_map[rule])
            if score is None or not self.is_better_than[key](score, best):
                continue
            self._refuse_bad_weights(runner)
            name = f'best_{key}_{self.filename_tmpl.format(step)}'.replace('/', '_')
            path, previous = self.file_backend.join_path(self.out_dir, name), self._get_best(key)
            hub.update_info(score_key, score)
            self._set_best(runner, key, path)
            self._write(runner, name, dict(meta), save_optimizer=False, save_param_scheduler=False, by_epoch=False)
            runner.logger.info(
                f'The best checkpoint with {score:0.4f} {key} at {step} {"epoch" if self.by_epoch else "iter"} is '
                f'saved to {name}.'
            )
            improved = True
            if previous and previous != path:
                self._superseded.append(previous)
        if not improved:
            return
        # The regular checkpoint of this step was written before the validation, so it names the previous best.
        if self.last_ckpt is None:
            self._remove_outdated(runner)
        elif self.by_epoch or _is_updated(runner):
            self._save_checkpoint_with_step(runner, step, meta)
        else:
            self._owed = True

    def _best_key(self, name: str, key: str) -> str:
        return name if len(self.key_indicators) == 1 else f'{name}_{key}'

    def _get_best(self, key: str) -> str | None:
        return self.best_ckpt_path if len(self.key_indicators) == 1 else self.best_ckpt_path_dict.get(key)

    def _set_best(self, runner, key: str, path: str) -> None:
        if len(self.key_indicators) == 1:
            self.best_ckpt_path = path
        else:
            self.best_ckpt_path_dict[key] = path
        runner.message_hub.update_info(self._best_key('best_ckpt', key), path)

    def _write(self, runner, name: str, meta: dict, **options) -> None:
        """Save what the Runner (or its strategy) saves under this name: a file, or a folder with a file per process."""
        self._meta = {key: meta[key] for key in ('epoch', 'iter')}
        options.update(meta=meta, file_client_args=self.file_client_args, backend_args=self.backend_args)
        path, work = Path(self.out_dir, name), None
        try:
            if not self._local:
                runner.save_checkpoint(self.out_dir, name, **options)
                return
            work = together(lambda: files.begin_replacement(path) if is_main_process() else None)[0]

            def save() -> None:
                with files.explained(path):
                    runner.save_checkpoint(str(work), files.NEW, **options)

            together(save)
            together(lambda: files.finish_replacement(work, path) if is_main_process() else None)
        finally:
            self._meta = {}
            if work is not None and is_main_process():
                files.end_replacement(work)

    def _remove_outdated(self, runner) -> None:
        """Delete the checkpoints that newer ones have replaced, but never the last one."""
        names = []
        if self.max_keep_ckpts > 0:
            names = [self.filename_tmpl.format(step) for step in self._keep[: -self.max_keep_ckpts]]
            self._keep = self._keep[-self.max_keep_ckpts :]
        outdated = [self.file_backend.join_path(self.out_dir, name) for name in names] + self._superseded
        self._superseded = []
        best = [] if self.save_best is None else [self._get_best(key) for key in self.key_indicators]
        for path in outdated if is_main_process() else ():
            # A link may be the user's, and what it points to is not this hook's to delete.
            if path in (self.last_ckpt, *best) or (self._local and Path(path).is_symlink()):
                continue
            if self.file_backend.isfile(path):
                self.file_backend.remove(path)
            elif self.file_backend.isdir(path):
                self.file_backend.rmtree(path)
            else:
                continue
            runner.logger.info(f'Removed the outdated checkpoint {path}.')
        # The attribute of MMEngine's hook, for code that reads it.
        self.keep_ckpt_ids = deque(self._keep)

    def _refuse_bad_weights(self, runner) -> None:
        # Every process looks at its part, and all of them stop together: one that went on would wait for the others.
        bad = [name for name, tensor in _state(runner) if name not in self._unusual and not is_finite(tensor)]
        count = torch.tensor(len(bad))
        all_reduce(count)
        if count:
            last = f'The last good one is {self.last_ckpt}' if self.last_ckpt else 'There is no other one yet'
            raise FloatingPointError(
                f'AtomicCheckpointHook: at iteration {runner.iter} no checkpoint is saved, since weights are NaN or '
                f'infinite: {bad[0] if bad else "those of another process"} and {max(len(bad) - 1, 0)} more. {last}. '
                'Look at the losses before, the learning rate (optim_wrapper.optimizer.lr), clipping '
                '(optim_wrapper.clip_grad) and the precision (bfloat16 in place of float16)'
            )

    def _restore_gradients(self, runner) -> None:
        found = getattr(self, '_loaded_gradients', None)
        self._loaded_gradients = None
        if found is None:
            return
        parameters = dict(unwrapped(runner.model).named_parameters())
        if not isinstance(found, list) or len(found) != get_world_size():
            runner.logger.warning(
                'The gradients between two updates of the weights are lost: the checkpoint is of another number of '
                'processes.'
            )
            return
        for name, gradient in found[get_rank()].items():
            if name not in parameters or parameters[name].shape != gradient.shape:
                raise ValueError(f'The checkpoint has the gradient of {name}, which does not fit the model.')
            parameters[name].grad = gradient.to(parameters[name])
        runner.logger.info('Restored the gradients since the last update of the weights.')

    @master_only
    def _publish_model(self, runner, ckpt_path: str | None) -> None:
        from mmengine.runner.checkpoint import _load_checkpoint

        if ckpt_path is None or not self.file_backend.exists(ckpt_path):
            return
        if not self._local:
            super()._publish_model(runner, ckpt_path)
            return
        found = _load_checkpoint(ckpt_path, map_location='cpu')
        published = {key: value for key, value in found.items() if key in self.published_keys}
        if left := [key for key in found if key not in published]:
            runner.logger.info(f'Left out of the published checkpoint, as published_keys does not name them: {left}')
        # MMEngine hashes the file and renames it. Here the name is needed first, so the content is hashed.
        digest = hashlib.sha256(pickle.dumps(published)).hexdigest()[:8]
        path = Path(ckpt_path).with_suffix('')
        path = path.with_name(f'{path.name}-{digest}.pth')
        with files.replaced_file(path) as temporary:
            torch.save(published, temporary)
        runner.logger.info(f'The checkpoint {ckpt_path} is published to {path}.')


def _state(runner) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint holds of the model."""
    for prefix, module in unwrapped(runner.model).named_modules():
        tensors = {**module._parameters, **module._buffers}
        for name, tensor in tensors.items():
            if tensor is not None and name not in module._non_persistent_buffers_set:
                yield f'{prefix}.{name}' if prefix else name, tensor


def _samples_per_iteration(runner) -> int | None:
    """The samples of an iteration, over all processes; None if the loader does not say it."""
    size = getattr(getattr(runner.train_dataloader, 'batch_sampler', None), 'batch_size', None)
    return size * get_world_size() if type(size) is int else None


def _place(loop) -> int:
    return loop.epoch if hasattr(loop, 'run_epoch') else loop.iter


def name_pattern(template: str) -> str:
    """A regular expression for the names of a ``filename_tmpl``; its group is the epoch or iteration."""
    return r'0*(\d+)'.join(re.escape(part) for part in re.split(r'\{.*?\}', template))


def _is_updated(runner) -> bool:
    """Whether the last iteration updated the weights, so that no gradients wait for the next update."""
    wrapper = runner.optim_wrapper
    wrappers = wrapper.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    return all(one.should_update() for one in wrappers if hasattr(one, 'should_update'))


def _gather_gradients(runner) -> list[dict] | None:
    """The gradients of each process; None if none wait for an update."""
    if _is_updated(runner):
        return None
    if sharded_units(runner.model):
        # They are whole on every process, and out of reach.
        runner.logger.warning(
            'The gradients since the last update are not in the checkpoint: the weights are sharded. Let an epoch end '
            'with an update (optim_wrapper.accumulative_counts), or train by iterations.'
        )
        return None
    parameters = unwrapped(runner.model).named_parameters()
    own = {name: parameter.grad.cpu() for name, parameter in parameters if parameter.grad is not None}
    return all_gather_object(own)
