"""A hook that seeds every training step by its number, so that a resumed run equals an uninterrupted one."""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader

# What a seed is for, so that no two of them draw the same numbers. Workers add their number to theirs.
STEP, DATA, WORKER, VALIDATION = 0, 1, 2, 1 << 32

_CHECKPOINT_KEY = 'step_seed'


def seed_generators(seed: int, rank: int, iteration: int, purpose: int = STEP) -> None:
    """Seed the global generators of torch (all devices), numpy and random from a place in the training run.

    Args:
        seed (int): The run's seed, >= 0.
        rank (int): The process, >= 0.
        iteration (int): The training step, from 0.
        purpose (int): ``STEP`` for the step itself, ``DATA`` for its data, ``WORKER + n`` for worker n of the data
            loader, ``VALIDATION`` for a validation before it. Defaults to ``STEP``.
    """
    # Mixes the four numbers. If they were added, rank 1 of a step would draw what rank 0 draws in the next one.
    low, high, legacy, python = np.random.SeedSequence([seed, rank, iteration, purpose]).generate_state(4).tolist()
    torch.manual_seed(high << 32 | low)
    np.random.seed(legacy)
    random.seed(python)


def _init_worker(worker_id: int, inner: Callable | None, seed: int, rank: int, iteration: int) -> None:
    if inner is not None:
        inner(worker_id)
    seed_generators(seed, rank, iteration, WORKER + worker_id)


def _sampler(loader: DataLoader) -> Any:
    """The sampler of the indices; some configs give it only to the batch sampler."""
    return getattr(loader.batch_sampler, 'sampler', loader.sampler)


@HOOKS.register_module()
class StepSeedHook(Hook):
    """Seeds torch, numpy and random from (seed, rank, iteration) before each training step and before its data.

    MMEngine saves no random state, so without this hook a resumed run draws other dropout masks, mixing ratios and
    augmentations than the run it continues.

    Guaranteed, on the same hardware, software, number of processes and number of workers:

    - *Epoch loops*: a run that is killed at any moment and resumed from an epoch checkpoint ends with the same weights
      as an uninterrupted one. Draws within a step, the order of the data and the random transforms are all the same,
      with and without worker processes.
    - *Iteration loops* with ``num_workers=0`` and a sampler that can be advanced (``InfiniteSampler``): the same, from
      any checkpoint.
    - The same with ``accumulative_counts``, where the :class:`AtomicCheckpointHook` saves: MMEngine's own loses the
      gradients that wait for the next update.
    - Validation, other hooks and logging may draw random numbers without changing the training. A validation during
      training has its own seed, so that it gives the same numbers when it is repeated after a kill.
    - The seed and the sampler's seed are saved in the checkpoint, so a run without ``randomness=dict(seed=...)`` can be
      resumed too.

    Not guaranteed:

    - Random transforms in the workers of an *iteration loop*: workers restart from a fresh seed when the run resumes.
    - Checkpoints within an epoch of an epoch loop: MMEngine starts that epoch again from its first batch.
    - Operations that are themselves nondeterministic; ``randomness=dict(deterministic=True)`` asks torch to avoid them.
    - Components with a generator of their own.

    Workers are started anew at each epoch, also with ``persistent_workers=True``: a surviving worker would have a
    random state that no resumed run can have.

    Args:
        seed (int, optional): The seed, >= 0. Defaults to None: that of the Runner.

    Raises:
        ValueError: If ``seed`` is negative or not an integer.
    """

    # Last in every stage: no other hook draws between the seeding and the step that it is for.
    priority = 'LOWEST'

    def __init__(self, seed: int | None = None) -> None:
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
            raise ValueError(
                f'StepSeedHook: seed={seed!r}, but it has to be an integer >= 0, or None for the seed of the Runner'
            )
        self.seed = seed
        self._run_seed: int | None = None  # None outside training
        self._worker_init_fn: Callable | None = None
        self._loaded: dict | None = None
        self._is_started = False

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        self._loaded = checkpoint.get(_CHECKPOINT_KEY)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self._run_seed is not None:
            sampler_seed = getattr(_sampler(runner.train_dataloader), 'seed', None)
            checkpoint[_CHECKPOINT_KEY] = dict(seed=self._run_seed, sampler_seed=sampler_seed)

    def before_train(self, runner) -> None:
        if not self._is_started:
            self.start(runner)
        self._is_started = False

    def start(self, runner) -> None:
        """Find the seed of this training.

        Public, since a hook that validates in ``before_train`` comes before this one, and needs the seed earlier.
        """
        self._is_started = True
        # A checkpoint that is only loaded (a pre-trained model) begins a new run, whose seed is not that of the old
        # one.
        resumed = (self._loaded or {}) if runner.iter > 0 else {}
        # With `diff_rank_seed` the Runner's seed differs between ranks. Here all take that of the main process, since
        # the rank is part of each seed anyway.
        seeds = [self.seed if self.seed is not None else resumed.get('seed', runner.seed)]
        broadcast_object_list(seeds)
        self._run_seed = seeds[0]
        loader = runner.train_dataloader
        # MMEngine builds the sampler before it reads the checkpoint, so a seed that the config leaves open is a new
        # one.
        if resumed.get('sampler_seed') is not None:
            _sampler(loader).seed = resumed['sampler_seed']
        # A new iterator draws one number. Drawn from the global generator, it would put a resumed iteration loop one
        # draw ahead.
        if loader.generator is None:
            loader.generator = torch.Generator()
        self._worker_init_fn = loader.worker_init_fn

    def before_train_epoch(self, runner) -> None:
        # `_iterator` holds the persistent workers; torch has no public way to restart them.
        runner.train_dataloader._iterator = None
        self._seed_data(runner, runner.iter)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        assert self._run_seed is not None
        seed_generators(self._run_seed, get_rank(), runner.iter)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        self._seed_data(runner, runner.iter + 1)

    def before_val(self, runner) -> None:
        if self._run_seed is not None:
            seed_generators(self._run_seed, get_rank(), runner.iter, VALIDATION)

    def after_val(self, runner) -> None:
        # An iteration loop fetches its next batch directly after the validation. Outside of training nothing follows.
        if self._run_seed is not None:
            self._seed_data(runner, runner.iter)

    def after_train(self, runner) -> None:
        self._run_seed = None

    def _seed_data(self, runner, iteration: int) -> None:
        """Seed the loading of the next batch in the main process, and workers that may be started for it."""
        assert self._run_seed is not None
        rank = get_rank()
        runner.train_dataloader.worker_init_fn = partial(
            _init_worker, inner=self._worker_init_fn, seed=self._run_seed, rank=rank, iteration=iteration
        )
        seed_generators(self._run_seed, rank, iteration, DATA)
