"""Trains the tiny config of every method and writes one HTML page with their figures and numbers."""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from _entries import ENTRIES, Entry
from _page import Section, make_page

from mergemix_mm.engine.launch import LaunchError
from mergemix_mm.utils.files import write_json, write_text

ROOT = Path(__file__).resolve().parents[2]
STATE = 'gallery.json'
Execute = Callable[[list[str], Path], None]


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog='Finished runs are not repeated, and an interrupted run continues. Remove its folder to start again.',
    )
    parser.add_argument(
        '--work-dir', type=Path, help='(default: work_dirs/gallery, with --quick work_dirs/gallery_quick)'
    )
    parser.add_argument(
        '--only', nargs='+', choices=[entry.name for entry in ENTRIES], help='methods to show (default: all)'
    )
    parser.add_argument(
        '--quick', action='store_true', help='a few steps each, which show that it runs and nothing else'
    )
    args = parser.parse_args(argv)
    args.work_dir = args.work_dir or Path('work_dirs', 'gallery_quick' if args.quick else 'gallery')
    return args


def execute(command: list[str], log: Path) -> None:
    """Run a tool of this repository in a separate process.

    Raises:
        SystemExit: If it fails. The message names its log.
    """
    with log.open('a') as output:
        done = subprocess.run([sys.executable, *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        raise LaunchError(f'python {" ".join(command)}: failed, see the end of {log}')


def run_entry(entry: Entry, folder: Path, quick: bool, execute: Execute) -> list[dict]:
    """Run the commands of an entry that are not done yet.

    Args:
        entry (Entry): The method.
        folder (Path): Its folder, which records the finished commands.
        quick (bool): Whether to use the quick options.
        execute (Callable): Runs a command, given as words, with the file for its output.

    Returns:
        list[dict]: ``command`` and ``seconds`` of each command.

    Raises:
        SystemExit: If the folder holds the results of other commands, or a command fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / STATE
    done = json.loads(state.read_text()) if state.exists() else []
    for number, step in enumerate(entry.steps):
        words = f'{step.command} {step.quick if quick else ""}'.split()
        command = ' '.join(words).format(folder=folder, checkpoint='CHECKPOINT')
        if number < len(done):
            if done[number]['command'] != command:
                raise LaunchError(
                    f'{folder} holds the results of other commands, such as python {done[number]["command"]}: remove '
                    'it, or name another --work-dir'
                )
            continue
        print(f'{entry.name}: python {command}', flush=True)
        start, places = time.time(), dict(folder=folder, checkpoint=last_checkpoint(folder))
        execute([word.format(**places) for word in words], folder / 'output.log')
        done.append(dict(command=command, seconds=time.time() - start))
        write_json(state, done)
    return done


def last_checkpoint(folder: Path) -> str:
    """The checkpoint that the last training of a folder wrote; '' if there is none."""
    marker = folder / 'last_checkpoint'
    return marker.read_text().strip() if marker.exists() else ''


def main(argv: Sequence[str] | None = None, execute: Execute = execute) -> Path:
    """Run what is missing and write the page again after each entry.

    Args:
        argv (Sequence[str], optional): The command line. Defaults to that of the process.
        execute (Callable): See :func:`run_entry`.

    Returns:
        Path: The page.
    """
    args = parse_args(argv)
    work_dir, sections = args.work_dir.resolve(), []
    page = work_dir / 'index.html'
    for entry in ENTRIES:
        if args.only and entry.name not in args.only:
            continue
        missing = [name for name in entry.needs if importlib.util.find_spec(name) is None]
        if missing:
            section = Section(
                entry, [], None, f'Not run, as {" and ".join(missing)} cannot be imported: see docs/faq.md.'
            )
        else:
            done = run_entry(entry, work_dir / entry.name, args.quick, execute)
            section = Section(entry, done, entry.show(work_dir / entry.name))
        sections.append(section)
        write_text(page, make_page(sections, args.quick, ROOT))
    print(f'Gallery: {page}', flush=True)
    return page


if __name__ == '__main__':
    main()
