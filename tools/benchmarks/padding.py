"""What a language model computes for batches that are padded, grouped by length, or packed, per useful token."""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from unittest import mock

import numpy as np
from lib.lengths import DISTRIBUTION, Records, add_length_arguments, draw_records
from lib.measure import add_common_arguments, prepare, write_json

from mergemix_mm.datasets import ModalitySampler
from mergemix_mm.datasets.mixtures import samplers
from mergemix_mm.utils.tables import markdown_table

# Multiplications in a layer of LLaVA-1.5-7B (Llama 2): of a token in its linear layers, of a pair of tokens in its
# attention. Their ratio says how much attention counts.
PER_TOKEN, PER_PAIR = 4 * 4096**2 + 3 * 4096 * 11008, 2 * 4096
# Orders of the records and ways to compute a batch, by the name of the arm.
ARMS = {
    'padded, any order': ('any', 'padded'),
    'padded, one modality': ('modality', 'padded'),
    'padded, group_by_length': ('length', 'padded'),
    'packed, one modality': ('modality', 'packed'),
    'packed, group_by_length': ('length', 'packed'),
    'one row with a dense mask': ('modality', 'dense'),
}
COLUMNS = dict(
    tokens='tokens',
    pairs='pairs of attention',
    work='work of a 7B decoder',
    slowest='slowest rank',
    largest='most tokens of a step',
    mask_mb='largest mask (MB)',
)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Nothing is timed: lengths are drawn, the sampler of this package makes the batches, and tokens and '
        f'pairs of tokens are counted. {DISTRIBUTION} Attention with a mask computes all pairs of a row, causal '
        'attention half of them.',
    )
    parser.add_argument('--records', type=int, default=665_000, help='(default: %(default)s)')
    parser.add_argument('--batch-size', type=int, default=16, help='per rank (default: %(default)s)')
    parser.add_argument('--ranks', type=int, default=8, help='(default: %(default)s)')
    add_length_arguments(parser)
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.records = 5000
    return args


def batches(records: Records, args: argparse.Namespace, order: str) -> np.ndarray:
    """The tokens of each sample of an epoch, [steps, ranks, batch size].

    Args:
        records (Records): Of an epoch.
        args (argparse.Namespace): With ``batch_size``, ``ranks`` and ``seed``.
        order (str): ``'any'``: shuffled; ``'modality'``: batches of one modality; ``'length'``: of similar lengths too.
    """
    if order == 'any':
        records = replace(records, modalities=np.zeros_like(records.modalities))
    found = []
    for rank in range(args.ranks):
        with mock.patch.object(samplers, 'get_dist_info', return_value=(rank, args.ranks)):
            sampler = ModalitySampler(records, args.batch_size, seed=args.seed, group_by_length=order == 'length')
        found.append(records.tokens[list(sampler)].reshape(-1, args.batch_size))
    return np.stack(found, axis=1)


def count(tokens: np.ndarray, way: str) -> dict[str, float]:
    """What the batches cost.

    Args:
        tokens (np.ndarray): [steps, ranks, batch size], of each sample.
        way (str): ``'padded'``: rows as long as the longest sample, with a mask; ``'packed'``: ``packed=True``;
            ``'dense'``: one row, with the mask of the whole row that transformers makes for torch's attention.

    Returns:
        dict: ``tokens`` and ``pairs`` (of attention) per useful one, ``work`` of a 7B decoder per useful work,
        ``slowest`` (the same, if all ranks wait for the one with the most work), ``largest``, the most tokens that a
        rank computes in a step, and ``mask_mb``, the largest mask at one byte per pair.
    """
    useful, useful_pairs = tokens.sum(axis=2), (tokens**2 / 2).sum(axis=2)
    size, longest = tokens.shape[2], tokens.max(axis=2)
    computed = size * longest if way == 'padded' else useful
    pairs = dict(padded=size * longest**2, packed=useful_pairs, dense=useful**2)[way]
    work = PER_TOKEN * computed + PER_PAIR * pairs
    useful_work = PER_TOKEN * useful + PER_PAIR * useful_pairs
    return dict(
        tokens=float(computed.sum() / useful.sum()),
        pairs=float(pairs.sum() / useful_pairs.sum()),
        work=float(work.sum() / useful_work.sum()),
        slowest=float(work.max(axis=1).sum() / useful_work.mean(axis=1).sum()),
        largest=float(computed.max()),
        mask_mb=0.0 if way == 'packed' else float(pairs.max() / 2**20),
    )


def main(argv: Sequence[str] | None = None) -> dict[str, dict]:
    """Count all arms, and print them.

    Returns:
        dict: What :func:`count` returns, by the name of the arm.
    """
    args = parse_args(argv)
    prepare(args)
    records = draw_records(args.records, args)
    orders = {order: batches(records, args, order) for order in ('any', 'modality', 'length')}
    found = {name: count(orders[order], way) for name, (order, way) in ARMS.items()}
    text = records.text
    print(
        f'{args.records} records, text of {np.median(text):.0f} tokens (median; mean {text.mean():.0f}, 90% below '
        f'{np.quantile(text, 0.9):.0f}), batches of {args.batch_size} on {args.ranks} ranks.\n'
    )
    digits = dict(largest=0, mask_mb=0)
    rows = [(name, *(f'{one[key]:.{digits.get(key, 2)}f}' for key in COLUMNS)) for name, one in found.items()]
    print(markdown_table(('batches', *COLUMNS.values()), rows))
    if args.output:
        write_json(args.output, dict(benchmark='padding', options=vars(args), arms=found))
    return found


if __name__ == '__main__':
    main()
