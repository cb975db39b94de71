"""Mixes the weights of two models: beta * REAL + (1 - beta) * SYN, as SPHINX does after its first stage
(https://arxiv.org/abs/2311.07575).
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from mergemix_mm.engine.launch import LaunchError
from mergemix_mm.engine.weights import StoredWeights, check_out, mix_files
from mergemix_mm.functional.weight_mix import check_beta, name_filter

T = TypeVar('T')


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'real',
        metavar='REAL',
        help='model of real data: folder of transformers, or one file of safetensors or torch.save (.pth). OUT has the '
        'same format and gets copies of the other files',
    )
    parser.add_argument('synthetic', metavar='SYN', help='model of synthetic data with the same names and shapes')
    parser.add_argument('out', metavar='OUT', type=Path, help='folder or file to write; a model there is replaced')
    parser.add_argument('--beta', type=float, required=True, help='weight of REAL, 0 (only SYN) to 1; try 0.5')
    parser.add_argument('--include', metavar='REGEX', help='mix only names that match; take others from REAL')
    parser.add_argument('--exclude', metavar='REGEX', help='do not mix names that match')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Mix, and print the path of the result.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    args = parse_args(argv)
    _named('--beta', check_beta, args.beta)
    _named('--include', name_filter, args.include)
    _named('--exclude', name_filter, None, args.exclude)
    real = _named('REAL', StoredWeights, args.real)
    synthetic = _named('SYN', StoredWeights, args.synthetic)
    _named('OUT', check_out, args.out, real, synthetic)
    with tqdm(total=real.nbytes, unit='B', unit_scale=True, desc='mixing') as bar:
        try:
            record = mix_files(real, synthetic, args.out, args.beta, args.include, args.exclude, bar.update)
        except ValueError as error:
            raise LaunchError(
                f'REAL, SYN: {error}\nWhat --include or --exclude leaves out is taken from REAL and is not compared.'
            ) from None
        except OSError as error:
            raise LaunchError(f'OUT: {error}') from None
    print(f'{record["mixed"]} tensors mixed and {record["copied"]} taken from {args.real}, written to {args.out}')


def _named(argument: str, function: Callable[..., T], *values: object) -> T:
    """Call a function; its errors name the argument of the command line."""
    try:
        return function(*values)
    except (OSError, ValueError) as error:
        raise LaunchError(f'{argument}: {error}') from None


if __name__ == '__main__':
    main()
