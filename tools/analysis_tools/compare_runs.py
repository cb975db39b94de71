"""Makes one table of many trainings: methods by models, mean and deviation over seeds, the best in bold.

Runs are grouped by the name of their config: MODEL_BATCH-METHOD-SCHEDULE-EPOCHS_DATA. Runs of one name whose settings
differ are different rows. Runs that did not finish are named below the table and left out.
"""

import argparse
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from _runs import Run, find_work_dirs, read_run

from mergemix_mm.utils.files import write_text
from mergemix_mm.utils.tables import markdown_table
from mergemix_mm.visualization import draw_method_scores, save_image

MEDIAN_OF = 10
SUFFIXES = ('.md', '.tex', '.png')
BATCH, EPOCHS, SCHEDULE = r'\d+xb\d+', r'\d+(e|k|i)', r'(coslr|steplr|multisteplr|linearlr|polylr|constlr)'
# A table: for each method and model the scores of its seeds.
Table = dict[str, dict[str, list[float]]]


@dataclass(frozen=True)
class Cell:
    """Where a run stands: the table of a data set, the row of a method, the column of a model."""

    data: str
    method: str
    model: str


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'work_dirs', nargs='+', type=Path, metavar='WORK_DIR', help='of a training, or a folder with several of them'
    )
    parser.add_argument('--metric', default='accuracy/top1', help='its key in the log (default: %(default)s)')
    parser.add_argument(
        '--epoch',
        choices=('last', 'best', 'median'),
        default='last',
        help='which validation counts: the last one; the best one, which is chosen on the test data and too high; or '
        f'the median of the last {MEDIAN_OF} (default: %(default)s)',
    )
    parser.add_argument('--lower-is-better', action='store_true', help='for errors, such as calibration/ece')
    parser.add_argument('--digits', type=int, default=2, help='decimal places (default: %(default)s)')
    parser.add_argument(
        '-o', '--output', nargs='+', type=Path, default=[], help='files that end in .md, .tex or .png (a figure)'
    )
    args = parser.parse_args(argv)
    for path in args.output:
        if path.suffix not in SUFFIXES:
            parser.error(f'--output {path} must end in one of {", ".join(SUFFIXES)}')
    if args.digits < 0:
        parser.error(f'--digits {args.digits} must be at least 0')
    return args


def place(name: str) -> Cell:
    """The place of a config by its name; a name of another form is a row of its own."""
    fields = name.split('_')
    parts = fields[1].split('-') if len(fields) == 3 else []
    if not parts or not re.fullmatch(BATCH, parts[0]):
        return Cell('', name, '')
    epochs = next((part for part in parts if re.fullmatch(EPOCHS, part)), None)
    method = [part for part in parts[1:] if part != epochs and not re.fullmatch(SCHEDULE, part)]
    return Cell(fields[2], '-'.join(method) or 'none', f'{fields[0]}, {epochs}' if epochs else fields[0])


def cells(runs: Sequence[Run]) -> dict[Cell, list[Run]]:
    """Group runs by their places; where settings of one name differ, the row says in what."""
    names: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        names[run.name].append(run)
    grouped: dict[Cell, list[Run]] = defaultdict(list)
    for name, group in names.items():
        keys = sorted({key for run in group for key in run.settings})
        different = [key for key in keys if len({repr(run.settings.get(key)) for run in group}) > 1]
        for run in group:
            cell = place(name)
            if different:
                options = ', '.join(f'{key}={run.settings.get(key)}' for key in different)
                cell = Cell(cell.data, f'{cell.method} ({options})', cell.model)
            grouped[cell].append(run)
    return grouped


def value_of(run: Run, epoch: str, lower_is_better: bool) -> float:
    """The number of a run that counts."""
    values = [run.values[step] for step in sorted(run.values)]
    if epoch == 'best':
        return min(values) if lower_is_better else max(values)
    return values[-1] if epoch == 'last' else statistics.median(values[-MEDIAN_OF:])


def collect(args: argparse.Namespace) -> tuple[dict[str, Table], list[str]]:
    """Read all runs.

    Args:
        args (argparse.Namespace): The command line.

    Returns:
        tuple: For each data set the scores of each method and model, and a line for each run that was left out.

    Raises:
        SystemExit: If nothing is left.
    """
    runs, left_out = [], []
    for work_dir in find_work_dirs(args.work_dirs):
        run = read_run(work_dir, args.metric)
        if run.finished:
            runs.append(run)
        elif run.metrics and args.metric not in run.metrics:
            left_out.append(f'{work_dir}: no {args.metric} in its log, which has {", ".join(sorted(run.metrics))}')
        else:
            left_out.append(f'{work_dir}: not finished, validated at {run.reached} of {run.total}')
    tables: dict[str, Table] = defaultdict(lambda: defaultdict(dict))
    for cell, group in cells(runs).items():
        found: dict[tuple, Run] = {}
        for run in group:
            # Runs without a seed are different ones.
            key = run.seeds or (run.work_dir,)
            if key in found:
                left_out.append(f'{run.work_dir}: the same config and seed as {found[key].work_dir}')
            else:
                found[key] = run
        scores = [value_of(run, args.epoch, args.lower_is_better) for run in found.values()]
        tables[cell.data][cell.method][cell.model] = scores
    if not tables:
        raise SystemExit('WORK_DIR: no finished run.\n' + '\n'.join(left_out))
    return tables, left_out


def write_table(table: Table, args: argparse.Namespace, bold: Callable[[str], str], between: str) -> tuple[list, list]:
    """Header and rows of a table; the best mean of each column in bold, also where several are equal as shown.

    Args:
        table (Table): The scores.
        args (argparse.Namespace): The command line.
        bold (Callable[[str], str]): Makes a text bold.
        between (str): What stands between mean and deviation.
    """
    models = list(dict.fromkeys(model for row in table.values() for model in row))
    usual = Counter(len(scores) for row in table.values() for scores in row.values()).most_common(1)[0][0]

    def mean(scores: Sequence[float]) -> str:
        return f'{statistics.mean(scores):.{args.digits}f}'

    best = {
        model: (min if args.lower_is_better else max)(
            (mean(row[model]) for row in table.values() if model in row), key=float
        )
        for model in models
    }
    rows = []
    for method, row in table.items():
        texts: list[str | None] = [method]
        for model in models:
            scores = row.get(model)
            if scores is None:
                texts.append(None)
                continue
            text = bold(mean(scores)) if mean(scores) == best[model] else mean(scores)
            if len(scores) > 1:
                text += f'{between}{statistics.stdev(scores):.{args.digits}f}'
            texts.append(text if len(scores) == usual else f'{text} (n={len(scores)})')
        rows.append(texts)
    return ['method', *(model or args.metric for model in models)], rows


def caption(data: str, table: Table, args: argparse.Namespace) -> str:
    """What the numbers are."""
    numbers = Counter(len(scores) for row in table.values() for scores in row.values())
    seeds = numbers.most_common(1)[0][0]
    which = {'last': 'last validation', 'best': 'best validation', 'median': f'median of the last {MEDIAN_OF}'}
    over = f'mean ± standard deviation over {seeds} runs' if seeds > 1 else 'one run each'
    return f'{data + ": " if data else ""}{args.metric}, {which[args.epoch]}, {over}'


def as_markdown(tables: dict[str, Table], left_out: Sequence[str], args: argparse.Namespace) -> str:
    """All tables, each below a line that says what its numbers are."""
    parts = []
    for data, table in tables.items():
        header, rows = write_table(table, args, lambda text: f'**{text}**', ' ± ')
        parts.append(f'{caption(data, table, args)}\n\n{markdown_table(header, rows)}')
    if left_out:
        parts.append('Left out:\n\n' + '\n'.join(f'- {line}' for line in left_out))
    return '\n\n'.join(parts)


def as_latex(tables: dict[str, Table], args: argparse.Namespace) -> str:
    """All tables with the rules of the package booktabs."""

    def escaped(text: str) -> str:
        return re.sub(r'([_%&#$])', r'\\\1', text).replace('±', r'$\pm$')

    parts = []
    for data, table in tables.items():
        header, rows = write_table(table, args, lambda text: rf'\textbf{{{text}}}', ' ± ')
        lines = [
            f'% {caption(data, table, args)}',
            rf'\begin{{tabular}}{{l{"r" * (len(header) - 1)}}}',
            r'\toprule',
            ' & '.join(map(escaped, header)) + r' \\',
            r'\midrule',
            *(' & '.join('--' if cell is None else escaped(cell) for cell in row) + r' \\' for row in rows),
            r'\bottomrule',
            r'\end{tabular}',
        ]
        parts.append('\n'.join(lines))
    return '\n\n'.join(parts)


def figure_panels(tables: dict[str, Table]) -> dict[str, dict[str, list[float]]]:
    """The scores by panel: one for each model of each data set."""
    panels: dict[str, dict[str, list[float]]] = defaultdict(dict)
    for data, table in tables.items():
        for method, row in table.items():
            for model, scores in row.items():
                panels[': '.join(filter(None, (data, model)))][method] = scores
    return panels


def main(argv: Sequence[str] | None = None) -> dict[str, Table]:
    """Print the table, and write the files.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.

    Returns:
        dict[str, Table]: For each data set the scores of each method and model, one for each seed.
    """
    args = parse_args(argv)
    tables, left_out = collect(args)
    markdown = as_markdown(tables, left_out, args)
    print(markdown)
    for path in args.output:
        if path.suffix == '.png':
            save_image(draw_method_scores(figure_panels(tables), args.metric, args.lower_is_better), path)
        else:
            write_text(path, (markdown if path.suffix == '.md' else as_latex(tables, args)) + '\n')
        print(f'\nWritten to {path}')
    return tables


if __name__ == '__main__':
    main()
