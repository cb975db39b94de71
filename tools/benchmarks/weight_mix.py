"""Memory and time of mixing two checkpoints on disk, against a process that reads both and writes a copy of one."""

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from lib.measure import add_common_arguments, prepare, ratio_cells, write_json

from mergemix_mm.engine.weights import StoredWeights, mix_files
from mergemix_mm.utils.processes import end_with_parent
from mergemix_mm.utils.tables import markdown_table

MB = 2**20
BLOCK = 8 * MB
NUM_SHARDS = 4


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='The arms take turns, each in its own process. Files are flushed to the disk before the next arm '
        'starts. Caches of the file system are not dropped.',
    )
    parser.add_argument('--size', type=float, default=4.0, help='GB of each checkpoint (default: %(default)s)')
    parser.add_argument('--rows', type=int, default=32000, help='of the largest tensor (default: %(default)s)')
    parser.add_argument('--width', type=int, default=4096, help='of all tensors (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=3, help='runs of each arm (default: %(default)s)')
    parser.add_argument('--dir', type=Path, help="place for the temporary files, 3 x SIZE (default: the system's)")
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.size, args.rows, args.width, args.rounds = 0.01, 2000, 256, 1
    return args


def make_checkpoint(folder: Path, args: argparse.Namespace, seed: int) -> None:
    """Write a folder as transformers does, in bfloat16: an embedding, then square matrices up to the size."""
    from safetensors.torch import save_file

    generator, left, number, weight_map = torch.Generator().manual_seed(seed), args.size * 2**30, 0, {}
    folder.mkdir()
    for shard in range(NUM_SHARDS):
        name, tensors = f'model-{shard + 1:05}-of-{NUM_SHARDS:05}.safetensors', {}
        while left > args.size * 2**30 * (NUM_SHARDS - 1 - shard) / NUM_SHARDS:
            shape = (args.rows if number == 0 else args.width, args.width)
            tensor = torch.empty(shape, dtype=torch.bfloat16).normal_(generator=generator)
            tensors[f'layers.{number}.weight'] = tensor
            left, number = left - tensor.nbytes, number + 1
        save_file(tensors, folder / name, dict(format='pt'))
        weight_map.update(dict.fromkeys(tensors, name))
    (folder / 'model.safetensors.index.json').write_text(json.dumps(dict(metadata={}, weight_map=weight_map)))
    (folder / 'config.json').write_text('{}')


def nothing(folder: Path) -> None:
    """Do nothing, to measure the bare process."""


def copy(folder: Path) -> None:
    """Read both checkpoints and write the first, in blocks."""
    (folder / 'out').mkdir()
    block, other = bytearray(BLOCK), bytearray(BLOCK)
    for path in sorted((folder / 'real').iterdir()):
        synthetic, out = (folder / part / path.name for part in ('syn', 'out'))
        with path.open('rb') as first, synthetic.open('rb') as second, out.open('wb') as written:
            while size := first.readinto(block):
                second.readinto(other)
                written.write(memoryview(block)[:size])


def mix(folder: Path) -> None:
    """Mix as tools/mix_weights.py does, including hashes."""
    mix_files(StoredWeights(folder / 'real'), StoredWeights(folder / 'syn'), folder / 'out', 0.5)


def run_alone(arm: Callable[[Path], None], folder: Path, threads: int | None) -> dict[str, float]:
    """Run an arm in a new process: time, processor time (s), and peak resident memory (MB)."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), end_with_parent) as pool:
        measured = pool.submit(_measured, arm, folder, threads).result()
    shutil.rmtree(folder / 'out', ignore_errors=True)
    os.sync()
    return measured


def _measured(arm: Callable[[Path], None], folder: Path, threads: int | None) -> dict[str, float]:
    if threads is not None:
        torch.set_num_threads(threads)
    start, processor = time.perf_counter(), time.process_time()
    arm(folder)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    # The peak of getrusage can be that of the parent process.
    status = dict(line.split(':', 1) for line in Path('/proc/self/status').read_text().splitlines())
    return dict(seconds=seconds, processor=processor, memory=int(status['VmHWM'].split()[0]) / 1024)


def measure(folder: Path, args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """The measurements of :func:`run_alone` for all arms, as lists over the rounds."""
    arms = {arm.__name__: arm for arm in (nothing, copy, mix)}
    found: dict[str, dict[str, list[float]]]
    found = {name: dict(seconds=[], processor=[], memory=[]) for name in arms}
    for i in range(args.rounds):
        for name in list(arms)[:: -1 if i % 2 else 1]:
            for key, value in run_alone(arms[name], folder, args.threads).items():
                found[name][key].append(value)
            print(f'round {i + 1}, {name}: {found[name]["seconds"][-1]:.1f} s', flush=True)
    return found


def table(measured: dict[str, dict[str, list[float]]]) -> str:
    """The table of the arms: memory above the bare process, and time against the copy."""
    bare, rows = max(measured['nothing']['memory']), []
    for name, label in dict(copy='both read, one written', mix='mix_weights').items():
        seconds, memory = measured[name]['seconds'], max(measured[name]['memory'])
        ratios = ratio_cells(seconds, measured['copy']['seconds'])
        medians = (statistics.median(measured[name][key]) for key in ('seconds', 'processor'))
        rows.append((label, f'{memory - bare:.0f}', *(f'{value:.1f}' for value in medians), *ratios))
    header = ('process', 'peak above bare (MB)', 'time (s)', 'of all cores (s)', 'time / copy', 'range over the rounds')
    return markdown_table(header, rows)


def main(argv: Sequence[str] | None = None) -> dict:
    """Make two checkpoints, measure, print the table, and write the numbers if asked to.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict: The result of :func:`measure`, and ``largest_mb``, the size of the largest tensor (MB).
    """
    args = parse_args(argv)
    prepare(args)
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        for number, part in enumerate(('real', 'syn')):
            make_checkpoint(folder / part, args, args.seed + number)
        os.sync()
        weights = StoredWeights(folder / 'real')
        largest = max(tensor.nbytes for tensor in weights.tensors.values()) / MB
        print(f'{len(weights.tensors)} tensors, {weights.nbytes / MB:.0f} MB, the largest {largest:.0f} MB', flush=True)
        measured = measure(folder, args)
    print(table(measured))
    print(f'The bare process takes {max(measured["nothing"]["memory"]):.0f} MB.')
    if args.output:
        results = dict(benchmark='weight_mix', options=vars(args), largest_mb=largest, arms=measured)
        write_json(args.output, results)
    return dict(measured, largest_mb=largest)


if __name__ == '__main__':
    main()
