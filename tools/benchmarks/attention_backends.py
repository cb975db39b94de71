"""Attention of AIA on a GPU: the fastest way to the intensity by head width, length and kernel.

It times one attention layer, forward, and backward through output and intensity. The ways are torch's attention without
the intensity, each backend of `attention_with_intensity` with the kernel that torch picks and with others, and
FlexAttention, which returns its log-sum-exp. Before they are timed, they are compared with attention maps in float64.
"""

import argparse
import contextlib
import functools
import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from lib.measure import (
    DTYPES,
    add_common_arguments,
    add_device_arguments,
    interleaved_times,
    kernels_by_name,
    peak_memory,
    prepare,
    write_json,
)
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention import flex_attention as flex

from mergemix_mm.functional import attention_with_intensity
from mergemix_mm.functional.lse_attention import Places
from mergemix_mm.utils.tables import markdown_table

PLAIN, FLEX, MAPS = 'sdpa, no intensity', 'flex_attention', 'eager'
WAYS = (PLAIN, 'fused', 'lse', FLEX, MAPS)
KERNELS = dict(
    picked=None,
    flash=SDPBackend.FLASH_ATTENTION,
    cudnn=SDPBackend.CUDNN_ATTENTION,
    efficient=SDPBackend.EFFICIENT_ATTENTION,
)
# Approximate number of float32 maps that the eager way and its backward pass hold at the same time.
MAPS_AT_ONCE = 8
# Length of the comparison with float64.
SMALL_LENGTH = 256


@dataclass(frozen=True)
class Case:
    """Ways that are measured together.

    Args:
        width (int): The width of a head.
        length (int): The number of tokens.
        task (str): In ``'gen'``, the image, which is all tokens after the prompt, attends to the prompt. In ``'und'``,
            as many tokens as the prompt has, at the end, attend to the image, which is half of all tokens. Defaults
            to ``'gen'``.
        kernel (str): One of KERNELS. Defaults to ``'picked'``, the one that torch picks.
        ways (tuple[str, ...]): Some of WAYS. Defaults to those that need no compiler.
    """

    width: int
    length: int
    task: str = 'gen'
    kernel: str = 'picked'
    ways: tuple[str, ...] = (PLAIN, 'fused', 'lse', MAPS)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Rows are written to --output as soon as they are measured. The most important cases come first: '
        'the first length at every width. The ways of a case take turns. ms: of a call; busy: of its kernels; '
        'MB: tensors above the inputs; error, dq, dk: error of the intensity, relative errors of the gradients.',
    )
    parser.add_argument('--widths', type=int, nargs='+', default=[64, 128, 96], help='(default: %(default)s)')
    parser.add_argument('--lengths', type=int, nargs='+', default=[2304, 1152, 4608], help='(default: %(default)s)')
    parser.add_argument('--batch', type=int, default=4, help='samples (default: %(default)s)')
    parser.add_argument('--heads', type=int, default=16, help='(default: %(default)s)')
    parser.add_argument('--prompt', type=int, default=40, help='prompt tokens (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=10, help='calls per way (default: %(default)s)')
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=list(WAYS), help='(default: all)')
    add_device_arguments(parser)
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.widths, args.lengths, args.batch, args.heads, args.prompt, args.rounds = [8, 16], [48], 2, 2, 8, 1
    if 4 * args.prompt > min(args.lengths):
        parser.error(f'--prompt {args.prompt} must be at most a quarter of every length')
    return args


def cases(args: argparse.Namespace) -> list[Case]:
    """All cases, the most important first."""
    first, *others = args.lengths
    kernels = list(KERNELS)[1:] if args.device.type == 'cuda' else []
    found = [Case(width, first) for width in args.widths]
    found += [
        Case(width, first, kernel=kernel, ways=(PLAIN, 'fused', 'lse'))
        for kernel, width in itertools.product(kernels, args.widths)
    ]
    found.append(Case(args.widths[0], first, 'und'))
    found += [Case(width, length) for length, width in itertools.product(others, args.widths)]
    # FlexAttention comes last, because it compiles for every shape.
    found += [Case(width, first, ways=(PLAIN, 'lse', FLEX)) for width in args.widths]
    return [replace(case, ways=tuple(way for way in case.ways if way in args.ways)) for case in found]


class Inputs:
    """Query, key and value in the memory layout of layers, masks and gradients. All ways of a case share them."""

    def __init__(self, args: argparse.Namespace, case: Case, batch: int, length: int) -> None:
        generator = torch.Generator(args.device).manual_seed(args.seed)
        shape, options = (batch, length, args.heads, case.width), dict(device=args.device)
        drawn = [torch.randn(shape, generator=generator, **options).to(DTYPES[args.dtype]) for _ in range(4)]
        *self.tensors, grad = (x.transpose(1, 2) for x in drawn)
        places = torch.arange(length, device=args.device).expand(shape[0], -1)
        if case.task == 'gen':
            self.masks = places >= args.prompt, places < args.prompt
        else:
            image = (places >= args.prompt) & (places < args.prompt + length // 2)
            self.masks = places >= length - args.prompt, image
        self.places = tuple(Places.of(mask) for mask in self.masks)
        # The gradients through output and intensity have about the same size, so that errors of both show.
        self.grads = grad / math.sqrt(case.width), torch.full((shape[0],), float(args.heads * length), **options)
        for tensor in self.tensors:
            tensor.requires_grad_()

    def to(self, dtype: torch.dtype) -> 'Inputs':
        """The same numbers in another dtype."""
        other = object.__new__(Inputs)
        other.__dict__.update(self.__dict__)
        other.tensors = [tensor.detach().to(dtype).requires_grad_() for tensor in self.tensors]
        other.grads = tuple(grad.to(dtype) for grad in self.grads)
        return other


def forward(inputs: Inputs, way: str) -> tuple[Tensor, Tensor | None]:
    """The output, and the intensity if the way computes it."""
    if way == PLAIN:
        return F.scaled_dot_product_attention(*inputs.tensors, is_causal=True), None
    if way == FLEX:
        return flex_way(inputs)
    places = inputs.places if way == 'lse' else None
    return attention_with_intensity(*inputs.tensors, *inputs.masks, is_causal=True, backend=way, places=places)


def step(inputs: Inputs, way: str, kernel: str = 'picked') -> tuple[Tensor, Tensor | None, tuple[Tensor, ...]]:
    """Output, intensity and the gradients of query, key and value."""
    with contextlib.nullcontext() if kernel == 'picked' else sdpa_kernel(KERNELS[kernel]):
        output, intensity = forward(inputs, way)
    roots, grads = ((output,), inputs.grads[:1]) if intensity is None else ((output, intensity), inputs.grads)
    return output, intensity, torch.autograd.grad(roots, inputs.tensors, grads)


# --- FlexAttention, which the package does not use --------------------------------------------------


def flex_way(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output and intensity from the log-sum-exp of flex_attention, which is differentiable."""
    query, key, value = inputs.tensors
    scale = query.size(-1) ** -0.5
    request = dict(return_aux=flex.AuxRequest(lse=True)) if hasattr(flex, 'AuxRequest') else dict(return_lse=True)
    attention = _compiled_flex() if query.is_cuda else flex.flex_attention
    output, lse = attention(query, key, value, block_mask=_causal(query.size(2), query.device), scale=scale, **request)
    lse = getattr(lse, 'lse', lse)
    queries, keys = inputs.places
    logits = queries.take(query).float() @ keys.take(key).float().mT * scale - queries.take(lse).unsqueeze(3)
    positions, key_positions = queries.positions(query.size(2)), keys.positions(key.size(2))
    allowed = queries.real.unsqueeze(2) & keys.real.unsqueeze(1)
    allowed = allowed & (key_positions.unsqueeze(1) <= positions.unsqueeze(2))
    shares = torch.where(allowed.unsqueeze(1), logits, -torch.inf).exp().sum(dim=3)
    return output, shares.mean(dim=1).sum(dim=1) / queries.real.sum(dim=1)


@functools.cache
def _compiled_flex() -> Callable:
    return torch.compile(flex.flex_attention, dynamic=False)


@functools.cache
def _causal(length: int, device: torch.device) -> flex.BlockMask:
    return flex.create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, device=device)


# --- Measurements ------------------------------------------------------------------------------------------------


def errors(args: argparse.Namespace, case: Case, way: str) -> dict[str, float]:
    """Largest error of the intensity, and relative errors (in the norm) of the rest, against float64 maps.

    The gradients are those through output and intensity, and those through the intensity only.
    """
    if way == FLEX:
        # A smaller size would have to be compiled as well.
        inputs = Inputs(args, case, args.batch, case.length)
    else:
        inputs = Inputs(args, case, 1, min(case.length, SMALL_LENGTH))
    relative = lambda a, b: float(((a.double() - b).norm() / b.norm().clamp(min=1e-30)).detach())  # noqa: E731
    exact, (output, intensity, grads) = step(inputs.to(torch.float64), MAPS), step(inputs, way, case.kernel)
    found = dict(output=relative(output, exact[0]))
    if way == PLAIN:
        return found
    found['intensity'] = float((intensity - exact[1]).detach().abs().max())
    found |= {name: relative(a, b) for name, a, b in zip(('dq', 'dk', 'dv'), grads, exact[2], strict=True)}
    inputs.grads = torch.zeros_like(inputs.grads[0]), inputs.grads[1]
    exact, (_, _, grads) = step(inputs.to(torch.float64), MAPS), step(inputs, way, case.kernel)
    return found | {f'{name} of the intensity': relative(grads[i], exact[2][i]) for i, name in enumerate(('dq', 'dk'))}


def measure(args: argparse.Namespace, case: Case) -> list[dict]:
    """A row for each way: its cost, its errors and its kernels, or the reason why it does not run."""
    inputs, functions = Inputs(args, case, args.batch, case.length), {}
    rows = {way: dict(vars(case), ways=None, way=way) for way in case.ways}
    for way, row in rows.items():
        function = functools.partial(step, inputs, way, case.kernel)
        try:
            if way == MAPS and not maps_fit(args, case):
                raise RuntimeError('maps of this size do not fit')
            row['errors'] = errors(args, case, way)
            function()
            row['memory_mb'] = peak_memory(function, args.device)
            found = kernels_by_name(function, args.device) or {}
        except Exception as error:
            # Kernels raise various errors for widths that they do not support. This is a result as well.
            row['error'] = f'{type(error).__name__}: {error}'.splitlines()[0][:300]
            continue
        row['kernel_milliseconds'] = 1000 * sum(map(sum, found.values())) or None
        row['kernels'] = {name[:200]: 1000 * sum(times) for name, times in list(found.items())[:4]}
        row['launches'] = sum(map(len, found.values())) or None
        functions[way] = function
    if functions:
        for way, seconds in interleaved_times(functions, args.rounds, device=args.device).items():
            rows[way]['milliseconds'] = [1000 * value for value in seconds]
    return list(rows.values())


def maps_fit(args: argparse.Namespace, case: Case) -> bool:
    """Whether the eager way fits into half of the free memory of the GPU."""
    if args.device.type != 'cuda':
        return True
    return 4 * MAPS_AT_ONCE * args.batch * args.heads * case.length**2 < torch.cuda.mem_get_info()[0] / 2


def table(rows: Sequence[dict]) -> str:
    """A line for each row: median time, time of the kernels, memory, errors, and the name of the longest kernel."""
    lines = []
    for row in rows:
        found, times, busy = row.get('errors', {}), row.get('milliseconds'), row.get('kernel_milliseconds')
        lines.append(
            (
                *(row[name] for name in ('width', 'length', 'task', 'kernel', 'way')),
                f'{statistics.median(times):.3f}' if times else None,
                f'{busy:.3f}' if busy else None,
                f'{row["memory_mb"]:.0f}' if 'memory_mb' in row else None,
                *(f'{found[name]:.1e}' if name in found else None for name in ('intensity', 'dq', 'dk')),
                next(iter(row.get('kernels', {})), row.get('error', '-'))[:60],
            )
        )
    header = ['width', 'length', 'task', 'kernel', 'way', 'ms', 'busy', 'MB', 'error', 'dq', 'dk', 'longest']
    return markdown_table(header, lines)


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measure case by case."""
    args = parse_args(argv)
    prepare(args)
    rows = []
    for case in cases(args):
        rows += (found := measure(args, case))
        print(table(found), flush=True)
        if args.output:
            write_json(args.output, dict(benchmark='attention_backends', options=vars(args), rows=rows))
    return rows


if __name__ == '__main__':
    main()
