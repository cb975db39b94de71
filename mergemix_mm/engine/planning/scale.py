"""A training on many GPUs: batches, steps, memory, bytes that a step sends, and hours under stated assumptions."""

import math
from copy import deepcopy
from dataclasses import dataclass

from mmengine.config import Config
from torch import Tensor
from torch.utils._pytree import tree_iter

from .plan import (
    SUMMED,
    MemoryPlan,
    PlanError,
    Simulation,
    Unit,
    autocast_of,
    low_precision,
    planned_units,
    simulated_model,
)
from .weightless import HubConfigs, build_weightless

GIGA, TERA, MICRO = 10**9, 10**12, 1e-6
BUCKET = 25 * 2**20  # Bytes of gradients that DDP sums with one call.


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the GPUs and of the network. The defaults are those of machines with eight H100 or H200.

    Args:
        peak (float): Operations per second of a GPU in the precision of computation, a multiply-add counted twice.
            Defaults to 989e12, the data sheet's number for dense matrices in bfloat16.
        utilisation (float): The share of it that a step reaches, in (0, 1]. Defaults to 0.3 (docs/scale.md).
        link (float): Bytes per second that a GPU sends to others in its machine. Defaults to 360e9, 80% of NVLink's
            450e9.
        network (float): Bytes per second that a machine sends to others. Defaults to 320e9, 80% of eight adapters of
            400 Gbit/s, all of which rings use.
        latency (float): Seconds of a step of a ring or tree within a machine. Defaults to 3.4e-6, as NCCL assumes of
            NVLink (ring, protocol Simple, in its src/graph/tuning.cc).
        network_latency (float): Seconds of such a step between machines. Defaults to 14e-6, as NCCL assumes there.
        node (int): GPUs of a machine. Defaults to 8.
        gpu_memory (int): Bytes of a GPU. Defaults to 80 GiB.
    """

    peak: float = 989 * TERA
    utilisation: float = 0.3
    link: float = 360 * GIGA
    network: float = 320 * GIGA
    latency: float = 3.4e-6
    network_latency: float = 14e-6
    node: int = 8
    gpu_memory: int = 80 * 2**30

    def rate(self, gpus: int) -> float:
        """Bytes per second that a ring of all GPUs moves."""
        return self.link if gpus <= self.node else min(self.link, self.network)

    def ring(self, gpus: int) -> float:
        """Seconds until the first byte has gone around a ring: from each GPU to the next one."""
        between = math.ceil(gpus / self.node) - 1
        return (gpus - 1 - between) * self.latency + between * self.network_latency

    def tree(self, gpus: int) -> float:
        """Seconds until the first byte has gone up and down a tree of machines, within which GPUs are a chain."""
        machines = math.ceil(gpus / self.node)
        return 2 * ((min(gpus, self.node) - 1) * self.latency + math.ceil(math.log2(machines)) * self.network_latency)


@dataclass
class StepWork:
    """What one step of a process computes and what it exchanges, before its numbers of samples and GPUs are known.

    Args:
        flops (float): Operations for each sample, mean over the tasks; what is computed again in the backward counts.
        gathered (int): Bytes of the parameters that FSDP2 gathers, each time that a unit runs or is run backward.
        gathers (int): Calls of the network for that.
        reduced (int): Gradients that FSDP2 sums over the GPUs.
        reductions (int): Calls of the network for that.
        trained (int): Parameters that train: DDP sums a gradient of each.
    """

    flops: float
    gathered: int
    gathers: int
    reduced: int
    reductions: int
    trained: int


@dataclass
class ScalePlan:
    """A training on some GPUs.

    Args:
        gpus (int): Their number.
        batch_size (int): Samples of a GPU at a time.
        accumulation (int): How many times a GPU takes so many samples in a step.
        steps (int): Updates until the recipe has seen its samples.
        memory (MemoryPlan): The way to train that is taken: DDP if it fits, or FSDP2, or FSDP2 with states on the CPU.
        fits (bool): Whether that fits.
        sent (int): Bytes that a GPU sends in a step.
        collectives (int): Calls of the network in a step.
        flops (float): Operations for each sample.
        compute (float): Seconds of a step.
        communication (float): Seconds of a step, if nothing is computed meanwhile.
    """

    gpus: int
    batch_size: int
    accumulation: int
    steps: int
    memory: MemoryPlan
    fits: bool
    sent: int
    collectives: int
    flops: float
    compute: float
    communication: float

    @property
    def global_batch(self) -> int:
        """Samples of a step."""
        return self.gpus * self.batch_size * self.accumulation

    @property
    def hours(self) -> tuple[float, float]:
        """Of the whole training: if communication takes place during computation, and if they take turns."""
        seconds = max(self.compute, self.communication), self.compute + self.communication
        return seconds[0] * self.steps / 3600, seconds[1] * self.steps / 3600


def plan_scale(
    cfg: Config,
    gpus: list[int],
    cluster: Cluster | None = None,
    hub_configs: HubConfigs | None = None,
    text_tokens: int | None = None,
    records: int | None = None,
) -> list[ScalePlan]:
    """Plan the training of a config on several numbers of GPUs.

    The batch of a step is ``auto_scale_lr.base_batch_size``, divided among the GPUs. A process takes
    ``train_dataloader.batch_size`` samples at a time at most, and accumulates the rest; at least one, or two if images
    are mixed with one another: with too many GPUs, the batch of a step grows and the steps become fewer.

    Memory is planned for the longest texts, as `plan_memory` does. Operations are those of texts of `text_tokens`.
    FSDP2 gathers in each micro-batch. Gradients are summed once in a step, in float32. Collectives are rings, in which
    a GPU sends (N - 1) / N of what is gathered or reduced; the sums of DDP start like trees.

    Args:
        cfg (Config): A config that trains.
        gpus (list[int]): Numbers of GPUs, each >= 2.
        cluster (Cluster, optional): Assumptions. Defaults to None: those of :class:`Cluster`.
        hub_configs (Mapping, optional): As `build_weightless` takes it.
        text_tokens (int, optional): As `training_batches` takes it, for the operations.
        records (int, optional): Samples of an epoch, for a training in epochs.

    Raises:
        PlanError: If the config does not train, or does not say how many samples it sees.
        UnknownBatchError: If no batch can be made up.
        HubConfigError: If the config of a hub model is missing.
    """
    cluster = cluster or Cluster()
    base = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if not base:
        raise PlanError('CONFIG has no auto_scale_lr.base_batch_size, the batch of a step that its rate is meant for')
    samples = _samples(cfg, base, records)
    work = step_work(cfg, hub_configs, text_tokens)
    simulations: dict[tuple[int, bool], Simulation] = {}
    plans = []
    for number in gpus:
        size, accumulation = micro_batches(base, cfg.train_dataloader.batch_size, number, 2 if _mixes(cfg) else 1)
        key = size, accumulation > 1
        if key not in simulations:
            own = deepcopy(cfg)
            own.train_dataloader.batch_size = size
            own.optim_wrapper.accumulative_counts = accumulation
            simulations[key] = Simulation(own, hub_configs)
        ways = simulations[key].plan(number).ways
        way = next((way for way in ways if way.fits(cluster.gpu_memory)), ways[-1])
        sent, collectives, latency = _exchange(work, way.name == 'DDP', accumulation, number, cluster)
        plans.append(
            ScalePlan(
                number,
                size,
                accumulation,
                steps=-(-samples // (number * size * accumulation)),
                memory=way,
                fits=way.fits(cluster.gpu_memory),
                sent=sent,
                collectives=collectives,
                flops=work.flops,
                compute=work.flops * size * accumulation / (cluster.peak * cluster.utilisation),
                communication=sent / cluster.rate(number) + latency,
            )
        )
    return plans


def _exchange(work: StepWork, ddp: bool, accumulation: int, gpus: int, cluster: Cluster) -> tuple[int, int, float]:
    """Bytes that a GPU sends in a step, calls of the network, and seconds in which these wait for their first byte."""
    if ddp:
        gradients = SUMMED * work.trained
        sent, calls = 2 * gradients, math.ceil(gradients / BUCKET)
        latency = calls * cluster.tree(gpus)
    else:
        sent = accumulation * work.gathered + SUMMED * work.reduced
        calls = accumulation * work.gathers + work.reductions
        latency = calls * cluster.ring(gpus)
    return round(sent * (gpus - 1) / gpus), calls, latency


def micro_batches(base: int, batch_size: int, gpus: int, least: int) -> tuple[int, int]:
    """Samples of a GPU at a time and how many times in a step, for a step of `base` samples or the next larger one."""
    share = base / gpus
    size = max(least, min(batch_size, math.ceil(share)))
    return size, max(1, math.ceil(share / size))


def step_work(cfg: Config, hub_configs: HubConfigs | None = None, text_tokens: int | None = None) -> StepWork:
    """Run a step of each task on tensors without content, as sharded layers run it, and count.

    Args:
        cfg (Config): A config that trains.
        hub_configs (Mapping, optional): As `build_weightless` takes it.
        text_tokens (int, optional): As `training_batches` takes it.
    """
    low, cfg = low_precision(cfg), deepcopy(cfg)
    cfg.train_dataloader.batch_size = size = 2
    root, *units = planned_units(build_weightless(cfg.model, hub_configs), low)
    model, _, memory, batches = simulated_model(cfg, hub_configs, text_tokens, low)
    gathers: list[int] = []
    reductions: list[int] = []
    forward = True

    def count(unit: Unit, output: object) -> None:
        if not forward:  # A layer that is computed again is whole already.
            return
        gathers.append(unit.gathered)
        if any(isinstance(one, Tensor) and one.requires_grad for one in tree_iter(output)):
            gathers.append(unit.gathered)  # For its backward.
            if unit.trained:
                reductions.append(unit.trained)

    for unit in units:
        model.get_submodule(unit.name).register_forward_hook(lambda _, args, output, unit=unit: count(unit, output))
    for make in batches.values():
        with memory:
            batch = make()
            with autocast_of(batch, None, low):
                losses = model(**batch)
            loss, _ = model.parse_losses(losses)
            forward = False
            loss.backward()
            forward = True
            model.zero_grad()
    tasks = len(batches)
    return StepWork(
        flops=memory.flops / (size * tasks),
        gathered=sum(gathers) // tasks + root.gathered,
        gathers=len(gathers) // tasks + 1,
        reduced=sum(reductions) // tasks + root.trained,
        reductions=len(reductions) // tasks + (root.trained > 0),
        trained=root.trained + sum(unit.trained for unit in units),
    )


def _mixes(cfg: Config) -> bool:
    """Whether images of a batch are mixed with one another, which takes two of them."""
    return bool(cfg.model.get('mixer') or (cfg.model.get('train_cfg') or {}).get('augments'))


def _samples(cfg: Config, base: int, records: int | None) -> int:
    """How many samples the recipe sees."""
    loop = cfg.get('train_cfg') or {}
    if loop.get('max_iters'):
        return loop['max_iters'] * base
    if not loop.get('max_epochs'):
        raise PlanError('CONFIG has neither train_cfg.max_iters nor train_cfg.max_epochs: it does not say how long')
    if records is None:
        raise PlanError('CONFIG trains in epochs: say the samples of an epoch with --records')
    return loop['max_epochs'] * records
