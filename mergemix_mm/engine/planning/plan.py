"""Memory of a training on each GPU: weights, gradients, optimizer states, and what a step adds to them."""

import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from mmengine.config import Config
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import HOOKS, OPTIMIZERS
from torch import Tensor, nn

from ...models.backbones.encoder_branch import EncoderBranch
from ...models.vlms.hf.loading import parse_dtype
from ...models.vlms.wrap_policy import exact_parameters, wrap_decoder_layers
from ..hooks.aia_hook import AIAHook
from .batches import training_batches
from .step_memory import StepMemory
from .weightless import HubConfigs, build_weightless

GIB = 2**30
# CUDA's context, NCCL's buffers, workspaces of the BLAS library, and fragments in the allocator.
RESERVED = 2 * GIB
# Layers that FSDP2 gathers at a time: the one that computes, and the next one.
GATHERED = 2
# Bytes of a gradient that is summed over the GPUs, or over micro-batches.
SUMMED = 4


@dataclass
class MemoryPlan:
    """Bytes on each GPU for one way to train.

    Args:
        name (str): ``'DDP'``, ``'FSDP2'`` or ``'FSDP2, CPU offload'``; ``'one GPU'`` instead of the first.
        weights (int): Parameters and buffers.
        gradients (int): Gradients, including the buckets of DDP.
        optimizer (int): States of the optimizer.
        step (int): What a step adds at its peak: activations, copies in low precision, gathered layers.
        host (int): In the memory of the machine, per process. Defaults to 0.
    """

    name: str
    weights: int
    gradients: int
    optimizer: int
    step: int
    host: int = 0

    @property
    def total(self) -> int:
        """All bytes on each GPU, including the reserve."""
        return self.weights + self.gradients + self.optimizer + self.step + RESERVED

    def fits(self, gpu_memory: int) -> bool:
        """Whether a GPU with `gpu_memory` bytes can hold it."""
        return self.total <= gpu_memory


@dataclass
class TrainingPlan:
    """The ways to train a config.

    Args:
        ways (list[MemoryPlan]): DDP (or one GPU), FSDP2, and FSDP2 with CPU offload.
        batches (dict[str, list[int]]): Task -> shape of its input per GPU: images, or token ids.
        precision (torch.dtype, optional): The precision of computation; None is that of the weights.
    """

    ways: list[MemoryPlan]
    batches: dict[str, list[int]]
    precision: torch.dtype | None


@dataclass
class StepPeaks:
    """Bytes that a simulated training holds.

    Args:
        weights (int): Bytes of parameters and buffers.
        scorers (int): Bytes of encoders that score for a mixer and are not part of the model.
        gradients (int): Bytes of all gradients.
        optimizer (int): Bytes of the optimizer's states.
        loss (int): Peak of forward and backward, gradients included, above weights and states.
        update (int): Peak of the optimizer's step, gradients included, above weights and states.
        batches (dict[str, list[int]]): Task -> shape of its input.
    """

    weights: int
    scorers: int
    gradients: int
    optimizer: int = 0
    loss: int = 0
    update: int = 0
    batches: dict[str, list[int]] = field(default_factory=dict)


class PlanError(ValueError):
    """The config does not train, so its training cannot be planned."""


def plan_memory(
    cfg: Config, gpus: int, hub_configs: HubConfigs | None = None, text_tokens: int | None = None
) -> TrainingPlan:
    """Plan the training of a config.

    A step is simulated by `step_peaks`: once as one GPU runs it, and once as sharded layers run it, in low precision
    and with gradients that are released as soon as they are complete.

    Rules of FSDP2: parameters, gradients and states are divided by the number of GPUs. Each decoder layer of the
    language model, and each frozen encoder of a `MultiBackbone`, is a unit. Two units are gathered at a time, in the
    low precision (encoders in their own), and the gradients of two are summed over the GPUs in float32. All other
    parameters form the root, which stays gathered during a step, and whose gradients are summed at its end. Modules
    that a model computes exactly are not sharded. With accumulation, whole gradients in float32 stay until the last
    micro-batch.

    Args:
        cfg (Config): A config that trains.
        gpus (int): Number of GPUs, >= 1.
        hub_configs (Mapping, optional): As `build_weightless` takes it.
        text_tokens (int, optional): As `training_batches` takes it.

    Raises:
        PlanError: If the config does not train.
        UnknownBatchError: If no batch can be made up.
        HubConfigError: If the config of a hub model is missing.
    """
    return Simulation(cfg, hub_configs, text_tokens).plan(gpus)


class Simulation:
    """The steps of a config on one GPU and on one of many, from which plans for any number of GPUs follow.

    Args:
        cfg (Config): As for `plan_memory`, like all that follows.
        hub_configs (Mapping, optional): See `cfg`.
        text_tokens (int, optional): See `cfg`.

    Raises:
        PlanError: If the config does not train.
    """

    def __init__(self, cfg: Config, hub_configs: HubConfigs | None = None, text_tokens: int | None = None) -> None:
        for key in ('model', 'train_dataloader', 'optim_wrapper'):
            if not cfg.get(key):
                raise PlanError(f'CONFIG has no {key}: memory is planned of configs that train')
        self.low = low_precision(cfg)
        self.whole = step_peaks(cfg, hub_configs, text_tokens, autocast=self.low)
        self.sharded = step_peaks(cfg, hub_configs, text_tokens, compute=self.low, release=True)
        model = build_weightless(cfg.model, hub_configs)
        self.units, self.exact = planned_units(model, self.low), _bytes(exact_parameters(model))
        self.accumulates = cfg.optim_wrapper.get('accumulative_counts', 1) > 1
        self.averaged = bool(_hooks_of(cfg, EMAHook))

    def plan(self, gpus: int) -> TrainingPlan:
        """The ways to train on so many GPUs."""
        whole, fixed = self.whole, self.whole.scorers
        copies = whole.weights if self.averaged else 0
        buckets = whole.gradients if gpus > 1 else 0
        plans = [
            MemoryPlan(
                'DDP' if gpus > 1 else 'one GPU',
                weights=whole.weights + copies + fixed,
                gradients=whole.gradients + buckets,
                optimizer=whole.optimizer,
                step=max(whole.loss, whole.update) - whole.gradients,
            )
        ]
        root, *others = self.units
        gathered = root.gathered + _largest(unit.gathered for unit in others)
        # Gradients of what is gathered, until they are complete.
        gathered += root.trained_bytes + _largest((unit.trained_bytes for unit in others), 1)
        gathered += SUMMED * max(root.trained, _largest(unit.trained for unit in others))
        if self.accumulates:
            gathered += SUMMED * sum(unit.trained for unit in self.units)
        states = dict(weights=whole.weights - self.exact + copies, gradients=whole.gradients, optimizer=whole.optimizer)
        shards = {name: -(-value // gpus) for name, value in states.items()}
        update = (whole.update - whole.gradients) // gpus
        step, host = self.sharded.loss + gathered, sum(shards.values()) + update
        plans.append(MemoryPlan('FSDP2', **shards, step=max(step, update)))
        fixed += self.exact
        plans[-1].weights += fixed
        plans.append(MemoryPlan('FSDP2, CPU offload', weights=fixed, gradients=0, optimizer=0, step=step, host=host))
        return TrainingPlan(plans, whole.batches, self.low)


def simulated_model(
    cfg: Config, hub_configs: HubConfigs | None, text_tokens: int | None, compute: torch.dtype | None
) -> tuple[nn.Module, nn.ModuleList, StepMemory, dict]:
    """A model on tensors without content, as `step_peaks` runs it.

    Returns:
        tuple: the model, the encoders that score for it and are no part of it, what counts, and the batches by task.
    """
    model = build_weightless(cfg.model, hub_configs)
    memory = StepMemory()
    memory.adopt_module(model, compute)
    scorers = nn.ModuleList(_scorers(model))
    memory.adopt_module(scorers, compute)
    for scorer in scorers:
        # A mixer moves it to the device of the images.
        setattr(scorer, 'to', lambda *_, scorer=scorer: scorer)  # noqa: B010 - a method is replaced
    model.train()
    for hook in _hooks_of(cfg, AIAHook):  # It makes the tuner record attention, which takes memory.
        HOOKS.build(deepcopy(hook)).before_train(SimpleNamespace(model=model))
    return model, scorers, memory, training_batches(cfg, model, memory, text_tokens)


def step_peaks(
    cfg: Config,
    hub_configs: HubConfigs | None = None,
    text_tokens: int | None = None,
    autocast: torch.dtype | None = None,
    compute: torch.dtype | None = None,
    release: bool = False,
    foreach: bool = True,
) -> StepPeaks:
    """Simulate a training step of each task on tensors without content.

    Args:
        cfg (Config): A config that trains.
        hub_configs (Mapping, optional): As `build_weightless` takes it.
        text_tokens (int, optional): As `training_batches` takes it.
        autocast (torch.dtype, optional): The step runs under autocast to it. Defaults to None: it does not.
        compute (torch.dtype, optional): The parameters are cast to it. Defaults to None: they are not.
        release (bool): Whether gradients are released as soon as they are complete. Defaults to False.
        foreach (bool): Whether the optimizer takes all parameters at once, as it does on a GPU. Defaults to True.

    Returns:
        StepPeaks: The largest values over all tasks.
    """
    model, scorers, memory, batches = simulated_model(cfg, hub_configs, text_tokens, compute)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tensors = [*model.parameters(), *model.buffers()]
    peaks = StepPeaks(_bytes(tensors), _bytes(scorers.parameters()), _bytes(trained))
    with memory:
        wrapper = None if release else _optim_wrapper(cfg, model, foreach)
        if wrapper is not None:
            # The first update creates the states, which stay from then on.
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
            wrapper.step()
            wrapper.zero_grad()
            peaks.optimizer = memory.held
        else:
            for parameter in trained:
                parameter.register_post_accumulate_grad_hook(_let_go)
    for name, make in batches.items():
        with memory:
            # With accumulation, the second step begins with the gradients of the first.
            for _ in range(2 if cfg.optim_wrapper.get('accumulative_counts', 1) > 1 else 1):
                peaks.batches[name] = _shape(model, make()['inputs'])
                memory.peak = memory.held
                batch = make()
                with autocast_of(batch, autocast, compute):
                    losses = model(**batch)
                loss, _ = model.parse_losses(losses)
                del losses
                loss.backward()
                del loss, batch
                peaks.loss = max(peaks.loss, memory.peak - peaks.optimizer)
            if wrapper is not None:
                memory.peak = memory.held
                if wrapper.clip_grad_kwargs:
                    wrapper._clip_grad()
                wrapper.step()
                peaks.update = max(peaks.update, memory.peak - peaks.optimizer)
                wrapper.zero_grad()
    return peaks


def autocast_of(batch: dict, autocast: torch.dtype | None, compute: torch.dtype | None) -> AbstractContextManager:
    """What a simulated step of a batch runs under. Images of a classifier meet weights of low precision by autocast."""
    dtype = compute if autocast is None and isinstance(batch['inputs'], Tensor) else autocast
    return nullcontext() if dtype is None else torch.autocast('cpu', dtype=dtype)


def _hooks_of(cfg: Config, kind: type[Hook]) -> list[dict]:
    """The custom hooks of a class, or of a subclass of it."""
    hooks = cfg.get('custom_hooks') or ()
    classes = [HOOKS.get(hook['type']) if isinstance(hook['type'], str) else hook['type'] for hook in hooks]
    return [hook for hook, found in zip(hooks, classes) if found is not None and issubclass(found, kind)]


def _scorers(model: nn.Module) -> list[nn.Module]:
    """The encoders of mixers that are not modules of the model."""
    mixers = [getattr(model, 'mixer', None)]
    for name in ('augments', 'base_augment'):
        mixers += getattr(getattr(model, name, None), 'augments', [])
    encoders = [getattr(mixer, 'encoder', None) for mixer in mixers]
    return [encoder for encoder in encoders if isinstance(encoder, nn.Module)]


def _shape(model: nn.Module, inputs: dict | Tensor) -> list[int]:
    """The shape of images, or of the tokens of the language model, including those of an image to be generated."""
    return list(model.vlm.prepare(inputs)['input_ids'].shape if isinstance(inputs, dict) else inputs.shape)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(one.numel() * one.element_size() for one in tensors)


def _let_go(parameter: nn.Parameter) -> None:
    parameter.grad = None


def _optim_wrapper(cfg: Config, model: nn.Module, foreach: bool) -> OptimWrapper:
    """The optimizer of the config in a plain wrapper: other wrappers need GPUs, or a sharded model."""
    wrapper = deepcopy(cfg.optim_wrapper)
    kept = ('optimizer', 'paramwise_cfg', 'constructor', 'clip_grad')
    wrapper = {key: wrapper[key] for key in kept if wrapper.get(key) is not None}
    optimizer_class = OPTIMIZERS.get(wrapper['optimizer']['type'])
    takes = inspect.signature(optimizer_class).parameters if optimizer_class is not None else {}
    if foreach and 'foreach' in takes and not wrapper['optimizer'].get('fused'):
        wrapper['optimizer'].setdefault('foreach', True)
    return build_optim_wrapper(model, dict(wrapper, type='OptimWrapper'))


def low_precision(cfg: Config) -> torch.dtype | None:
    """The precision of computation, from the optimizer wrapper of a config; None is that of the weights."""
    if not str(cfg.optim_wrapper.get('type')).endswith('AmpOptimWrapper'):
        return None
    # Torch's default on a GPU is float16.
    return parse_dtype(cfg.optim_wrapper.get('dtype') or 'float16')


@dataclass
class Unit:
    """What FSDP2 gathers together.

    Args:
        name (str): Of the module.
        gathered (int): Bytes of the parameters, in the precision in which they are gathered.
        trained (int): Number of parameters that train.
        trained_bytes (int): Bytes of these, gathered.
    """

    name: str
    gathered: int = 0
    trained: int = 0
    trained_bytes: int = 0


def planned_units(model: nn.Module, low: torch.dtype | None) -> list[Unit]:
    """Divide a model into units as `FSDP2Strategy` does by default: the root, and the units from the inside out.

    Args:
        model (nn.Module): A model whose parameters have their own dtypes.
        low (torch.dtype, optional): The precision of computation; None is that of the weights.
    """
    names = [name for name, module in model.named_modules() if name and wrap_decoder_layers(module, False, 0)]
    seen = set(exact_parameters(model))
    units = []
    for name in [*reversed(names), '']:
        module, unit = model.get_submodule(name), Unit(name)
        dtype = None if isinstance(module, EncoderBranch) else low
        for parameter in dict.fromkeys(module.parameters()):
            if parameter not in seen:
                size = parameter.numel() * (parameter.element_size() if dtype is None else dtype.itemsize)
                unit.gathered += size
                unit.trained += parameter.requires_grad * parameter.numel()
                unit.trained_bytes += parameter.requires_grad * size
        seen |= set(module.parameters())
        units.append(unit)
    return [units.pop(), *units]


def _largest(sizes: Iterable[int], number: int = GATHERED) -> int:
    """The sum of the largest sizes: of units that are gathered at a time."""
    return sum(sorted(sizes, reverse=True)[:number])
