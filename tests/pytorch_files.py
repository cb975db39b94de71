"""Folders of transformers with ``pytorch_model.bin``, which version 5 reads and no longer writes."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def to_pytorch_files(folder: Path) -> None:
    """Replace the safetensors of a folder, sharded or not, by files of torch.save."""
    for path in folder.glob('*.safetensors'):
        torch.save(load_file(path), folder / _renamed(path.name))
        path.unlink()
    for path in folder.glob('*.safetensors.index.json'):
        index = json.loads(path.read_text())
        index['weight_map'] = {name: _renamed(file) for name, file in index['weight_map'].items()}
        (folder / _renamed(path.name)).write_text(json.dumps(index))
        path.unlink()


def _renamed(name: str) -> str:
    return name.replace('model', 'pytorch_model', 1).replace('.safetensors', '.bin')
