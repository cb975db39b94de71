"""Finds the checkpoint from which an interrupted run resumes."""

import re
import zipfile
from logging import WARNING
from pathlib import Path

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log

from ...utils import files
from ...utils.text import one_line
from ..hooks.atomic_checkpoint_hook import name_pattern
from ..hooks.plain_checkpoint_hook import find_unresumable
from ..weights.sharded_checkpoint import INDEX, REST, ShardedCheckpoint, is_sharded

LAST = 'last_checkpoint'


def choose_checkpoint(runner) -> None:
    """Choose the newest checkpoint that can be loaded, the same on all processes, for a Runner that resumes by itself.

    MMEngine takes the checkpoint that the file ``last_checkpoint`` names, and stops if that is damaged or was moved. A
    checkpoint that the user named is never replaced: the run resumes from it, or stops.

    Args:
        runner (Runner | FlexibleRunner): Built, but not training yet; changed in place.
    """
    if getattr(runner, '_resume', None) is not True or runner._load_from is not None:
        return
    found: list[str | None] = [None]
    if is_main_process():
        found[0] = _newest_checkpoint(runner)
    broadcast_object_list(found)
    if found[0] is None:
        print_log(f'--resume: there is nothing to resume from in {runner.work_dir}, so the run starts anew.', 'current')
        runner._resume = False
    else:
        print_log(f'Auto resumed from the latest checkpoint {found[0]}.', 'current')
        runner._load_from = found[0]


def _newest_checkpoint(runner) -> str | None:
    work_dir = Path(runner.work_dir)
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    # The hook adds the name of the work directory to its `out_dir`.
    own = [Path(hook.out_dir, work_dir.name) for hook in hooks if hook.out_dir and '://' not in str(hook.out_dir)]
    folders = list(dict.fromkeys([*own, work_dir]))
    for folder in folders:
        files.clear_leftovers(folder)  # Also brings back a folder that was killed between its two renames.
    templates = dict.fromkeys(['epoch_{}.pth', 'iter_{}.pth', *(hook.filename_tmpl for hook in hooks)])
    last = _last_named(work_dir)
    if last is not None and '://' in last:
        return last  # Checking a remote checkpoint would download it twice.
    for path in _candidates(folders, [name_pattern(template) for template in templates], last):
        problem = _find_problem(path)
        if problem is None:
            return str(path)
        print_log(f'--resume: skipped {path}: {problem}.', 'current', WARNING)
    return None


def _last_named(work_dir: Path) -> str | None:
    """The path in the file ``last_checkpoint``; None if there is none."""
    try:
        named = Path(work_dir, LAST).read_text(encoding='utf-8', errors='replace').strip()
    except OSError:
        return None
    return named if named and '\0' not in named and '\n' not in named and len(named) < 4096 else None


def _candidates(folders: list[Path], patterns: list[str], last: str | None) -> list[Path]:
    """All checkpoints in the order in which to try them: the last one, older ones, then those of a higher number.

    A number above that of the last one mostly comes from an earlier run in the same folder.
    """
    numbered = []
    for folder in folders:
        for path in folder.iterdir() if folder.is_dir() else ():
            for match in (re.fullmatch(pattern, path.name) for pattern in patterns):
                if match:
                    numbered.append((int(match[1]), path))
    numbered.sort(key=lambda one: one[0], reverse=True)
    if last is None:
        return [path for _, path in numbered]
    name = last.replace('\\', '/').rsplit('/', 1)[-1]
    first = [path for _, path in numbered if path.name == name]
    numbers = [int(match[1]) for match in (re.fullmatch(pattern, name) for pattern in patterns) if match]
    # A folder of another name ('/', '.') is not a checkpoint, and could be a whole disk to look through.
    if not first and (Path(last).is_file() or (numbers and Path(last).exists())):
        first = [Path(last)]
    elif not first:
        print_log(f'--resume: {LAST} names {last!r}, which is not there.', 'current', WARNING)
    limit = numbers[0] if numbers else float('inf')
    older = [path for number, path in numbered if number < limit]
    newer = [path for number, path in numbered if number >= limit and path.name != name]
    return [*first, *older, *newer]


def _find_problem(path: Path) -> str | None:
    """Why a run cannot be resumed from a checkpoint; None if it can."""
    if not path.is_dir():
        return _find_problem_of_file(path)
    if is_sharded(path):
        try:
            problem = _find_problem_of_file(path / REST)
            return problem or ShardedCheckpoint(path).find_damage()
        except (OSError, ValueError) as error:
            return one_line(error, 300)
    if any(path.glob('*.distcp')):  # Its deletion was interrupted.
        return f'{INDEX} is missing'
    parts = sorted(
        part for part in path.rglob('*') if part.is_file()
    )  # One for each process, or for each kind of state.
    if not parts:
        return 'the folder is empty'
    for part in parts:
        # Only other strategies know what is in their files, so these are only checked for damage.
        find = _find_problem_of_file if re.fullmatch(r'rank\d+\.pth', part.name) else _find_damage
        if (problem := find(part)) is not None:
            return f'{part.name}: {problem}'
    return None


def _find_damage(path: Path) -> str | None:
    """What is wrong with a file of torch.save, as far as its length and its checksums tell; None if nothing."""
    if not path.stat().st_size:
        return 'the file is empty'
    if path.suffix in ('.pth', '.pt') and not zipfile.is_zipfile(path):
        return 'the file is damaged, or its end is missing'
    if zipfile.is_zipfile(path):  # torch.load does not check the checksums.
        with zipfile.ZipFile(path) as archive:
            if (damaged := archive.testzip()) is not None:
                return f'{damaged} in it is damaged'
    return None


def _find_problem_of_file(path: Path) -> str | None:
    from mmengine.runner.checkpoint import _load_checkpoint

    try:
        if (damage := _find_damage(path)) is not None:
            return damage
        content = _load_checkpoint(str(path), map_location='cpu')
    except Exception as error:  # A damaged file can raise whatever Python has.
        return one_line(error, 300)
    return find_unresumable(content)
