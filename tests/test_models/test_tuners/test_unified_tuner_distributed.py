"""UnifiedTuner with AIA on two gloo processes that alternate tasks, DDP and FSDP2, against one process on both halves.

Ranks hold different numbers of labelled tokens and of prompts that are kept. A rank seeds its own draws; the one
process drops the prompts that each half had dropped. All scenarios share one pair of processes.
"""

import gc
import sys
from unittest import mock

import pytest
import tiny_vlms
import torch
import torch.distributed as dist
from mmengine.registry import MODELS, OPTIM_WRAPPERS
from two_ranks import WORLD, results_of, sharded, whole

from mergemix_mm.datasets import EncodeConversation, EncodeGeneration, ModalitySampler, UnifiedCollate, UnifiedDataset
from mergemix_mm.engine.hooks import AIAHook
from mergemix_mm.engine.hooks.step_seed_hook import seed_generators
from mergemix_mm.toy import ShapesConversationDataset, ShapesGenerationDataset

pytestmark = pytest.mark.slow

BATCH, STEPS = 3, 4
STAGES = [dict(depth=(0.0, 1.0), target=0.5, delta=0.1)]


def build_model(**options):
    torch.manual_seed(0)
    vlm = dict(type='JanusModel', config=tiny_vlms.tiny_config('janus'), **options)
    return MODELS.build(dict(type='UnifiedTuner', vlm=vlm, drop_prompt=0.5))


def build_data():
    processor, drawn = tiny_vlms.tiny_processor('janus'), dict(length=12, image_size=24)
    encode = EncodeGeneration(processor, image_size=8)
    return UnifiedDataset(
        ShapesGenerationDataset(pipeline=[encode], **drawn),
        ShapesConversationDataset(pipeline=[EncodeConversation(processor)], **drawn),
    )


def steps_of(data, rank):
    """The indices of a rank's first steps."""
    with mock.patch('mergemix_mm.datasets.mixtures.samplers.get_dist_info', lambda: (rank, WORLD)):
        found = list(ModalitySampler(data, BATCH, seed=1))
    return [found[step * BATCH : (step + 1) * BATCH] for step in range(STEPS)]


SGD = dict(type='SGD', lr=0.05)


def plain_wrapper(model):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=SGD['lr'])
    return OPTIM_WRAPPERS.build(dict(type='OptimWrapper', optimizer=optimizer))


def train(model, wrapper, batches, before_step):
    """Some steps of SGD with the hook, on a wrapped or bare model; the losses, and what the hook has shown."""
    weight = dict(gen=20.0, und=dict(type='ratio', ntp_over_aia=20))
    hook = AIAHook(dict(gen=STAGES, und=STAGES), weight=weight, interval=STEPS)
    runner = mock.Mock(model=model, max_iters=STEPS)
    hook.before_train(runner)
    losses = []
    for step, batch in enumerate(batches):
        runner.iter = step
        hook.before_train_iter(runner, step)
        before_step(step)
        with wrapper.optim_context(model):
            found = model(batch, mode='loss')
        wrapper.update_params(sum(value for name, value in found.items() if 'loss' in name))
        losses.append({name: value.detach() for name, value in found.items() if 'loss' in name})
        hook.after_train_iter(runner, step)
    hook.after_train(runner)
    shown = [call.args[0] for call in runner.visualizer.add_scalars.call_args_list]
    return losses, shown


def train_rank(rank, model, wrapper):
    data = build_data()
    batches = [UnifiedCollate()([data[index] for index in step])['inputs'] for step in steps_of(data, rank)]
    return train(model, wrapper, batches, lambda step: seed_generators(0, rank, step))


def trained(model):
    return {name: whole(p) for name, p in model.named_parameters() if p.requires_grad}


def ddp(rank, folder):
    from mmengine.model import MMDistributedDataParallel

    model = build_model()
    # As tools/train.py wraps a model without a GPU, with the `find_unused_parameters` of the configs.
    wrapped = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False, find_unused_parameters=True)
    return *train_rank(rank, wrapped, plain_wrapper(model)), trained(model)


def fsdp(rank, folder, **options):
    """Sharded by the strategy of the config."""
    model, wrapper = sharded(build_model(gradient_checkpointing=True, **options), folder, dict(optimizer=SGD))
    return *train_rank(rank, model, wrapper), trained(model)


def fsdp_packed(rank, folder):
    return fsdp(rank, folder, packed=True)


SCENARIOS = [ddp, fsdp, fsdp_packed]


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD)
    results = {scenario.__name__: scenario(rank, folder) for scenario in SCENARIOS}
    torch.save(results, f'{folder}/rank{rank}.pth')
    gc.collect()  # Wrapped models refer to the process group.
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    return results_of(__file__, tmp_path_factory.mktemp('distributed'))


@pytest.fixture(scope='module')
def expected():
    """One process: losses, what the hook has shown, weights, and how many prompts each half kept."""
    data, model = build_data(), build_model()
    halves = [steps_of(data, rank) for rank in range(WORLD)]
    joined = [first + second for first, second in zip(*halves, strict=True)]
    batches = [UnifiedCollate()([data[index] for index in step])['inputs'] for step in joined]
    rand, kept = torch.rand, []
    with mock.patch.object(torch, 'rand') as drawn:

        def draw(step):
            """Let the tuner draw what the ranks draw in this step."""
            draws = []
            for rank in range(WORLD):
                seed_generators(0, rank, step)
                draws.append(rand(BATCH))
            kept.append([int((values >= 0.5).sum()) for values in draws])
            drawn.return_value = torch.cat(draws)

        losses, shown = train(model, plain_wrapper(model), batches, draw)
    tasks = [batch['task'] for batch in batches]
    return losses, shown, trained(model), [kept[i] for i, task in enumerate(tasks) if task == 'gen'], tasks


def test_the_steps_are_what_they_should_be(expected):
    _, _, _, kept, tasks = expected
    assert set(tasks) == {'gen', 'und'} and tasks[0] != tasks[-1]
    assert any(first != second for first, second in kept)


@pytest.mark.parametrize('scenario', [scenario.__name__ for scenario in SCENARIOS])
def test_two_processes_stay_in_step_and_equal_one(scenario, results, expected):
    losses, _, weights, _, tasks = expected
    ranks = [result[scenario] for result in results]
    for step, task in enumerate(tasks):
        for found, _, _ in ranks:
            assert found[step].keys() == losses[step].keys() == {f'loss_ntp_{task}', f'loss_aia_{task}'}
        for name, loss in losses[step].items():
            mean = sum(found[step][name] for found, _, _ in ranks).item() / WORLD
            assert mean == pytest.approx(loss.item(), rel=1e-4), (step, name)
    start = trained(build_model())
    assert all((weights[name] != start[name]).any() for name in weights if 'layers' in name and 'weight' in name)
    for _, _, found in ranks:
        assert found.keys() == weights.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(
                found[name], weight, atol=2e-6, rtol=1e-4, msg=lambda text, name=name: name + text
            )


@pytest.mark.parametrize('scenario', [scenario.__name__ for scenario in SCENARIOS])
def test_the_main_process_shows_the_curves_of_all_samples(scenario, results, expected):
    (one,) = expected[1]
    (shown,) = results[0][scenario][1]
    assert shown.keys() == one.keys() and len(one) == 4
    for name, value in one.items():
        assert shown[name] == pytest.approx(value, rel=1e-4)
    assert results[1][scenario][1] == []


if __name__ == '__main__':
    worker(int(sys.argv[1]), sys.argv[2])
