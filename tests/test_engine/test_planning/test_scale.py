"""Plans for many GPUs: batches, what a step computes and sends, and what assumptions make of it."""

from functools import cache

import mmpretrain.models  # noqa: F401
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from repository_configs import CONFIGS, frozen_encoders, load
from torch.utils.flop_counter import FlopCounterMode

from mergemix_mm.engine.planning import (
    GIB,
    Cluster,
    PlanError,
    build_weightless,
    plan_scale,
    scale,
    step_work,
    training_batches,
)
from mergemix_mm.engine.planning.plan import Simulation, planned_units
from mergemix_mm.engine.planning.scale import micro_batches

SIMPO = CONFIGS / 'simpo/tiny-llava_1xb64-simpo-mergemix-coslr-300i_shapes.py'
SFT = CONFIGS / 'simpo/tiny-llava_1xb64-sft-coslr-300i_shapes.py'
DIGITS = CONFIGS / 'mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py'


@pytest.fixture(scope='module', autouse=True)
def scope():
    init_default_scope('mmpretrain')


class RealTensors:
    """Makes what `StepMemory.empty` makes, with content."""

    def empty(self, *shape, dtype=torch.float32):
        return torch.rand(shape)


def llava(path=SFT, checkpointing=False, **vlm):
    cfg = load(path)
    cfg.train_dataloader.batch_size = 4
    cfg.auto_scale_lr = dict(base_batch_size=64)
    cfg.model.vlm.update(gradient_checkpointing=checkpointing, **vlm)
    return cfg


@pytest.mark.parametrize(
    ('base', 'batch_size', 'gpus', 'least', 'expected'),
    [
        (128, 16, 8, 1, (16, 1)),
        (128, 4, 8, 1, (4, 4)),
        (128, 16, 64, 2, (2, 1)),
        (128, 16, 512, 1, (1, 1)),  # A step of 512.
        (128, 16, 512, 2, (2, 1)),  # A step of 1,024: two images are mixed with each other.
        (128, 16, 6, 1, (16, 2)),  # 192, the next larger step.
    ],
)
def test_a_step_is_divided_among_the_gpus_and_grows_where_it_cannot_be(base, batch_size, gpus, least, expected):
    assert micro_batches(base, batch_size, gpus, least) == expected


def test_operations_are_those_that_torch_counts_in_a_real_step():
    cfg = llava(attn_implementation='eager')  # Torch's counter does not know the attention kernels of a CPU.
    planned = step_work(cfg, text_tokens=20).flops
    cfg.train_dataloader.batch_size = 2
    model = MODELS.build({key: value for key, value in cfg.model.items() if key != 'processor'}).train()
    (make,) = training_batches(cfg, model, RealTensors(), 20).values()
    with FlopCounterMode(display=False) as counter:
        model.parse_losses(model(**make()))[0].backward()
    assert planned == counter.get_total_flops() / 2 > 0


@cache
def work_of(path, checkpointing=False):
    return step_work(llava(path, checkpointing), text_tokens=20)


@pytest.mark.parametrize(('path', 'checkpointing', 'passes'), [(SFT, True, 1), (SFT, False, 1), (SIMPO, False, 2)])
def test_units_are_gathered_in_each_pass_forward_and_backward_and_the_root_once(path, checkpointing, passes):
    root, *units = planned_units(build_weightless(llava(path).model), None)
    inside = sum(unit.trained for unit in units)
    work = work_of(path, checkpointing)
    assert work.gathered == root.gathered + 2 * passes * 4 * inside
    assert work.reduced == root.trained + passes * inside
    assert (work.gathers, work.reductions) == (1 + 2 * passes * len(units), 1 + passes * len(units))
    assert work.trained == root.trained + inside


def test_what_is_frozen_is_gathered_for_the_forward_only():
    cfg = frozen_encoders()
    root, *units = planned_units(build_weightless(cfg.model), None)
    work = step_work(cfg, text_tokens=8)
    assert {bool(unit.trained) for unit in units} == {True, False}
    assert work.gathered == root.gathered + sum((2 if unit.trained else 1) * unit.gathered for unit in units)


def test_a_ring_takes_a_step_from_each_gpu_to_the_next_and_a_tree_two_for_each_doubling_of_machines():
    cluster = Cluster(latency=1, network_latency=10)
    assert [cluster.ring(gpus) for gpus in (8, 16, 512)] == [7, 14 + 10, 448 + 630]
    assert [cluster.tree(gpus) for gpus in (2, 8, 16, 512)] == [2, 14, 14 + 20, 14 + 120]


def test_mixed_simpo_computes_two_steps_of_sft_and_the_scoring():
    assert 2 < work_of(SIMPO).flops / work_of(SFT).flops < 2.25


def test_ddp_is_taken_where_it_fits_and_fsdp_elsewhere_and_time_follows_from_what_is_computed_and_sent(monkeypatch):
    cfg, cluster = llava(), Cluster(peak=1e9, utilisation=0.5, link=1e6, network=5e5, latency=2e-3)
    work, simulated = work_of(SFT), Simulation(cfg)
    monkeypatch.setattr(scale, 'step_work', lambda *_: work)
    monkeypatch.setattr(scale, 'Simulation', lambda *_: simulated)
    (eight, many) = plan_scale(cfg, [8, 16], cluster, text_tokens=20)
    samples = cfg.train_cfg.max_iters * 64
    for plan, size, accumulation, rate in ((eight, 4, 2, 1e6), (many, 4, 1, 5e5)):
        assert (plan.batch_size, plan.accumulation, plan.global_batch) == (size, accumulation, 64)
        assert plan.memory.name == 'DDP' and plan.fits and plan.collectives == 1  # One bucket.
        assert plan.steps == samples / 64
        assert plan.sent == round(8 * work.trained * (plan.gpus - 1) / plan.gpus)
        assert plan.compute == pytest.approx(work.flops * size * accumulation / 5e8)
        assert plan.communication == pytest.approx(plan.sent / rate + cluster.tree(plan.gpus), rel=1e-6)
        low, high = (hours * 3600 / plan.steps for hours in plan.hours)
        assert low == pytest.approx(max(plan.compute, plan.communication))
        assert high == pytest.approx(plan.compute + plan.communication)
    small = Cluster(gpu_memory=eight.memory.total - 1)
    (sharded,) = plan_scale(cfg, [8], small, text_tokens=20)
    assert sharded.memory.name == 'FSDP2' and sharded.memory.total < eight.memory.total
    # Two micro-batches gather, and one reduces.
    assert sharded.sent == round((2 * work.gathered + 4 * work.reduced) * 7 / 8)
    assert sharded.collectives == 2 * work.gathers + work.reductions
    waits = sharded.collectives * Cluster().ring(8)
    assert sharded.communication == pytest.approx(sharded.sent / Cluster().link + waits)
    (none,) = plan_scale(cfg, [8], Cluster(gpu_memory=GIB), text_tokens=20)
    assert not none.fits and none.memory.name == 'FSDP2, CPU offload'


def test_epochs_need_the_number_of_records_and_mixing_takes_two_images():
    cfg = load(DIGITS)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16')  # Images are float32, sharded weights are not.
    cfg.auto_scale_lr = dict(base_batch_size=32)
    with pytest.raises(PlanError, match='trains in epochs: say the samples of an epoch with --records'):
        plan_scale(cfg, [8])
    (plan,) = plan_scale(cfg, [32], records=100)
    assert (plan.batch_size, plan.global_batch) == (2, 64)
    assert plan.steps == -(-cfg.train_cfg.max_epochs * 100 // 64)
    cfg.auto_scale_lr = None
    with pytest.raises(PlanError, match='no auto_scale_lr.base_batch_size'):
        plan_scale(cfg, [8], records=100)
