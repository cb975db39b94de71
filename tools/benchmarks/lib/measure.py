"""Timing and peak memory on a CPU or a GPU, common options, and results in JSON."""

import argparse
import gc
import json
import math
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# torch's profiler reports every start and stop, unless this is set before it is loaded.
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

import torch
from torch.profiler import ProfilerActivity, profile

from mergemix_mm.utils import files

CLOCKS = ('wall', 'processor')
DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that every benchmark has: --output, --seed, --threads, --quick."""
    parser.add_argument('--output', type=Path, help='also write the numbers to this JSON file')
    parser.add_argument('--seed', type=int, default=0, help='seed of weights, images and draws (default: %(default)s)')
    parser.add_argument('--threads', type=int, help='threads of torch (default: its own choice)')
    parser.add_argument('--quick', action='store_true', help='tiny sizes, which show that it runs and measure nothing')


def add_device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype, for benchmarks that run on a GPU as well."""
    parser.add_argument('--device', type=torch.device, default='cpu', help='cpu or cuda (default: %(default)s)')
    parser.add_argument(
        '--dtype', choices=DTYPES, default='float32', help='dtype of autocast, or of the tensors (default: %(default)s)'
    )


def add_clock_argument(parser: argparse.ArgumentParser) -> None:
    """Add --clock, for benchmarks whose ratios are close to 1."""
    parser.add_argument(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help='wall: time that passes; processor: time of this process on a CPU, which other load changes less. Use it '
        'with --threads 1 (default: %(default)s)',
    )


def prepare(args: argparse.Namespace) -> None:
    """Set the threads and the seed of the command line."""
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)


def autocast(args: argparse.Namespace) -> torch.autocast:
    """Autocast to --dtype on --device; with float32 it does nothing."""
    return torch.autocast(args.device.type, DTYPES[args.dtype], enabled=args.dtype != 'float32')


def interleaved_times(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    device: torch.device | str = 'cpu',
    clock: str = 'wall',
) -> dict[str, list[float]]:
    """Time the arms in turns, so that other load on the machine affects all of them alike.

    Every other round has the reverse order, so that no arm always follows the same one.

    Args:
        arms (Mapping[str, Callable]): The functions to time, by name.
        rounds (int): Number of times that each arm is timed, >= 1.
        warmup (int): Number of rounds before these, which are not counted. Defaults to 1.
        device (torch.device | str): The device of the arms. On CUDA, events around the call are used after the queue is
            empty. Defaults to ``'cpu'``.
        clock (str): ``'wall'``, or ``'processor'``: the time of this process on a CPU. Defaults to ``'wall'``.

    Returns:
        dict[str, list[float]]: The seconds of each arm in each round.

    Raises:
        ValueError: If rounds < 1.
    """
    if rounds < 1:
        raise ValueError(f'rounds={rounds} must be at least 1')
    times: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(warmup + rounds):
        for name in list(arms)[:: -1 if i % 2 else 1]:
            seconds = _seconds(arms[name], torch.device(device), clock)
            if i >= warmup:
                times[name].append(seconds)
    return times


def _seconds(function: Callable[[], object], device: torch.device, clock: str) -> float:
    if device.type != 'cuda':
        read = time.process_time if clock == 'processor' else time.perf_counter
        begin = read()
        function()
        return read() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    function()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1000


def median_ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """The median over the rounds of the ratio of time and reference time in the same round."""
    return statistics.median(a / b for a, b in zip(times, reference, strict=True))


def ratio_range(times: Sequence[float], reference: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest of the ratios that :func:`median_ratio` takes the median of."""
    ratios = [a / b for a, b in zip(times, reference, strict=True)]
    return min(ratios), max(ratios)


def ratio_cells(times: Sequence[float], reference: Sequence[float]) -> tuple[str, str]:
    """The median ratio and the range of the ratios, as cells of a table."""
    low, high = ratio_range(times, reference)
    return f'{median_ratio(times, reference):.2f}', f'{low:.2f} - {high:.2f}'


def measure_arms(
    arms: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device | str = 'cpu',
    clock: str = 'wall',
    warmup: int = 1,
) -> dict[str, dict]:
    """The ``times`` (s, for each round) and the peak ``memory`` (MB) of the arms, by name."""
    times = interleaved_times(arms, rounds, warmup, device, clock)
    return dict(times=times, memory={name: peak_memory(arm, device) for name, arm in arms.items()})


def peak_memory(function: Callable[[], object], device: torch.device | str = 'cpu') -> float:
    """The peak of the tensor memory that a call allocates, above what is held when it starts.

    On a CPU, it is the sum over all allocations that torch's profiler records. Unlike the resident memory of the
    process, it depends neither on what malloc keeps nor on the arms that ran before, and it is repeatable. It does not
    include workspaces of a BLAS library. On a GPU, torch's caching allocator counts it.

    Args:
        function (Callable): Called once.
        device (torch.device | str): The device whose memory is measured. Defaults to ``'cpu'``.

    Returns:
        float: The peak in MB (2**20 bytes).
    """
    gc.collect()
    device = torch.device(device)
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - held) / 2**20
    with warnings.catch_warnings():
        # torch warns that events of earlier cycles are lost, but there are none. With acc_events=True, which keeps
        # them, it would parse all events, which takes longer than the call itself.
        warnings.simplefilter('ignore', UserWarning)
        profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
        profiler.start()
    try:
        function()
    finally:  # Left on, it would record all that the process does, and add it to the next measurement.
        profiler.stop()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    events = sorted((event for event in events if event['name'] == '[memory]'), key=lambda event: event['ts'])
    held = peak = 0
    for event in events:
        held += event['args']['Bytes']
        peak = max(peak, held)
    return peak / 2**20


def kernels(function: Callable[[], object], device: torch.device | str) -> tuple[int, float] | None:
    """Number and total time (s) of the kernels that a call runs on a GPU; None on a CPU.

    If the call takes longer than its kernels, the GPU waits for work.

    Args:
        function (Callable): Called once.
        device (torch.device | str): The device of the call.
    """
    found = kernels_by_name(function, device)
    if found is None:
        return None
    return sum(len(times) for times in found.values()), math.fsum(map(sum, found.values()))


def kernels_by_name(function: Callable[[], object], device: torch.device | str) -> dict[str, list[float]] | None:
    """Times (s) of the kernels that a call runs on a GPU, the name with the most time first; None on a CPU.

    Args:
        function (Callable): Called once.
        device (torch.device | str): The device of the call.
    """
    if torch.device(device).type != 'cuda':
        return None
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as profiler:
        function()
        torch.cuda.synchronize(device)
    found: dict[str, list[float]] = {}
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            found.setdefault(event.name, []).append(event.self_device_time_total / 1e6)
    return dict(sorted(found.items(), key=lambda item: -sum(item[1])))


def machine_info() -> dict:
    """The versions and the machine, on which the numbers depend besides the code."""
    return dict(
        torch=torch.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        threads=torch.get_num_threads(),
        cpus=os.cpu_count(),
        load_average=os.getloadavg() if hasattr(os, 'getloadavg') else None,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_initialized() else None,
    )


def write_json(path: Path, results: dict) -> None:
    """Write results with a description of the machine. The file is either complete or does not exist.

    Args:
        path (Path): The file. Its folder is created.
        results (dict): Numbers, strings, lists and dictionaries.
    """
    files.write_json(path, dict(machine=machine_info(), **results), default=str)
