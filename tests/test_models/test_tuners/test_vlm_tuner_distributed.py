"""VLMTuner on two gloo processes, DDP and FSDP, against one process with the whole batch: losses, gradients.

Ranks hold different numbers of answer tokens and of pairs, or no pair, or no image. A rank seeds its own draws; the one
process reads the losers that each half had drawn, all in one batch. All scenarios share one pair of processes.
"""

import gc
import re
import sys
from copy import deepcopy

import pytest
import tiny_sphinx
import tiny_vlms
import torch
import torch.distributed as dist
from mmengine.registry import MODELS
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from two_ranks import WORLD, results_of, sharded, whole

from mergemix_mm.engine.hooks.step_seed_hook import seed_generators
from mergemix_mm.models.tuners.vlm_tuner import Losers

pytestmark = pytest.mark.slow

MAX_NORM = 0.1


def samples(*answers, images=True):
    """One image per answer, if any, all different."""
    return [
        ([tiny_vlms.random_image(28, 28, len(answer))] if images else [], f'what is number {i}?', answer)
        for i, answer in enumerate(answers)
    ]


# The samples of the two ranks.
CASES = {
    'unequal': (samples('a', 'bcd', 'efghij') + samples('text alone', images=False), samples('no', 'yes, it is')),
    'lonely': (samples('a', 'bcd', 'efghij'), samples('no') + samples('some text', images=False)),
    'text': (samples('a', 'bcd', 'efghij'), samples('some text', 'more', images=False)),
    'no_pair': (samples('abc'), samples('some text', images=False)),
}
SIMPO = dict(type='SimPOHead', beta=2.0)
LOSER = dict(type='SimPOHead', beta=2.0, detach_loser=True, sft_weight=0.5, loser_sft_weight=0.5)
TUNERS = {
    'sft': dict(head=dict(type='SFTHead')),
    'mergemix': dict(head=SIMPO, mixer=dict(type='MergeMix')),
    'mixup': dict(head=SIMPO, mixer=dict(type='Mixup', alpha=1.0)),
    'swap': dict(head=LOSER, mixer=dict(type='SwapImages')),
    'sphinx': dict(head=SIMPO, mixer=dict(type='MergeMix')),
    'qwen': dict(head=SIMPO, mixer=dict(type='MergeMix', num_merge=0)),
}
# Its ranks compute packed rows, and the one process padded ones.
TUNERS['packed'] = TUNERS['mergemix']


# SFT of a model whose embeddings are frozen: without an image, no weight before the first layer trains.
PARTS = dict(adapters=dict(lora=dict(r=2)), projector=dict(trainable=['projector']))
# Of tests/tiny_vlms; the others are LLaVA.
FAMILY = dict(qwen='qwen2_5_vl')


def build(tuner, gradient_checkpointing=False):
    torch.manual_seed(0)
    if tuner == 'sphinx':
        vlm = tiny_sphinx.sphinx_config(grid=2)
    else:
        vlm = dict(type='HFVisionLanguageModel', config=tiny_vlms.tiny_config(FAMILY.get(tuner, 'llava')))
    vlm |= dict(PARTS.get(tuner, {}), gradient_checkpointing=gradient_checkpointing, packed=tuner == 'packed')
    return MODELS.build(dict(type='VLMTuner', vlm=vlm, **deepcopy(TUNERS.get(tuner, {}))))


def make_batch(tuner, samples):
    if tuner == 'sphinx':
        return tiny_sphinx.batch(tiny_sphinx.processor(grid=2), samples)['inputs']
    if tuner == 'qwen':  # Images of several sizes: the ranks differ in the number of scoring passes.
        samples = [
            ([image.resize((28 * min(len(answer), 4), 28)) for image in images], question, answer)
            for images, question, answer in samples
        ]
    return tiny_vlms.tiny_batch(FAMILY.get(tuner, 'llava'), samples)


def seeded_losses(model, tuner, case, rank):
    batch = make_batch(tuner, CASES[case][rank])
    seed_generators(0, rank, iteration=0)
    return model(batch, mode='loss')


def backward(losses, run=Tensor.backward):
    """What MMEngine sums up, and each loss for itself."""
    losses = {name: value for name, value in losses.items() if name.startswith('loss')}
    run(sum(losses.values()))
    return {name: value.detach() for name, value in losses.items()}


def gradients(model):
    return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def ddp(rank, folder, tuner, case):
    from mmengine.model import MMDistributedDataParallel

    model = build(tuner)
    # As tools/train.py wraps a model without a GPU, with the `find_unused_parameters` of the configs.
    wrapped = MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False, find_unused_parameters=True)
    return backward(seeded_losses(wrapped, tuner, case, rank)), gradients(model)


def fsdp(rank, folder, tuner, case, **options):
    """Sharded by the strategy of the config, with non-reentrant checkpointing."""
    model, wrapper = sharded(build(tuner, gradient_checkpointing=True), folder, **options)
    units = [name for name, module in model.named_modules() if name and isinstance(module, FSDPModule)]
    assert sum('language_model.' in name for name in units) == 2, units
    assert sum('.branches.' in name for name in units) == len(units) - 2 == (tuner == 'sphinx'), units
    # Hooks of the layer itself are outside of what is checkpointed.
    inner, passes = re.compile(r'.*language_model\.(.*\.)?layers\.0\.self_attn'), []
    attention = next(one for name, one in model.named_modules() if inner.fullmatch(name))
    attention.register_forward_pre_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    with wrapper.optim_context(model):
        losses = seeded_losses(model, tuner, case, rank)
    forwards = len(passes)
    losses = backward(losses, wrapper.backward)
    # Checkpointing runs each layer once more.
    assert len(passes) == forwards + sum(passes[:forwards]) > forwards, passes
    return losses, gradients(model)


def fsdp_in_bfloat16(rank, folder, tuner, case):
    optim = dict(type='AmpOptimWrapper', dtype='bfloat16', loss_scale='dynamic', optimizer=dict(type='SGD', lr=1.0))
    return fsdp(rank, folder, tuner, case, optim=optim)


def fsdp_on_the_cpu(rank, folder, tuner, case):
    return fsdp(rank, folder, tuner, case, cpu_offload=True)


def clipped_step(rank, folder, tuner, case):
    """One step of SGD: the whole norm, and the weights after it."""
    optim = dict(optimizer=dict(type='SGD', lr=1.0), clip_grad=dict(max_norm=MAX_NORM))
    model, wrapper = sharded(build(tuner), folder, optim)
    seed_generators(0, rank, iteration=0)
    model.train_step(dict(inputs=make_batch(tuner, CASES[case][rank]), data_samples=None), wrapper)
    weights = {name: whole(p) for name, p in model.named_parameters()}
    return float(wrapper.message_hub.get_scalar('train/grad_norm').current()), weights


EXACT = [
    *((ddp, tuner, case) for tuner in TUNERS if tuner not in ('qwen', 'packed') for case in CASES),
    *((wrapper, 'packed', case) for wrapper in (ddp, fsdp) for case in ('unequal', 'text')),
    *((wrapper, 'qwen', 'unequal') for wrapper in (ddp, fsdp)),
    *((fsdp, 'mergemix', case) for case in CASES),
    # One rank has no images: it gathers the encoders of SPHINX with the other one.
    *((fsdp, 'sphinx', case) for case in ('unequal', 'text')),
    *((fsdp, tuner, 'text') for tuner in PARTS),
    (fsdp_on_the_cpu, 'mergemix', 'text'),
]
FURTHER = [(fsdp_in_bfloat16, 'mergemix', 'unequal'), (clipped_step, 'mergemix', 'unequal')]


def key(wrapper, tuner, case):
    return f'{wrapper.__name__}-{tuner}-{case}'


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=WORLD)
    results = {key(*scenario): scenario[0](rank, folder, *scenario[1:]) for scenario in EXACT + FURTHER}
    torch.save(results, f'{folder}/rank{rank}.pth')
    gc.collect()  # Wrapped models refer to the process group.
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    return results_of(__file__, tmp_path_factory.mktemp('distributed'))


def one_process(tuner, case):
    """Losses and gradients of one batch of all samples, and how many pairs each half has in it."""
    model, losers = build(tuner), []
    model.vlm.packed = False
    if model.mixer is not None:
        mixed = model._mixed
        model._mixed = lambda batch: losers.append(mixed(batch)) or losers[-1]
        for rank in range(WORLD):
            seeded_losses(model, tuner, case, rank)
        pixels = [half.batch['pixel_values'] for half in losers if 'pixel_values' in half.batch]
        ratio, valid = (torch.cat([getattr(half, name) for half in losers]) for name in ('ratio', 'valid'))
        model._mixed = lambda batch: Losers({**batch, 'pixel_values': torch.cat(pixels)}, ratio, valid)
    losses = model.loss(make_batch(tuner, CASES[case][0] + CASES[case][1]))
    return backward(losses), gradients(model), [int(half.valid.sum()) for half in losers]


@pytest.mark.parametrize(('wrapper', 'tuner', 'case'), EXACT, ids=[key(*scenario) for scenario in EXACT])
def test_two_processes_have_the_losses_and_gradients_of_one(wrapper, tuner, case, results):
    losses, grads, _ = one_process(tuner, case)
    ranks = [result[key(wrapper, tuner, case)] for result in results]
    for found, _ in ranks:
        assert found.keys() == losses.keys()
    for name, loss in losses.items():
        mean = sum(found[name] for found, _ in ranks) / WORLD
        assert mean.item() == pytest.approx(loss.item(), rel=1e-5), name
    assert any(grad.abs().max() > 1e-3 for grad in grads.values())
    for _, found in ranks:
        assert found.keys() == grads.keys()
        for name, grad in grads.items():
            torch.testing.assert_close(found[name], grad, atol=2e-6, rtol=1e-4, msg=lambda text, name=name: name + text)


def test_the_cases_are_what_they_say():
    pairs = {case: one_process('mergemix', case)[2] for case in CASES}
    assert pairs == dict(unequal=[3, 2], lonely=[3, 0], text=[3, 0], no_pair=[0, 0])
    answers = {case: [sum(len(answer) for _, _, answer in half) for half in CASES[case]] for case in CASES}
    assert all(first != second for first, second in answers.values())
    assert 'loss_simpo' not in one_process('mergemix', 'no_pair')[0]


def test_fsdp_computes_in_the_precision_of_its_config(results):
    losses = one_process('mergemix', 'unequal')[0]
    found = [result['fsdp_in_bfloat16-mergemix-unequal'] for result in results]
    for name, loss in losses.items():
        mean = sum(each[name] for each, _ in found).item() / WORLD
        assert mean == pytest.approx(loss.item(), rel=0.1) and mean != pytest.approx(loss.item(), rel=1e-6)
    assert all(
        torch.isfinite(grad).all() and grad.dtype == torch.float32 for _, grads in found for grad in grads.values()
    )


def test_sharded_gradients_are_clipped_by_their_whole_norm(results):
    model, (_, grads, _) = build('mergemix'), one_process('mergemix', 'unequal')
    norm = torch.stack([grad.norm() for grad in grads.values()]).norm()
    assert norm > 10 * MAX_NORM
    for result in results:
        found_norm, weights = result['clipped_step-mergemix-unequal']
        assert found_norm == pytest.approx(norm.item(), rel=1e-4)
        for name, weight in model.named_parameters():
            step = MAX_NORM / norm * grads[name] if name in grads else 0
            torch.testing.assert_close(weights[name], weight.detach() - step, atol=1e-6, rtol=1e-5)


if __name__ == '__main__':
    worker(int(sys.argv[1]), sys.argv[2])
