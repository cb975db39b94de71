"""Checkpoints of two processes (DDP over gloo): one choice, one fate. All scenarios share one pair of processes."""

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from two_ranks import WORLD, results_of

from mergemix_mm.engine.hooks import AtomicCheckpointHook, NonFiniteLossHook, StepSeedHook

pytestmark = pytest.mark.slow
WRAPPER = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False)


class BreakOneRank(Hook):
    """Makes the loss, or a weight, of the second process NaN from the second iteration on."""

    def __init__(self, what):
        self.what = what

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter >= 1 and dist.get_rank() == 1:
            if self.what == 'loss':
                outputs['loss'] = torch.tensor(float('nan'))
            else:
                runner.model.module.net[0].weight.data[0, 0] = float('nan')


def error_of(job):
    try:
        job()
    except Exception as error:
        return f'{type(error).__name__}: {error}'
    return None


def worker(rank, folder):
    from tiny_runs import Kill, build, train

    from mergemix_mm.engine.launch.resuming import choose_checkpoint

    folder, found = Path(folder), {}
    os.environ['LOCAL_RANK'] = str(rank)
    dist.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=WORLD)

    def make(name, resume=False, **kwargs):
        options = dict(optim=dict(accumulative_counts=3), validate=False, checkpoint=dict(type='AtomicCheckpointHook'))
        options.update(kwargs)
        runner = build(
            folder / name, resume=resume, cfg=Config(dict(model_wrapper_cfg=WRAPPER)), launcher='pytorch', **options
        )
        choose_checkpoint(runner)
        return runner

    # Two iterations are an epoch, three an update.
    found['whole'] = train(make('whole'))
    train(make('killed', hooks=[StepSeedHook(), Kill(3)]))
    found['resumed'] = train(make('killed', resume=True))
    dist.barrier()
    if rank == 0:
        last = folder / 'killed' / 'epoch_3.pth'
        last.write_bytes(last.read_bytes()[:1000])
    dist.barrier()
    runner = make('killed', resume=True)
    found['chosen'] = str(runner._load_from)
    found['after damage'] = train(runner)

    nan = [StepSeedHook(), BreakOneRank('loss'), NonFiniteLossHook(patience=2)]
    found['nan loss'] = error_of(make('nan', hooks=nan).train)
    found['nan weight'] = error_of(make('weight', hooks=[StepSeedHook(), BreakOneRank('weight')]).train)

    put = LocalBackend.put

    def full(self, obj, filepath):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if rank == 0:
        LocalBackend.put = full
    found['full disk'] = error_of(make('full').train)
    LocalBackend.put = put

    # A folder with the part of each process, as FSDP writes it.
    hook = AtomicCheckpointHook()
    hook.out_dir, hook._local = str(folder / 'parts'), True

    def save(fail=False):
        def save_checkpoint(out_dir, name, **_):
            path = Path(out_dir, name)
            path.mkdir(exist_ok=True)
            if fail and rank == 1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            (path / f'rank{rank}.pth').write_text(f'{fail}')

        stub = SimpleNamespace(save_checkpoint=save_checkpoint)
        return error_of(lambda: hook._write(stub, 'epoch_1.pth', dict(epoch=1, iter=1)))

    found['parts'] = save(), save(), save(fail=True)
    dist.barrier()
    parts = folder / 'parts'
    found['parts left'] = {
        path.relative_to(parts).as_posix(): path.is_file() and path.read_text() for path in parts.rglob('*')
    }
    torch.save(found, folder / f'rank{rank}.pth')
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    return results_of(__file__, tmp_path_factory.mktemp('two_ranks'))


def test_a_resumed_run_keeps_the_gradients_of_each_process(results):
    for result in results:
        assert torch.equal(result['whole'], results[0]['whole'])
        assert torch.equal(result['resumed'], result['whole'])


def test_all_processes_choose_the_same_older_checkpoint(results):
    assert {Path(result['chosen']).name for result in results} == {'epoch_2.pth'}
    assert all(torch.equal(result['after damage'], result['whole']) for result in results)


def test_all_processes_stop_when_one_has_a_loss_or_a_weight_that_is_nan(results):
    first, second = (result['nan loss'] for result in results)
    assert 'of another process' in first and 'loss' in second
    for name in ('nan loss', 'nan weight'):
        assert all(result[name].startswith('FloatingPointError') for result in results)


def test_all_processes_stop_when_one_cannot_write(results):
    first, second = (result['full disk'] for result in results)
    assert 'epoch_1.pth' in first and 'GB free' in first
    assert 'another process could not save its part' in second and 'GB free' in second


def test_a_folder_of_parts_is_replaced_whole(results):
    for result in results:
        assert result['parts'][:2] == (None, None) and 'No space left' in result['parts'][2]
        assert result['parts left'] == {
            'epoch_1.pth': False,
            'epoch_1.pth/rank0.pth': 'False',
            'epoch_1.pth/rank1.pth': 'False',
        }


if __name__ == '__main__':
    worker(int(sys.argv[1]), sys.argv[2])
