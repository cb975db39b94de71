"""Time and memory of the head of a language model in preference tuning: answer tokens in chunks against full logits."""

import argparse
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from lib.measure import (
    DTYPES,
    add_common_arguments,
    add_device_arguments,
    measure_arms,
    prepare,
    ratio_cells,
    write_json,
)
from torch import Tensor

from mergemix_mm.functional import answer_logps, simpo_loss
from mergemix_mm.functional.preference import IGNORE_INDEX
from mergemix_mm.utils.tables import markdown_table


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        '--pairs', type=int, nargs='+', default=[1, 4], help='winners, with as many losers (default: 1 4)'
    )
    parser.add_argument('--length', type=int, default=700, help='tokens of a sequence (default: %(default)s)')
    parser.add_argument('--answer', type=int, default=60, help='answer tokens of a sequence (default: %(default)s)')
    parser.add_argument('--vocabulary', type=int, default=32000, help='(default: %(default)s)')
    parser.add_argument('--hidden', type=int, default=1024, help='width of the hidden states (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=7, help='(default: %(default)s)')
    add_common_arguments(parser)
    add_device_arguments(parser)
    args = parser.parse_args(argv)
    if args.quick:
        args.length, args.answer, args.vocabulary, args.hidden, args.rounds = 40, 8, 50, 16, 1
    return args


def full_logits(chosen: Tensor, rejected: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The plain way: logits of every position, with cross-entropy for the first term and a gather for the other.

    The release does the same, but it runs the winner twice and gives the loser no gradient.
    """
    won, lost = (hidden @ weight.T for hidden in (chosen, rejected))
    targets = labels[:, 1:]
    sft = F.cross_entropy(won[:, :-1].float().flatten(0, 1), targets.flatten())
    return sft + simpo_loss(_gather(won, targets), _gather(lost, targets), beta=1.0, margin=0.5).mean()


def _gather(logits: Tensor, targets: Tensor) -> Tensor:
    answered = targets != IGNORE_INDEX
    logps = logits[:, :-1].float().log_softmax(dim=-1).gather(2, targets.clamp(min=0).unsqueeze(2)).squeeze(2)
    return (logps * answered).sum(dim=1) / answered.sum(dim=1)


def answer_tokens(chosen: Tensor, rejected: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """The way of `VLMTuner`: one call for winners and losers, in which the head sees only answer tokens."""
    sums, lengths = answer_logps(torch.cat([chosen, rejected]), weight, labels.repeat(2, 1))
    (won, lost), (length, _) = sums.chunk(2), lengths.chunk(2)
    return -won.sum() / length.sum() + simpo_loss(won / length, lost / length, beta=1.0, margin=0.5).mean()


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Measure a trained and a frozen head.

    Returns:
        list[dict]: For each head and number of pairs, ``times`` (s) and ``memory`` (MB) of both ways.
    """
    args = parse_args(argv)
    prepare(args)
    rows, results = [], []
    for trained, pairs in itertools.product((True, False), args.pairs):
        measured = measure(args, pairs, trained)
        times, memory = measured['times'], measured['memory']
        ratio, spread = ratio_cells(times['answers'], times['full'])
        rows.append(
            (
                'trained' if trained else 'frozen',
                pairs,
                f'{memory["full"]:.0f}',
                f'{memory["answers"]:.0f}',
                f'{memory["answers"] / memory["full"]:.2f}',
                f'{ratio} ({spread})',
            )
        )
        results.append(dict(trained=trained, pairs=pairs, **measured))
        if args.output:
            write_json(args.output, dict(benchmark='answer_head', options=vars(args), heads=results))
    header = ('head', 'pairs', 'full logits (MB)', 'answer tokens (MB)', 'memory ratio', 'time ratio (range)')
    print(markdown_table(header, rows))
    return results


def measure(args: argparse.Namespace, pairs: int, trained: bool) -> dict:
    """Times (s) and peak memory (MB) of both ways on the same random hidden states."""
    shape = (pairs, args.length, args.hidden)
    options = dict(device=args.device, dtype=DTYPES[args.dtype])
    chosen, rejected = (torch.randn(shape, requires_grad=True, **options) for _ in range(2))
    weight = (torch.randn(args.vocabulary, args.hidden, **options) * args.hidden**-0.5).requires_grad_(trained)
    labels = torch.full(shape[:2], IGNORE_INDEX, device=args.device)
    labels[:, -args.answer :] = torch.randint(args.vocabulary, (pairs, args.answer), device=args.device)

    def arm(loss_of: Callable) -> Callable[[], Tensor]:
        def step() -> Tensor:
            loss = loss_of(chosen, rejected, weight, labels)
            loss.backward()
            # Gradients that stayed would be freed in the next measurement of memory.
            for tensor in (chosen, rejected, weight):
                tensor.grad = None
            return loss.detach()

        return step

    arms = dict(full=arm(full_logits), answers=arm(answer_tokens))
    # The plain way sums log-probabilities of rounded logits.
    tolerance = 1e-4 if args.dtype == 'float32' else 1e-2
    torch.testing.assert_close(arms['answers'](), arms['full'](), rtol=tolerance, atol=tolerance, check_dtype=False)
    return measure_arms(arms, args.rounds, args.device)


if __name__ == '__main__':
    main()
