"""Memory and time of one process that reads a long list of captions, by the format of the list."""

import argparse
import gc
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
from lib.measure import add_common_arguments, prepare, write_json

from mergemix_mm.datasets import TaskMixDataset, TaskMixSampler, TaskRecordDataset
from mergemix_mm.utils.tables import markdown_table

WORDS = ('a', 'the', 'red', 'small', 'photo', 'of', 'dog', 'house', 'street', 'vintage', 'poster', 'woman')
CHUNK = 100_000
# Rows of a group in a Parquet file that is not copied.
SMALL_GROUP = 1_000


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='A record has the name of an image and a caption of 3 to 20 words. open: the dataset is built. held: '
        'memory of the process that is not backed by files, afterwards. order: what TaskMixSampler adds at its peak '
        'while it draws the order of an epoch. read: records in that order, without their images. Each list is written '
        'and read by processes of its own. Linux only.',
    )
    parser.add_argument('--records', type=int, default=2_000_000, help='(default: %(default)s)')
    parser.add_argument('--reads', type=int, default=5_000, help='records to read (default: %(default)s)')
    parser.add_argument('--ranks', type=int, default=8, help='processes that share an epoch (default: %(default)s)')
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        vars(args).update(records=200, reads=10)
    return args


def draw_captions(number: int, seed: int) -> Iterator[tuple[list[str], list[str]]]:
    """Names of images and captions, in chunks."""
    rng, words = np.random.default_rng(seed), np.array(WORDS)
    for start in range(0, number, CHUNK):
        count = min(CHUNK, number - start)
        drawn = words[rng.integers(len(words), size=(count, 20))]
        captions = [' '.join(row[:size]) for row, size in zip(drawn, rng.integers(3, 21, count), strict=True)]
        yield [f'{place // 10_000:05d}/{place:09d}.jpg' for place in range(start, start + count)], captions


def write_lines(path: Path, args: argparse.Namespace) -> None:
    """Write JSON lines."""
    with path.open('w', encoding='utf-8') as file:
        for images, captions in draw_captions(args.records, args.seed):
            file.writelines(
                json.dumps(dict(image=image, caption=caption)) + '\n'
                for image, caption in zip(images, captions, strict=True)
            )


def write_parquet(path: Path, args: argparse.Namespace, rows: int) -> None:
    """Write a Parquet file with so many rows in a group."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = [list(chain(*chunks)) for chunks in zip(*draw_captions(args.records, args.seed), strict=True)]
    parquet.write_table(pa.table(dict(zip(('image', 'caption'), columns, strict=True))), path, row_group_size=rows)


def measure(path: Path, args: argparse.Namespace) -> dict[str, float]:
    """Seconds, bytes per record and records per second of one list."""
    before = _resident('RssAnon')
    begin = time.perf_counter()
    captions = TaskRecordDataset(str(path), on_error='skip')
    opened = time.perf_counter() - begin
    gc.collect()
    held = _resident('RssAnon') - before
    dataset = TaskMixDataset(dict(caption=dict(dataset=captions)))
    tracemalloc.start()  # It knows the arrays of NumPy.
    with mock.patch('mergemix_mm.datasets.mixtures.samplers.get_dist_info', lambda: (0, args.ranks)):
        sampler = TaskMixSampler(dataset, batch_size=8, seed=args.seed)
    order = iter(sampler)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    indices = [next(order) for _ in range(min(args.reads, len(sampler)))]
    begin = time.perf_counter()
    for index in indices:
        captions.load_record(index)
    seconds = time.perf_counter() - begin
    each = dict(file=path.stat().st_size, held=held, order=peak)
    return dict(open=opened, **{key: value / args.records for key, value in each.items()}, read=len(indices) / seconds)


def _in_process(function: Callable, *args):
    """Call a function in a process of its own, whose memory is not what others have left."""
    with ProcessPoolExecutor(1, mp_context=get_context('fork')) as pool:
        return pool.submit(function, *args).result()


def _resident(kind: str) -> int:
    """Bytes of this process in memory."""
    line = next(one for one in Path('/proc/self/status').read_text().splitlines() if one.startswith(f'{kind}:'))
    return int(line.split()[1]) * 1024


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Measure all formats, and print a table.

    Returns:
        dict: The numbers of :func:`measure` by the format.
    """
    args = parse_args(argv)
    prepare(args)
    arms: dict[str, tuple[str, Callable[[Path], None]]] = {
        'JSON lines': ('a.jsonl', partial(write_lines, args=args)),
        f'Parquet, groups of {SMALL_GROUP:,} rows': ('b.parquet', partial(write_parquet, args=args, rows=SMALL_GROUP)),
        'Parquet, one group, copied to Arrow': ('c.parquet', partial(write_parquet, args=args, rows=args.records)),
    }
    found = {}
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, XDG_CACHE_HOME=folder):
        for name, (file, write) in arms.items():
            path = Path(folder) / file
            _in_process(write, path)
            found[name] = _in_process(measure, path, args)
            path.unlink()
    header = ('list', 'file (B / record)', 'open (s)', 'held (B / record)', 'order (B / record)', 'read (records / s)')
    rows = [
        (name, *(f'{one[key]:,.{digits}f}' for key, digits in (('file', 0), ('open', 1), ('held', 0), ('order', 0))))
        + (f'{one["read"]:,.0f}',)
        for name, one in found.items()
    ]
    print(f'{args.records:,} records\n\n{markdown_table(header, rows)}')
    if args.output:
        write_json(args.output, dict(benchmark='record_memory', options=vars(args), lists=found))
    return found


if __name__ == '__main__':
    main()
