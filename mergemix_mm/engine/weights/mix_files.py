"""Mixes the weights of two models from disk to disk, one piece of a tensor at a time."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from ...functional.weight_mix import check_beta, describe, is_mixed, mix_problems, mix_tensors, name_filter
from ...models.vlms.hf.saving import check_replaceable, replaced_folder
from ...utils.files import begin_replacement, end_replacement, explained, finish_replacement, write_json
from ...utils.text import printable, shown
from ...version import __version__
from .files import StoredTensor
from .stored_weights import FILE_KINDS, StoredWeights

RECORD = 'mix_weights.json'
# Weights of the real model, in this or another format, are not copied: beside the mixed ones they could be loaded.
NOT_COPIED = ('.*', *(f'*{end}' for end in FILE_KINDS), '*.ckpt', '*.gguf', '*.h5', '*.msgpack', '*.index.json')
# Few large blocks: after each, the thread has to wait for the interpreter.
HASHED_AT_ONCE = 1 << 24


def mix_files(
    real: StoredWeights,
    synthetic: StoredWeights,
    out: str | Path,
    beta: float,
    include: str | None = None,
    exclude: str | None = None,
    progress: Callable[[int], object] = lambda _: None,
) -> dict:
    """Write beta * real + (1 - beta) * synthetic to disk; see :func:`mergemix_mm.functional.mix_weights`.

    Everything is checked before anything is written, and `out` appears whole or not at all. A run that is killed leaves
    the old `out`, and a hidden folder beside it.

    Args:
        real (StoredWeights): The model of real data. The result has the same files with the same tensors in each, and
            copies of the other files of its folder (config, tokenizer, ...) except hidden ones.
        synthetic (StoredWeights): The model of synthetic data, in one or several files of either kind.
        out (str | Path): Folder or file to write; a model there is replaced.
        beta (float): The weight of `real`, in [0, 1].
        include (str, optional): Regular expression that is searched in the names; weights of other names are those of
            `real`. Defaults to None: all are mixed.
        exclude (str, optional): Regular expression of names that are not mixed. Defaults to None: mixes all included.
        progress (Callable): Called with each number of bytes that was written; they sum up to ``real.nbytes``.
            Defaults to a function that does nothing.

    Returns:
        dict: The record of the origin of the weights, with the SHA-256 of all files. It is also written to disk: as
        ``mix_weights.json`` in the folder, or beside a file, under its name with ``.json`` appended.

    Raises:
        ValueError: If an argument is out of range, or the two cannot be mixed; the error lists all differences.
        OSError: If `out` cannot be written, or holds other files than a model.
    """
    check_beta(beta)
    included = name_filter(include, exclude)
    check_out(out, real, synthetic)
    problems = mix_problems(real.tensors, synthetic.tensors, included, StoredTensor.read)
    if problems:
        raise ValueError(describe(problems))
    mixed = {name for name, tensor in real.tensors.items() if is_mixed(name, tensor, included)}
    record = dict(
        mergemix_mm=__version__,
        beta=beta,
        include=include,
        exclude=exclude,
        mixed=len(mixed),
        copied=len(real.tensors) - len(mixed),
        real=str(real.path.absolute()),
        synthetic=str(synthetic.path.absolute()),
    )

    def pieces(name: str) -> Iterator[Tensor]:
        own = real.tensors[name].pieces()
        if name not in mixed:
            return own
        return (mix_tensors(*pair, beta) for pair in zip(own, synthetic.tensors[name].pieces(), strict=True))

    with _hashed(real=real, synthetic=synthetic) as sums, _replaced(Path(out), real) as target:
        for file in real.files:
            path = target / real.place(file)
            path.parent.mkdir(parents=True, exist_ok=True)
            for name, place in file.reserve(path, record).items():
                place.write(pieces(name), progress)
        record['sha256'] = sums()
        write_json(target / RECORD, record)
    return record


def check_out(out: str | Path, *inputs: StoredWeights) -> None:
    """Refuse a place for the mix of the first of `inputs` with the others.

    Raises:
        ValueError: If `out` lies in an input or an input in `out`, or `out` is of another kind than the first input.
        OSError: If a folder is in the place of a file or a file in that of a folder, or the folder is not a model.
    """
    out, first = Path(out).absolute(), inputs[0].path
    for path in (weights.path.absolute() for weights in inputs):
        if out.resolve().is_relative_to(path.resolve()) or path.resolve().is_relative_to(out.resolve()):
            raise ValueError(f'{out} and the input {path} lie in one another; name a new place')
    if first.is_dir():
        if out.suffix in FILE_KINDS:
            raise ValueError(f'{out} would be a file, but {first} is a folder; name a folder')
        check_replaceable(out)
    elif out.suffix != first.suffix:
        raise ValueError(f'{out} has to end in {first.suffix}, as {first} does')
    elif out.is_dir():
        raise IsADirectoryError(f'{out} is a folder; name a file')


@contextmanager
def _replaced(out: Path, real: StoredWeights) -> Iterator[Path]:
    """A temporary folder for the mixed files and the record, which take their places when the block ends."""
    if not real.path.is_dir():
        with _replaced_file(out.absolute(), real.path.name) as folder:
            yield folder
        return
    _check_links(real.path)
    with replaced_folder(out) as folder:
        shutil.copytree(real.path, folder, ignore=shutil.ignore_patterns(*NOT_COPIED), dirs_exist_ok=True)
        if real.index is not None:
            shutil.copy(real.index, folder)
        yield folder


def _check_links(folder: Path) -> None:
    """Refuse links to folders: they may lead anywhere, also in circles."""
    for place, names, _ in os.walk(folder):
        links = [name for name in names if os.path.islink(os.path.join(place, name))]
        if links:
            raise ValueError(f'{printable(place)}: {shown(links[0])} is a link to a folder; put a folder there instead')


@contextmanager
def _replaced_file(out: Path, name: str) -> Iterator[Path]:
    record = out.with_name(f'{out.name}.json')
    folder = begin_replacement(out)
    try:
        with explained(out):
            yield folder
        # The old record goes first, so that there is never a record beside weights that it does not describe.
        record.unlink(missing_ok=True)
        finish_replacement(folder, out, name=name)
        finish_replacement(folder, record, name=RECORD)
    finally:
        end_replacement(folder)


@contextmanager
def _hashed(**weights: StoredWeights) -> Iterator[Callable[[], dict[str, dict[str, str]]]]:
    """Hash all files in another thread, since hashlib releases the interpreter; yields a function that waits for it."""
    pool = ThreadPoolExecutor(1)
    try:
        sums = {
            key: {weights[key].place(file).as_posix(): pool.submit(_sha256, file.path) for file in weights[key].files}
            for key in weights
        }
        yield lambda: {key: {name: digest.result() for name, digest in sums[key].items()} for key in sums}
    finally:
        pool.shutdown(cancel_futures=True)


def _sha256(path: Path) -> str:
    digest, block = hashlib.sha256(), memoryview(bytearray(HASHED_AT_ONCE))
    with path.open('rb') as file:
        while size := file.readinto(block):
            digest.update(block[:size])
    return digest.hexdigest()
