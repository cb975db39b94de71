"""MixupClassifier on two gloo processes, shared by all scenarios: DDP, FSDP units, and what is refused."""

import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmpretrain.structures import DataSample
from two_ranks import WORLD, results_of, shard

pytestmark = pytest.mark.slow

VIT = dict(
    type='VisionTransformer',
    arch=dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32),
    img_size=32,
    patch_size=8,
    drop_path_rate=0.2,
)


def build_model():
    from mmpretrain.registry import MODELS

    import mergemix_mm  # noqa: F401

    torch.manual_seed(0)
    augments = [dict(type='MergeMix'), dict(type='Mixup', alpha=1.0)]
    return MODELS.build(
        dict(
            type='MixupClassifier',
            backbone=deepcopy(VIT),
            head=dict(type='VisionTransformerClsHead', num_classes=5, in_channels=16),
            # Ranks draw different augments: gathering must not depend on the draw.
            train_cfg=dict(augments=augments, probs=[0.4, 0.4]),
        )
    )


def half_batch(rank):
    images = torch.randn(WORLD * 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return images[rank * 4 : rank * 4 + 4], [DataSample().set_gt_label(i + rank) for i in range(4)]


def seeded_loss(model, rank, step):
    torch.manual_seed(100 * step + rank)
    np.random.seed(100 * step + rank)
    model.train()
    return model(*half_batch(rank), mode='loss')['loss']


def ddp(rank, step):
    model = build_model()
    wrapped = in_ddp(model)  # Without a name it would be gone before the backward pass.
    seeded_loss(wrapped, rank, step).backward()
    return gradients(model)


def sharded_unit(rank, step):
    model = build_model()
    shard(model.backbone, model)
    seeded_loss(model, rank, step).backward()
    return gradients(model)


def sharded_root(rank, step):
    model = build_model()
    shard(model)
    seeded_loss(model, rank, step).backward()
    return gradients(model)


def sharded_layers(rank, step):
    model = build_model()
    shard(*model.backbone.layers, model)
    try:
        seeded_loss(model, rank, step)
    except RuntimeError as error:
        return str(error)


def frozen_encoder(rank, step):
    """A sharded backbone is fine where MergeMix scores with an encoder of its own, which FSDP never sees."""
    model = build_model()
    for augment in model.augments.augments[:1]:
        augment.__init__(encoder=deepcopy(VIT))
    shard(*model.backbone.layers, model)
    loss = seeded_loss(model, rank, step)
    loss.backward()
    return float(loss)


def wrapped_unit(rank, step):
    """The wrapper that MMEngine's FSDPStrategy uses."""
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    model = build_model()
    cpu = torch.device('cpu')
    model.backbone = FSDP(model.backbone, device_id=cpu, use_orig_params=True)
    return wrapped_gradients(FSDP(model, device_id=cpu, use_orig_params=True), rank, step)


def wrapped_root(rank, step):
    """One unit for the whole model, as in the FSDP config of this repository."""
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    return wrapped_gradients(FSDP(build_model(), device_id=torch.device('cpu'), use_orig_params=True), rank, step)


def wrapped_gradients(model, rank, step):
    from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

    seeded_loss(model, rank, step).backward()
    with FSDP.summon_full_params(model, with_grads=True):
        return {name.replace('_fsdp_wrapped_module.', ''): p.grad.clone() for name, p in model.named_parameters()}


# Steps that differ in their passes: clean and mixed ones, one more that scores, gradients. Half of them stay unmixed.
OBJECTIVES = {
    'paper': dict(backbone=dict(VIT, type='ToMeVisionTransformer', num_merge=4), clean_weight=1.0, augment='MergeMix'),
    'read pass': dict(augment='SMMix'),
    'gradients': dict(augment=dict(type='GuidedMix', source='gradient')),
}


def build_objective(augment, **kwargs):
    from mmpretrain.registry import MODELS

    import mergemix_mm  # noqa: F401

    augment = dict(type=augment) if isinstance(augment, str) else augment
    head = dict(type='VisionTransformerClsHead', num_classes=5, in_channels=16)
    cfg = dict(type='MixupClassifier', backbone=VIT, head=head, train_cfg=dict(augments=[augment], probs=[0.5]))
    model = MODELS.build(deepcopy(cfg | kwargs))
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.train()


def objective_loss(model, head_of, rank, step, drawn_by):
    torch.manual_seed(100 * step + rank)
    np.random.seed(100 * step + drawn_by)  # It draws nothing but whether the batch is mixed.
    return head_of.parse_losses(model(*half_batch(rank), mode='loss'))[0]


def trained(objective, rank, wrap):
    """The weights after some steps, or the error."""
    model = build_objective(**OBJECTIVES[objective])
    wrapped, optimizer = wrap(model), torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        try:
            objective_loss(wrapped, model, rank, step, rank).backward()
        except RuntimeError as error:
            return str(error)
        optimizer.step()
        optimizer.zero_grad()
    return {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}


def in_ddp(model):
    from mmengine.model import MMDistributedDataParallel

    return MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)


def in_units(model):
    shard(model.backbone, model)
    return model


def in_one_unit(model):
    shard(model)
    return model


WRAPS = [in_ddp, in_units, in_one_unit]


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, 'full_tensor') else tensor.clone()


def gradients(model):
    return {name: whole(parameter.grad) for name, parameter in model.named_parameters()}


SCENARIOS = [ddp, sharded_unit, sharded_root, sharded_layers, frozen_encoder, wrapped_unit, wrapped_root]
STEPS = 4


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD)
    results = {scenario.__name__: [scenario(rank, step) for step in range(STEPS)] for scenario in SCENARIOS}
    for wrap in WRAPS:
        results |= {f'{wrap.__name__} {name}': trained(name, rank, wrap) for name in OBJECTIVES}
    torch.save(results, f'{folder}/rank{rank}.pth')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    return results_of(__file__, tmp_path_factory.mktemp('distributed'))


@pytest.fixture(scope='module')
def expected():
    """One process, the same two half-batches with the same seeds: the mean of their gradients, step by step."""
    steps, mixed = [], set()
    for step in range(STEPS):
        halves = []
        for rank in range(WORLD):
            model = build_model()
            seeded_loss(model, rank, step).backward()
            halves.append(gradients(model))
            result = model.mix_result
            mixed.add('none' if result is None else 'mixup' if result.mask is None else 'mergemix')
        steps.append({name: (grad + halves[1][name]) / 2 for name, grad in halves[0].items()})
    assert mixed == {'none', 'mixup', 'mergemix'}
    return steps


@pytest.mark.parametrize('scenario', ['ddp', 'sharded_unit', 'sharded_root', 'wrapped_unit', 'wrapped_root'])
def test_two_processes_have_the_gradients_of_one(scenario, results, expected):
    for rank in range(WORLD):
        for got, want in zip(results[rank][scenario], expected, strict=True):
            assert got.keys() == want.keys()
            for name, grad in want.items():
                torch.testing.assert_close(got[name], grad, atol=1e-6, rtol=1e-5)


def weights_of_one_process(objective, alike):
    """The same steps with the mean of both losses; `alike`: both halves are mixed as the first one draws."""
    model, mixed = build_objective(**OBJECTIVES[objective]), set()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(STEPS):
        drawn = []
        for rank in range(WORLD):
            (objective_loss(model, model, rank, step, 0 if alike else rank) / WORLD).backward()
            drawn.append(model.mix_result is not None)
        mixed.add(tuple(drawn))
        optimizer.step()
        optimizer.zero_grad()
    assert mixed >= {(True, True), (False, False)} and alike != ((False, True) in mixed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize('objective', OBJECTIVES)
@pytest.mark.parametrize('wrap', WRAPS, ids=lambda wrap: wrap.__name__)
def test_two_processes_train_as_one_whatever_passes_their_mixes_take(wrap, objective, results):
    first, second = (rank[f'{wrap.__name__} {objective}'] for rank in results)
    if (wrap, objective) == (in_units, 'gradients'):
        assert 'shard the classifier as one unit' in first
        return
    # Each pass of a sharded backbone is a collective, so that the ranks have to draw alike.
    for name, want in weights_of_one_process(objective, alike=wrap is in_units).items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], want, atol=1e-5, rtol=1e-4)


def test_layers_that_fsdp_shards_one_by_one_are_refused_with_the_ways_out(results):
    for message in results[0]['sharded_layers']:
        assert 'FSDP shards 3 modules inside the scoring encoder' in message
        assert "'layers.0'" in message
        assert 'wrap policy' in message
        assert 'ignored_modules' in message


def test_an_encoder_of_its_own_scores_for_a_backbone_sharded_layer_by_layer(results):
    assert all(np.isfinite(loss) for rank in results for loss in rank['frozen_encoder'])


if __name__ == '__main__':
    worker(int(sys.argv[1]), sys.argv[2])
