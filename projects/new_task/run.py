"""Shows what the counting task writes for drawn scenes. Nothing is trained."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mergemix_mm.toy import ShapesTaskDataset
from projects.new_task.models.counting import CountingTask


def main(argv: Sequence[str] | None = None) -> None:
    """Print questions and answers, and save the images if asked to.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--number', type=int, default=5, help='scenes to show (default: %(default)s)')
    parser.add_argument('--out', type=Path, metavar='FOLDER', help='folder for their images (default: not saved)')
    args = parser.parse_args(argv)
    dataset, task = ShapesTaskDataset('detection', length=args.number), CountingTask()
    for index in range(args.number):
        record = task(dataset[index])
        question, answer = (message['content'][-1]['text'] for message in record['messages'])
        print(f'{index}: {question} - {answer}')
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            record['images'][0].save(args.out / f'{index}.png')


if __name__ == '__main__':
    main()
