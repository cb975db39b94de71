"""MixupClassifier on two gloo processes, shared by all scenarios: DDP, FSDP units, and what is refused."""

import gc
import sys
from copy import deepcopy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmpretrain.structures import DataSample
from two_ranks import WORLD, results_of, sharded, whole

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
    model = MODELS.build(
        dict(
            type='MixupClassifier',
            backbone=deepcopy(VIT),
            head=dict(type='VisionTransformerClsHead', num_classes=5, in_channels=16),
            # Ranks draw different augments: gathering must not depend on the draw.
            train_cfg=dict(augments=augments, probs=[0.4, 0.4]),
        )
    )
    model._is_init = True  # A strategy would initialise the weights again, the head with zeros.
    return model


def half_batch(rank):
    images = torch.randn(WORLD * 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return images[rank * 4 : rank * 4 + 4], [DataSample().set_gt_label(i + rank) for i in range(4)]


def seeded_loss(model, rank, step):
    torch.manual_seed(100 * step + rank)
    np.random.seed(100 * step + rank)
    model.train()
    return model(*half_batch(rank), mode='loss')['loss']


def ddp(rank, step, folder):
    model = build_model()
    wrapped, _ = in_ddp(model, folder)
    seeded_loss(wrapped, rank, step).backward()
    return gradients(model)


def is_backbone(module, *_):
    return type(module).__name__.endswith('VisionTransformer')


def is_layer(module, *_):
    return type(module).__name__ == 'TransformerEncoderLayer'


def sharded_unit(rank, step, folder):
    return sharded_gradients(sharded(build_model(), folder, units=is_backbone), rank, step)


def sharded_root(rank, step, folder):
    """One unit for the whole model, as in the FSDP config of this repository."""
    return sharded_gradients(sharded(build_model(), folder), rank, step)


def replicated_root(rank, step, folder):
    """Copied to both processes, and sharded over one: a mesh of two dimensions."""
    mesh = dict(mesh_shape=(WORLD, 1), mesh_dim_names=('replicate', 'shard'))
    return sharded_gradients(sharded(build_model(), folder, mesh=mesh), rank, step)


def sharded_gradients(prepared, rank, step):
    model, wrapper = prepared
    with wrapper.optim_context(model):
        loss = seeded_loss(model, rank, step)
    wrapper.backward(loss)
    return gradients(model)


def sharded_layers(rank, step, folder):
    model, _ = sharded(build_model(), folder, units=is_layer)
    try:
        seeded_loss(model, rank, step)
    except RuntimeError as error:
        return str(error)


def frozen_encoder(rank, step, folder):
    """A sharded backbone is fine where MergeMix scores with an encoder of its own, which FSDP never sees."""
    model = build_model()
    for augment in model.augments.augments[:1]:
        augment.__init__(encoder=deepcopy(VIT))
    model, wrapper = sharded(model, folder, units=is_layer)
    with wrapper.optim_context(model):
        loss = seeded_loss(model, rank, step)
    wrapper.backward(loss)
    return float(loss)


# Steps that differ in their passes: clean and mixed ones, one more that scores, gradients. Half of them stay unmixed.
OBJECTIVES = {
    'paper': dict(backbone=dict(VIT, type='ToMeVisionTransformer', num_merge=4), clean_weight=1.0, augment='MergeMix'),
    'read pass': dict(augment='SMMix'),
    'gradients': dict(augment=dict(type='GuidedMix', source='gradient')),
}
SGD = dict(optimizer=dict(type='SGD', lr=0.1))


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
    model._is_init = True
    return model.train()


def objective_loss(model, head_of, rank, step, drawn_by):
    torch.manual_seed(100 * step + rank)
    np.random.seed(100 * step + drawn_by)  # It draws nothing but whether the batch is mixed.
    return head_of.parse_losses(model(*half_batch(rank), mode='loss'))[0]


def in_ddp(model, folder):
    from mmengine.model import MMDistributedDataParallel
    from mmengine.optim import OptimWrapper

    wrapped = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False)
    return wrapped, OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))


def in_units(model, folder):
    return sharded(model, folder, optim=SGD, units=is_backbone)


def in_one_unit(model, folder):
    return sharded(model, folder, optim=SGD)


WRAPS = [in_ddp, in_units, in_one_unit]


def trained(objective, rank, wrap, folder):
    """The weights after some steps, or the error."""
    model = build_objective(**OBJECTIVES[objective])
    wrapped, wrapper = wrap(model, folder)
    model.train()
    for step in range(STEPS):
        try:
            with wrapper.optim_context(wrapped):
                loss = objective_loss(wrapped, model, rank, step, rank)
        except RuntimeError as error:
            return str(error)
        wrapper.update_params(loss)
    return {name: whole(parameter) for name, parameter in model.named_parameters()}


def gradients(model):
    return {name: whole(parameter.grad) for name, parameter in model.named_parameters()}


SCENARIOS = [ddp, sharded_unit, sharded_root, replicated_root, sharded_layers, frozen_encoder]
STEPS = 4


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD)
    results = {scenario.__name__: [scenario(rank, step, folder) for step in range(STEPS)] for scenario in SCENARIOS}
    for wrap in WRAPS:
        results |= {f'{wrap.__name__} {name}': trained(name, rank, wrap, folder) for name in OBJECTIVES}
    gc.collect()  # Sharded models refer to the process group.
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


@pytest.mark.parametrize('scenario', ['ddp', 'sharded_unit', 'sharded_root', 'replicated_root'])
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
        assert 'strategy.units' in message


def test_an_encoder_of_its_own_scores_for_a_backbone_sharded_layer_by_layer(results):
    assert all(np.isfinite(loss) for rank in results for loss in rank['frozen_encoder'])


if __name__ == '__main__':
    worker(int(sys.argv[1]), sys.argv[2])
