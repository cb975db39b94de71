"""What a measurement leaves: a printed table, and a folder with the table, the numbers and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...utils.files import write_json, write_text
from ...utils.tables import markdown_table
from ...visualization import save_image


def write_results(
    folder: str | Path,
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    results: dict[str, Any],
    figure: np.ndarray | None = None,
) -> None:
    """Print the table, and write ``NAME.md``, ``NAME.json`` and ``NAME.png`` into a folder.

    Args:
        folder (str | Path): The folder; it is made if it is missing.
        name (str): The name of the files.
        header (Sequence[str]): The names of the table's columns.
        rows (Sequence[Sequence[object]]): The cells of the table.
        results (dict): The numbers and the settings, for the JSON file.
        figure (np.ndarray, optional): [H, W, 3] uint8. Defaults to None: no figure.
    """
    folder = Path(folder)
    table = markdown_table(header, rows)
    print(table, flush=True)
    write_text(folder / f'{name}.md', table + '\n')
    write_json(folder / f'{name}.json', results)
    if figure is not None:
        save_image(figure, folder / f'{name}.png')
    parts = 'Table and numbers' if figure is None else 'Table, numbers and figure'
    print(f'\n{parts} written to {folder / name}.*', flush=True)
