"""Trains the tiny configs in two processes with FSDP2Strategy and with DDP, kills and moves them, and compares.

    python tests/fuzz/ranks.py                      # all methods, over gloo on a CPU
    python tests/fuzz/ranks.py --methods SFT AIA    # some of them
    python tests/fuzz/ranks.py --script             # every training by tools/dist_train.sh
    python tests/fuzz/ranks.py --gpus               # the same on two GPUs, over nccl

Each training is `tools/train.py CONFIG --launcher pytorch` in forked processes with the environment that torchrun gives
them, since importing takes longer than training. It has eight steps and a checkpoint after each second one. A row of
the table holds if no weight differs by more than 1e-5 (float32):

- *DDP*: FSDP2 against DDP, two processes each, after eight steps;
- *killed*: one process is ended by SIGKILL with half of its shards of step 4 written, the run is resumed and the other
  process is ended in step 6; the checkpoint of step 4 against that of the run that nobody killed;
- *moved*: the killed run goes on in one process, which is ended in step 8, and in two processes after that; against
  DDP that takes the same way (one process reads the whole batch), or, for SFT, against DDP that nobody stopped;
- *one process*: against one process on the same whole batches, where a method draws nothing (SFT);
- *folder*: what SavePretrainedHook wrote, read by transformers (SPHINX: by its own class), against the checkpoint.
"""

import argparse
import atexit
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import torch  # noqa: E402
from fuzz.kills import PRELOADED, load_tool  # noqa: E402
from limits import HANGS  # noqa: E402
from mmengine.registry import MODELS  # noqa: E402
from two_ranks import free_port  # noqa: E402

from mergemix_mm.engine.weights import read_state_dict  # noqa: E402

STEPS, INTERVAL, BATCH = 8, 2, 4
LARGEST = 1e-5


@dataclass(frozen=True)
class Method:
    """A config, and what makes it small.

    Args:
        config (str): In configs/.
        options (str): Lines of a config that inherits from it.
        losses (tuple): Losses that a run has to log, so that a row is about what it says.
        checkpoint (str): Name of a checkpoint; its number is that of the step divided by `unit`.
        unit (int): See `checkpoint`.
        saved (Callable, optional): Folder of SavePretrainedHook -> weights by the names of a checkpoint.
        repeats (bool): Whether one process computes the same on the same whole batches.
    """

    config: str
    options: str
    losses: tuple[str, ...]
    checkpoint: str = 'iter_{}.pth'
    unit: int = 1
    saved: Callable | None = None
    repeats: bool = False


def read_transformers(folder: Path) -> dict:
    """The weights of a model that transformers reads."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder)
    return {f'vlm.model.{name}': weight for name, weight in model.named_parameters()}


def read_sphinx(folder: Path) -> dict:
    """The weights of a SPHINX."""
    model = MODELS.build(dict(type='SphinxModel', pretrained=str(folder)))
    return {f'vlm.{name}': weight for name, weight in model.named_parameters()}


BY_STEPS = f"""
train_cfg = dict(max_iters={STEPS})
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=False, end={STEPS})]
default_hooks = dict(checkpoint=dict(interval={INTERVAL}, max_keep_ckpts=-1), logger=dict(interval=1))
train_dataloader = dict(batch_size=BATCH, num_workers=0, sampler=dict(batch_size=BATCH))
"""
CHECKPOINTED = BY_STEPS + 'model = dict(vlm=dict(gradient_checkpointing=True))\n'
# Encoders are frozen, as in the recipes of full size, and so are units.
FROZEN_ENCODERS = """
model = dict(vlm=dict(gradient_checkpointing=True, trainable=['projector', 'language_model']))
"""
BY_EPOCHS = f"""
train_cfg = dict(max_epochs={STEPS // INTERVAL})
param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, end={STEPS // INTERVAL}, convert_to_iter_based=True)]
default_hooks = dict(checkpoint=dict(interval=1, max_keep_ckpts=-1, save_best=None), logger=dict(interval=1))
train_dataloader = dict(batch_size=BATCH, dataset=dict(indices={2 * BATCH * INTERVAL}))
# Softmax does not see the biases of keys, whose gradients are rounding errors; Adam divides these by their own size.
optim_wrapper = dict(optimizer=dict(eps=1e-5))
"""
METHODS = {
    'SFT': Method(
        'simpo/tiny-llava_1xb64-sft-coslr-300i_shapes.py',
        CHECKPOINTED,
        ('loss_sft',),
        saved=read_transformers,
        repeats=True,
    ),
    'SimPO': Method(
        'simpo/tiny-llava_1xb64-simpo-mergemix-coslr-300i_shapes.py',
        CHECKPOINTED,
        ('loss_simpo',),
        saved=read_transformers,
    ),
    'AIA': Method(
        'aia/tiny-janus_1xb32-aia-coslr-400i_shapes.py',
        CHECKPOINTED,
        ('loss_aia_gen', 'loss_aia_und'),
        saved=read_transformers,
    ),
    'SPHINX': Method(
        'sphinx/tiny-sphinx_1xb16-align-coslr-400i_shapes.py',
        BY_STEPS + FROZEN_ENCODERS,
        ('loss_sft',),
        saved=read_sphinx,
    ),
    'MixupClassifier': Method(
        'mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py', BY_EPOCHS, ('loss',), 'epoch_{}.pth', INTERVAL
    ),
}


def run_script(arguments: list[str], ranks: int, port: str, log: Path, gpus: bool) -> int:
    """Run tools/dist_train.sh with a config and flags of tools/train.py. Returns its exit status."""
    environment = dict(
        os.environ, PYTHON=sys.executable, PORT=port, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT / 'tests')
    )
    environment |= {} if gpus else dict(CUDA_VISIBLE_DEVICES='')
    config, *flags = arguments
    command = ['bash', str(ROOT / 'tools/dist_train.sh'), config, str(ranks), *flags]
    with log.open('w') as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment)
        try:
            return process.wait(HANGS)
        finally:
            process.terminate()  # torchrun ends its processes.
            process.wait()


def run_forked(arguments: list[str], ranks: int, port: str, log: Path) -> int:
    """Run tools/train.py in forks of this process. Returns the exit status of one that failed, or 0.

    Nobody ends the others if one process dies, so that they have to end by themselves.
    """
    children = []
    for rank in range(ranks):
        child = os.fork()
        if child == 0:
            _train(arguments, rank, ranks, port, log)
        children.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return next((status for status in statuses if status), 0)


def _train(arguments: list[str], rank: int, ranks: int, port: str, log: Path) -> None:
    signal.alarm(HANGS)
    output = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    sys.argv = ['tools/train.py', *arguments, '--launcher', 'pytorch']
    status = 1
    try:
        torch.set_num_threads(1)
        load_tool('train').main()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # Ends the process group.
        os._exit(status)


class Runs:
    """The trainings of a method below a folder.

    Args:
        method (Method): The method.
        folder (Path): Replaced.
        script (bool): By tools/dist_train.sh, or forked. Defaults to True.
        gpus (bool): Whether the script may see GPUs. Defaults to False.
    """

    def __init__(self, method: Method, folder: Path, script: bool = True, gpus: bool = False) -> None:
        self.method, self.folder, self._script, self._gpus = method, folder, script, gpus
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._number = 0

    def train(self, name: str, ranks: int = 2, sharded: bool = True, resume: str | None = None, kill: str = '') -> Path:
        """Train. Returns the work directory.

        Args:
            name (str): Of the work directory.
            ranks (int): Processes; together they always read the same number of samples. Defaults to 2.
            sharded (bool): With the strategy, or with DDP. Defaults to True.
            resume (str, optional): A checkpoint; '' is the newest one of the work directory. Defaults to None.
            kill (str): Arguments of `KillRank`. Defaults to '': the run ends by itself.

        Raises:
            RuntimeError: If the run ends otherwise.
        """
        config = self.write(name, ranks, sharded, kill)
        work_dir, log = self.folder / name, config.with_suffix('.txt')
        arguments = [str(config), '--work-dir', str(work_dir), '--no-validate']
        arguments += [] if resume is None else ['--resume', resume] if resume else ['--resume']
        port = free_port()
        if self._script:
            status = run_script(arguments, ranks, port, log, self._gpus)
        else:
            status = run_forked(arguments, ranks, port, log)
        if (status != 0) != bool(kill):
            raise RuntimeError(f'{name} ended with status {status}:\n{log.read_text()[-3000:]}')
        return work_dir

    def write(self, name: str, ranks: int = 2, sharded: bool = True, kill: str = '') -> Path:
        """Write the config of a run; see :meth:`train`."""
        self._number += 1
        bases = [f'configs/{self.method.config}', *(['configs/_base_/strategies/fsdp.py'] if sharded else [])]
        lines = [
            f'_base_ = {[str(ROOT / base) for base in bases]!r}',
            self.method.options.replace('=BATCH', f'={2 * BATCH // ranks}'),
            "custom_imports = dict(imports=['mergemix_mm', 'rank_kills'])",
            f"custom_hooks = [*_base_.custom_hooks, dict(type='KillRank', {kill})]" if kill else '',
        ]
        config = self.folder / f'{self._number}-{name}.py'
        config.write_text('\n'.join(lines) + '\n')
        return config

    def checkpoint(self, work_dir: Path, step: int) -> Path:
        """The checkpoint after a number of steps."""
        return work_dir / self.method.checkpoint.format(step // self.method.unit)

    def weights(self, work_dir: Path, step: int = STEPS) -> dict:
        """The weights after a number of steps."""
        return read_state_dict(self.checkpoint(work_dir, step))


def difference(found: dict, expected: dict) -> float:
    """The largest difference of a weight.

    Raises:
        ValueError: If the names differ.
    """
    if found.keys() != expected.keys():
        raise ValueError(f'names differ: {sorted(found.keys() ^ expected.keys())[:5]}')
    return max(float((found[name].float() - one.float()).abs().max()) for name, one in expected.items() if one.numel())


def compare(method: Method, folder: Path, **options: bool) -> dict[str, float]:
    """Train a method in all ways; the differences by the columns of the table, and how far a weight moved at most."""
    runs = Runs(method, folder, **options)
    ddp, whole = runs.train('ddp', sharded=False), runs.train('whole')
    text = ''.join(path.read_text() for path in whole.glob('*/vis_data/scalars.json'))
    if lacking := [name for name in method.losses if f'"{name}"' not in text]:
        raise RuntimeError(f'{whole} does not log {lacking}')
    found = dict(
        moves=difference(runs.weights(whole), runs.weights(whole, INTERVAL)),
        DDP=difference(runs.weights(whole), runs.weights(ddp)),
    )
    killed = runs.train('killed', kill='save=2, rank=1')
    if runs.checkpoint(killed, 4).exists() or not runs.checkpoint(killed, 2).exists():
        raise RuntimeError(f'{killed} was not killed while it saved step 4')
    runs.train('killed', resume='', kill='step=5')
    found['killed'] = difference(runs.weights(killed, 4), runs.weights(whole, 4))
    runs.train('killed', resume='', ranks=1, kill='step=7')
    runs.train('killed', resume='')
    if method.repeats:
        moved = runs.train('one', ranks=1, sharded=False)
        found['one process'] = difference(runs.weights(whole), runs.weights(moved))
    else:
        resume = str(runs.checkpoint(ddp, 4))
        moved = runs.train('moved', sharded=False, resume=resume, ranks=1, kill='step=7')
        runs.train('moved', sharded=False, resume='')
    found['moved'] = difference(runs.weights(killed), runs.weights(moved))
    if left := [path.name for path in killed.iterdir() if path.name.startswith('.')]:
        raise RuntimeError(f'{killed} has temporary files: {left}')
    if method.saved is not None:
        saved = {name: weight.detach() for name, weight in method.saved(killed / 'pretrained').items()}
        weights = runs.weights(killed)
        found['folder'] = difference(saved, {name: weights[name] for name in saved})
    return found


COLUMNS = ('DDP', 'killed', 'moved', 'one process', 'folder')


def main() -> None:
    """Compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--methods', nargs='+', choices=METHODS, default=list(METHODS))
    parser.add_argument('--folder', type=Path, default=Path('work_dirs/ranks'))
    parser.add_argument('--script', action='store_true', help='by tools/dist_train.sh')
    parser.add_argument('--gpus', action='store_true', help='by the script, on two GPUs over nccl')
    args = parser.parse_args()
    torch.set_num_threads(1)
    script = args.script or args.gpus
    if not script:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
        for name in PRELOADED:
            importlib.import_module(name)
    print(f'| method | config | a weight moves by | {" | ".join(COLUMNS)} | s |', flush=True)
    print(f'| :-- | :-- |{" --: |" * (len(COLUMNS) + 2)}', flush=True)
    holds = True
    for name in args.methods:
        begun = time.time()
        found = compare(METHODS[name], args.folder.absolute() / name, script=script, gpus=args.gpus)
        holds &= all(found.get(column, 0.0) <= LARGEST < found['moves'] for column in COLUMNS)
        cells = [f'{found[column]:.1e}' if column in found else '-' for column in ('moves', *COLUMNS)]
        config = Path(METHODS[name].config).stem
        print(f'| {name} | {config} | {" | ".join(cells)} | {time.time() - begun:.0f} |', flush=True)
    print('All rows hold.' if holds else f'A difference is above {LARGEST:.0e}.')
    sys.exit(not holds)


if __name__ == '__main__':
    main()
