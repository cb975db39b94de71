"""Kills training runs, resumes them, and compares the outcome with that of a run that nobody killed.

    python tests/fuzz/kills.py steps                # at each write, rename and removal of all saves, in three configs
    python tests/fuzz/kills.py kills --count 20     # tools/train.py, by SIGKILL at random moments, again and again
    python tests/fuzz/kills.py steps --plain        # the same with MMEngine's own CheckpointHook, to compare

A run holds if it can be resumed, and ends with the same checkpoints (names and every bit of their weights), the same
last_checkpoint, the same loss in every step, and no temporary file.
"""

import argparse
import importlib.util
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

import torch  # noqa: E402
from fault_injection import differences, run  # noqa: E402

from mergemix_mm.engine import launch  # noqa: E402

SMALL_SETS = ['train_dataloader.batch_size=4', 'val_dataloader.batch_size=4']
SMALL_VLM = [
    'train_cfg.max_iters=4',
    'train_cfg.val_interval=100',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.checkpoint.max_keep_ckpts=1',
    'default_hooks.logger.interval=1',
    'param_scheduler=None',
    'model.vlm.config.text_config.num_hidden_layers=1',
    *SMALL_SETS,
]
CONFIGS = {
    'configs/mergemix/vit-tiny_1xb32-mergemix-coslr-30e_digits.py': [
        'train_cfg.max_epochs=3',
        'train_cfg.val_interval=1',
        'default_hooks.checkpoint.interval=1',
        'default_hooks.checkpoint.max_keep_ckpts=1',
        'param_scheduler=None',
        'model.backbone.arch.num_layers=1',
        'train_dataloader.dataset.indices=16',
        'val_dataloader.dataset.indices=16',
        'val_evaluator.1.figure=None',
        *SMALL_SETS,
    ],
    'configs/simpo/tiny-llava_1xb64-simpo-mergemix-coslr-300i_shapes.py': SMALL_VLM,
    'configs/aia/tiny-janus_1xb32-aia-coslr-400i_shapes.py': SMALL_VLM,
}


def make(config: str, options: list[str], plain: bool):
    """What builds a Runner of a config for a folder, as tools/train.py does."""

    def build(folder: Path, resume: bool):
        torch.set_num_threads(1)
        arguments = [str(ROOT / config), '--work-dir', str(folder), *(['--resume'] if resume else [])]
        options_here = [*options, f'experiment_name={folder.name}_{os.getpid()}']
        args = train.parse_args([*arguments, '--cfg-options', *options_here])
        cfg = train.merge_args(launch.load_config(args.config), args)
        cfg.val_evaluator = cfg.val_evaluator if 'digits' in config else []
        if not cfg.val_evaluator:
            cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        if plain:
            cfg.default_hooks.checkpoint.type = 'CheckpointHook'
            launch.runner.use_own_hooks = launch.runner.choose_checkpoint = lambda _: None
        return launch.build_runner(cfg)

    return build


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(f'tool_{name}', ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train = load_tool('train')


# A run is a forked process: what is imported before, none of them imports again.
PRELOADED = [
    *(f'mmpretrain.{part}' for part in ('datasets', 'engine', 'evaluation', 'models', 'visualization')),
    *(f'transformers.models.{name}.modeling_{name}' for name in ('janus', 'llava', 'llama', 'clip', 'siglip')),
]


def steps(args: argparse.Namespace) -> None:
    """A stop at each step of the saves of each config."""
    for name in PRELOADED:
        importlib.import_module(name)
    for config, options in CONFIGS.items():
        if args.config not in config:
            continue
        folder = args.folder / Path(config).stem
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        build, begun, bad = make(config, options, args.plain), time.time(), []
        status, names = run(build, folder / 'whole', quiet=True)
        assert status == 0, (folder / 'whole.txt').read_text()[-3000:]
        for at in range(1, len(names) + 1, args.every):
            place = folder / f'at_{at}'
            killed = run(build, place, at=at, quiet=True)[0]
            resumed = run(build, place, resume=True, quiet=True)[0]
            problems = [f'exit status {resumed}'] if resumed else differences(place, folder / 'whole')
            if killed != -9:
                problems.append(f'not killed, but {killed}')
            if problems:
                bad.append(at)
                print(f'  {at}. {names[at - 1]}: {problems[:3]}', flush=True)
            elif not args.keep:
                shutil.rmtree(place)
        tried = len(range(1, len(names) + 1, args.every))
        seconds = time.time() - begun
        print(f'{config}: {tried} stops at {len(names)} steps, {tried - len(bad)} held, {seconds:.0f} s', flush=True)


def kills(args: argparse.Namespace) -> None:
    """One run of tools/train.py that is killed and resumed again and again."""
    config = next(iter(CONFIGS))
    options = [*CONFIGS[config], f'train_cfg.max_epochs={args.epochs}', 'default_hooks.logger.interval=1']
    folder = args.folder / 'kills'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    draw, environment = random.Random(args.seed), dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')

    def command(place: Path, number: int, *flags: str) -> list[str]:
        name = f'experiment_name=run_{number}'
        return [
            sys.executable,
            'tools/train.py',
            config,
            '--work-dir',
            str(place),
            *flags,
            '--cfg-options',
            *options,
            name,
        ]

    begun = time.time()
    whole = subprocess.run(command(folder / 'whole', 0), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr[-3000:]
    place, held, at_save = folder / 'killed', 0, 0
    for number in range(1, args.count + 1):
        before = _epoch(place)
        with open(folder / f'{number}.txt', 'w') as log:
            process = subprocess.Popen(
                command(place, number, '--resume'), cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
            # It works for a random time after its first save, or its first step of training.
            while process.poll() is None and ' Epoch(train) ' not in (folder / f'{number}.txt').read_text():
                time.sleep(0.02)
            time.sleep(draw.uniform(0, args.seconds))
            ended = process.poll()
            process.kill()
            process.wait()
        text = (folder / f'{number}.txt').read_text()
        went_on = ended is None or ended == 0
        resumed = f'resumed epoch: {before}' in text or before == 0
        held += went_on and resumed
        at_save += any(path.name.startswith('.') for path in place.iterdir())
        print(
            f'  kill {number}: epoch {before} -> {_epoch(place)}, {"held" if went_on and resumed else text[-500:]}',
            flush=True,
        )
    last = subprocess.run(command(place, 999, '--resume'), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr[-3000:]
    found = _weights(place), _weights(folder / 'whole')
    same = found[0].keys() == found[1].keys() and all(
        torch.equal(found[0][name][key], value) for name in found[1] for key, value in found[1][name].items()
    )
    left = [path.name for path in place.iterdir() if path.name.startswith('.')]
    seconds = time.time() - begun
    print(
        f'{args.count} kills, {at_save} of them while a file was written: {held} resumed from the last checkpoint; the '
        f'same checkpoints as the whole run: {same}; temporary files left: {left}; {seconds:.0f} s'
    )


def _epoch(folder: Path) -> int:
    """The epoch of the last checkpoint."""
    last = folder / 'last_checkpoint'
    return int(last.read_text().rsplit('_', 1)[1].removesuffix('.pth')) if last.is_file() else 0


def _weights(folder: Path) -> dict[str, dict]:
    return {path.name: torch.load(path, weights_only=False)['state_dict'] for path in folder.glob('*.pth')}


def main() -> None:
    """Kill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=['steps', 'kills'])
    parser.add_argument('--folder', type=Path, default=Path('work_dirs/fuzz'))
    parser.add_argument('--config', default='', help='part of the name of a config: only that one')
    parser.add_argument('--every', type=int, default=1, help='only every so many steps')
    parser.add_argument('--plain', action='store_true', help="MMEngine's own hook and resume")
    parser.add_argument('--keep', action='store_true', help='keep the folders of runs that held')
    parser.add_argument('--count', type=int, default=20)
    parser.add_argument('--epochs', type=int, default=60)
    parser.add_argument('--seconds', type=float, default=2.0, help='a run is killed after at most so long')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    args.folder = args.folder.absolute()
    dict(steps=steps, kills=kills)[args.what](args)


if __name__ == '__main__':
    main()
