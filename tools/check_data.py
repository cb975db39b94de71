"""Reads every record of the datasets of a config before any training, and prints each one that cannot be used.

For each dataset it reports the number of unusable records, the keys that are ignored, the lengths in tokens, what
max_length cuts off, and the sizes of the images. The exit status is 1 if anything cannot be used. Ctrl-C prints what
was found so far.
"""

import argparse
import os
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mergemix_mm.engine import launch
from mergemix_mm.utils.images import read_image
from mergemix_mm.utils.processes import end_children_with_parent
from mergemix_mm.utils.text import DataError, RecordError, one_line

SPLITS = ('train', 'val', 'test')
# Number of records that a worker process reads before it reports.
CHUNK = 8
INTERRUPTED = 130


@dataclass
class Finding:
    """The result of reading one record.

    Attributes:
        error (str): Why the record cannot be used, with its source; '' if it can.
        left_out (bool): Whether the pipeline returned None, by which it asks MMEngine for another record.
        tokens (int): The length in tokens before any cut, of a preference pair the longer one; -1 without tokens.
        limit (int): The ``max_length`` that cuts the record; 0 if none does.
        sizes (list): Width and height in pixels of its images.
    """

    error: str = ''
    left_out: bool = False
    tokens: int = -1
    limit: int = 0
    sizes: list[tuple[int, int]] = field(default_factory=list)


class Inspection(Dataset):
    """The findings of a dataset as dictionaries, a chunk at a time. Reading them raises no errors."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return -(-len(self.dataset) // CHUNK)

    def __getitem__(self, number: int) -> list[dict]:
        first = number * CHUNK
        return [vars(inspect(self.dataset, index)) for index in range(first, min(first + CHUNK, len(self.dataset)))]


@dataclass
class Report:
    """The sum of the findings of one dataset."""

    name: str
    total: int
    read: int = 0
    unusable: int = 0
    left_out: int = 0
    without_images: int = 0
    limit: int = 0
    tokens: array = field(default_factory=lambda: array('q'))
    cut: array = field(default_factory=lambda: array('q'))
    sizes: array = field(default_factory=lambda: array('q'))

    def add(self, finding: Finding) -> None:
        """Add one finding."""
        self.read += 1
        self.unusable += bool(finding.error)
        self.left_out += finding.left_out
        if finding.error:
            return
        if finding.tokens >= 0:
            self.tokens.append(finding.tokens)
        if finding.limit:
            self.limit = finding.limit
            self.cut.append(finding.tokens)
        self.without_images += not finding.sizes
        for size in finding.sizes:
            self.sizes.extend(size)

    def lines(self, dataset: Dataset) -> Iterator[str]:
        """The lines of the report."""
        read = f'{self.read} of {self.total}' if self.read < self.total else str(self.total)
        yield f'{self.name} ({type(dataset).__name__}): {read} records read, {self.unusable} cannot be used'
        if self.unusable and getattr(dataset, 'on_error', '') == 'skip':
            yield "  on_error='skip': in training, other records replace those that cannot be used"
        if self.left_out:
            yield f'  left out by the pipeline, which returned None: {self.left_out}'
        others = getattr(getattr(dataset, 'records', None), 'other_keys', None) or {}
        if others:
            yield f'  keys that are not trained on: {", ".join(f"{one_line(key)} ({n})" for key, n in others.items())}'
        if self.tokens:
            yield f'  tokens: {_spread(self.tokens)}'
        if self.cut:
            yield f'  cut off by max_length={self.limit}: {len(self.cut)}, of {_spread(self.cut)} tokens'
        if self.sizes:
            width, height = np.frombuffer(self.sizes, np.int64).reshape(-1, 2).T
            yield f'  images: {len(width)}, width {_spread(width)}, height {_spread(height)} pixels'
        if self.without_images:
            yield f'  records without images: {self.without_images}'


def _spread(values: Sequence[int]) -> str:
    values = np.asarray(values)
    return f'min {values.min()}, median {np.median(values):g}, max {values.max()}'


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='path of a config')
    parser.add_argument(
        '--split', nargs='+', choices=SPLITS, default=list(SPLITS), help='data loaders to check (default: all)'
    )
    parser.add_argument(
        '--workers', type=int, default=min(8, os.cpu_count() or 1), help='processes that read (default: %(default)s)'
    )
    launch.add_trust_argument(parser)
    launch.add_config_options(parser)
    args = parser.parse_args(argv)
    if args.workers < 0:
        parser.error(f'--workers {args.workers} must be at least 0')
    return args


def inspect(dataset: Dataset, index: int) -> Finding:
    """Read one record, with its images, and run the pipeline on it.

    Args:
        dataset (Dataset): One that holds records itself, see :func:`leaves`.
        index (int): The index of the record.
    """
    finding = Finding()
    try:
        info = dataset.get_data_info(index) if hasattr(dataset, 'get_data_info') else None
        if info is None:
            sample = dataset[index]
        elif isinstance(info, Mapping) and 'images' in info:
            sample = _encode(dataset, index, info, finding)
        else:
            sample = _prepare(dataset, index, info, finding)
    except RecordError as error:
        finding.error = str(error)
    except Exception as error:
        # Any error of a reader or a transform would also stop a training.
        kind = '' if isinstance(error, (ValueError, OSError)) else f'{type(error).__name__}: '
        finding.error = one_line(f'{source_of(dataset, index)}: {kind}{error}')
    else:
        finding.tokens = max(finding.tokens, num_tokens(sample))
        if not finding.sizes:
            finding.sizes = shapes_of(sample)
    return finding


def _encode(dataset: Dataset, index: int, record: Mapping, finding: Finding) -> Any:
    """The sample of a record with images as training gets it. Its length is measured before any cut."""
    finding.sizes = [image.size for key in ('images', 'rejected_images') for image in record.get(key, ())]
    limited = [each for each in dataset.pipeline.transforms if getattr(each, 'max_length', None) is not None]
    limits = [transform.max_length for transform in limited]
    for transform in limited:
        transform.max_length = None
    try:
        sample = dataset.pipeline(record)
    finally:
        for transform, limit in zip(limited, limits):
            transform.max_length = limit
    if sample is None:
        raise RecordError(f'{source_of(dataset, index)}: a transform of the pipeline returned None')
    finding.tokens = num_tokens(sample)
    if limited and finding.tokens > min(limits):
        finding.limit = min(limits)
        sample = dataset.pipeline(dataset.get_data_info(index))
    return sample


def _prepare(dataset: Dataset, index: int, info: Any, finding: Finding) -> Any:
    """The sample of a dataset of MMEngine, whose own indexing would replace a record that cannot be used."""
    for path in _image_paths(info):
        if os.path.exists(path):
            # OpenCV silently fills the missing part of a truncated file with grey.
            finding.sizes.append(read_image(path).size)
    sample = dataset.prepare_data(index) if hasattr(dataset, 'prepare_data') else dataset.pipeline(info)
    finding.left_out = sample is None
    return sample


def _image_paths(info: Any) -> list[str]:
    found = info.get('img_path') if isinstance(info, Mapping) else None
    return [path for path in (found if isinstance(found, (list, tuple)) else [found]) if isinstance(path, str)]


def source_of(dataset: Dataset, index: int) -> str:
    """The place of a record in its file, as far as the dataset knows it."""
    if hasattr(dataset, 'source'):
        return dataset.source(index)
    name = getattr(dataset, 'ann_file', '') or getattr(dataset, 'data_root', '') or type(dataset).__name__
    try:
        paths = _image_paths(dataset.get_data_info(index))
    except Exception:
        paths = []
    return f'{name}: record {index}' + (f' ({", ".join(paths)})' if paths else '')


def num_tokens(sample: Any) -> int:
    """The number of tokens of a sample, of a preference pair that of its longer answer; -1 if it has none."""
    inputs = sample.get('inputs') if isinstance(sample, Mapping) else None
    if not isinstance(inputs, Mapping) or 'input_ids' not in inputs:
        return -1
    return max(len(each['input_ids']) for each in (inputs, inputs.get('rejected') or inputs))


def shapes_of(sample: Any) -> list[tuple[int, int]]:
    """Width and height of the image of a sample, if its data sample knows them."""
    shape = getattr(sample.get('data_samples'), 'ori_shape', None) if isinstance(sample, Mapping) else None
    return [] if shape is None else [(int(shape[1]), int(shape[0]))]


def leaves(dataset: Dataset, name: str) -> Iterator[tuple[str, Dataset]]:
    """The datasets that hold records themselves, with their config keys, inside datasets that join or wrap others."""
    inner = getattr(dataset, 'datasets', None)
    if isinstance(inner, Mapping):
        for key, part in inner.items():
            yield from leaves(part, f'{name}.{key}')
    elif isinstance(inner, (list, tuple)):
        tasks = getattr(dataset, 'names', None)
        for number, part in enumerate(inner):
            yield from leaves(part, f'{name}.tasks.{tasks[number]}.dataset' if tasks else f'{name}.datasets.{number}')
    elif isinstance(getattr(dataset, 'dataset', None), Dataset) and not hasattr(dataset, 'pipeline'):
        yield from leaves(dataset.dataset, f'{name}.dataset')
    else:
        yield name, dataset


def build(config: dict, name: str) -> tuple[list[tuple[str, Dataset]], list[str]]:
    """Build a dataset, or if it cannot be built, those datasets inside it that can.

    Returns:
        tuple: The datasets with their config keys, and the errors.
    """
    try:
        return list(leaves(DATASETS.build(config), name)), []
    except (Exception, SystemExit) as error:
        kind = '' if isinstance(error, DataError) else f'{type(error).__name__}: '
        reason = one_line(f'{name}: {kind}{error}')
    found, errors = [], []
    for key, part in _inner_configs(config, name):
        more = build(part, key)
        found, errors = found + more[0], errors + more[1]
    return found, errors or [reason]


def _inner_configs(config: dict, name: str) -> Iterator[tuple[str, dict]]:
    """The configs of datasets one level inside another one, with the transforms that a task mix adds to them."""
    tasks = {f'tasks.{key}.dataset': task.get('dataset') for key, task in (config.get('tasks') or {}).items()}
    several = {f'datasets.{number}': part for number, part in enumerate(config.get('datasets') or ())}
    single = {key: config.get(key) for key in ('gen', 'und', 'dataset')}
    more = list(config.get('pipeline') or ()) if tasks else []
    for key, part in {**tasks, **several, **single}.items():
        if isinstance(part, dict):
            yield f'{name}.{key}', {**part, 'pipeline': [*part.get('pipeline', ()), *more]} if more else part


def check(name: str, dataset: Dataset, workers: int) -> tuple[Report, bool]:
    """Read all records of a dataset and print those that cannot be used.

    Returns:
        tuple[Report, bool]: The report, and whether it was interrupted.
    """
    report = Report(name, len(dataset))
    loader = DataLoader(
        Inspection(dataset), batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None
    )
    with tqdm(total=len(dataset), unit='record', desc=name, mininterval=0.5) as bar:
        try:
            for findings in loader:
                for finding in (Finding(**fields) for fields in findings):
                    report.add(finding)
                    if finding.error:
                        tqdm.write(finding.error, file=sys.stdout)
                bar.update(len(findings))
        except KeyboardInterrupt:
            return report, True
        except RuntimeError as error:
            # A worker was killed.
            report.unusable += 1
            tqdm.write(one_line(f'{name}: after {report.read} records: {error}'), file=sys.stdout)
    return report, False


def main(argv: Sequence[str] | None = None) -> int:
    """Check the datasets and print what was found.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        int: 0 if all records can be used, 1 if not, 130 after Ctrl-C.
    """
    args = parse_args(argv)
    end_children_with_parent()
    cfg = launch.read_config(args.config, args.cfg_options)
    configs = launch.dataset_configs(cfg, *args.split)
    if not configs:
        raise launch.LaunchError(f'CONFIG: {args.config} has no data loader for {", ".join(args.split)}; add one')
    seen, reports, num_errors, interrupted = {}, [], 0, False
    try:
        for name, config in configs.items():
            same = next((other for other, given in seen.items() if given == config), None)
            seen[name] = config
            if same is not None:
                reports.append([f'{name}: the same as {same}'])
                continue
            with launch.safe_checkpoints(args.trust_checkpoint):
                datasets, errors = build(config, name)
            num_errors += len(errors)
            print(*(_with_advice(cfg, args.split, error) for error in errors), sep='\n', end='\n' if errors else '')
            for key, dataset in datasets:
                report, interrupted = check(key, dataset, args.workers)
                num_errors += report.unusable
                reports.append(list(report.lines(dataset)))
                if interrupted:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        interrupted = True
    print(*(line for lines in reports for line in lines), sep='\n')
    if interrupted:
        print(f'Interrupted. So far, {num_errors} things cannot be used.', flush=True)
        return INTERRUPTED
    print(f'{num_errors} things cannot be used.' if num_errors else 'All records can be used.', flush=True)
    return int(num_errors > 0)


def _with_advice(cfg: Config, splits: Sequence[str], error: str) -> str:
    """The error of a dataset that cannot be built. If its data root is missing, that error replaces it, with advice."""
    try:
        launch.check_data_roots(cfg, *splits)
    except launch.LaunchError as found:
        key = str(found).partition('.data_root=')[0]
        if error.startswith(f'{key}:'):
            return one_line(found)
    return error


if __name__ == '__main__':
    sys.exit(main())
