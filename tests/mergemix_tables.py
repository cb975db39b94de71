"""Writes what follows from the names of the configs: ``PYTHONPATH=. python tests/mergemix_tables.py``.

That is the list of models in configs/mergemix/metafile.yml, the tables of baselines and rivals in README.md beside it,
and the table of rivals in docs/paper_tables.md.
"""

import re

from repository_configs import CONFIGS, NAME, ROOT, config_files

FOLDER = CONFIGS / 'mergemix'
DATA = {
    'cifar100': 'CIFAR-100',
    'cluttered-digits': 'Cluttered digits',
    'cub': 'CUB-200-2011',
    'digits': 'Digits',
    'fgvcaircraft': 'FGVC-Aircraft',
    'in1k': 'ImageNet-1k',
    'stanfordcars': 'Stanford Cars',
}
# Name in the tables -> name in the configs.
MODELS = {
    'DeiT-T': 'deit-tiny',
    'DeiT-S': 'deit-small',
    'ViT-S': 'vit-small',
    'ViT-B': 'vit-base',
    'ViT-L': 'vit-large',
}
BASELINES = {
    'none': '',
    'Mixup': 'mixup-',
    'CutMix': 'cutmix-',
    'ResizeMix': 'resizemix-',
    'Mixup or CutMix, drawn evenly (DeiT)': 'mixup-cutmix-',
}
# Type -> paper. The config of each is deit-small_1xb100-{type in small letters}-coslr-200e_cifar100.py.
RIVALS = {
    'SmoothMix': 'CVPR workshops 2020',
    'GridMix': 'Pattern Recognition 109, 2021',
    'FMix': '[2002.12047](https://arxiv.org/abs/2002.12047)',
    'SaliencyMix': '[2006.01791](https://arxiv.org/abs/2006.01791)',
    'AttentiveMix': '[2003.13048](https://arxiv.org/abs/2003.13048)',
    'PuzzleMix': '[2009.06962](https://arxiv.org/abs/2009.06962)',
    'TransMix': '[2111.09833](https://arxiv.org/abs/2111.09833)',
    'TokenMix': '[2207.08409](https://arxiv.org/abs/2207.08409)',
    'SMMix': '[2212.12977](https://arxiv.org/abs/2212.12977)',
    'MixPro': '[2304.12043](https://arxiv.org/abs/2304.12043)',
    'GuidedMix': '[2306.16612](https://arxiv.org/abs/2306.16612)',
    'TdAttenMix': '[2501.15409](https://arxiv.org/abs/2501.15409)',
    'OACutMix': '[2606.04820](https://arxiv.org/abs/2606.04820)',
}


# Top-1 (%) of the paper: DeiT-S, CIFAR-100, 200 epochs. None stands for a method that it has not in this table.
REPORTED = {
    'Mixup': 69.98,
    'CutMix': 74.21,
    'ResizeMix': 68.54,
    'Mixup or CutMix, drawn evenly (DeiT)': 75.92,
    'SmoothMix': None,
    'GridMix': 68.86,
    'FMix': 70.41,
    'SaliencyMix': 69.78,
    'AttentiveMix': None,
    'PuzzleMix': 73.60,
    'TransMix': 76.17,
    'TokenMix': None,
    'SMMix': 74.09,
    'MixPro': 75.26,
    'GuidedMix': None,
    'TdAttenMix': None,
    'OACutMix': None,
    'AutoMix': 76.24,
    'AdAutoMix': 72.63,
    'SAMix': None,
}


def table(head, rows):
    """A Markdown table."""
    lines = [head, [':--'] * len(head), *rows]
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def baselines():
    """Mixing x model, with a link for each length of training."""
    rows = []
    for title, words in BASELINES.items():
        links = [
            ', '.join(f'[{n}](./{model}_1xb100-{words}coslr-{n}e_cifar100.py)' for n in (200, 600))
            for model in MODELS.values()
        ]
        rows.append([title, *links])
    # MMPretrain's ViT-S has no published number of parameters to compare with.
    status = ['built' if model == 'ViT-S' else 'built, counted' for model in MODELS]
    return table(['Mixing', *MODELS], [*rows, ['Status', *status]])


def rivals():
    """The rivals that have a config."""
    rows = []
    for name, paper in RIVALS.items():
        file = f'deit-small_1xb100-{name.lower()}-coslr-200e_cifar100.py'
        if (FOLDER / file).exists():
            rows.append([name, paper, 'built, counted', f'[config](./{file})'])
    return table(['Mixing', 'Paper', 'Status', 'Config'], rows)


def reported():
    """Every way of mixing, what the paper reports of it, and its config."""
    rows = []
    for name, top1 in REPORTED.items():
        file = f'deit-small_1xb100-{BASELINES.get(name, f"{name.lower()}-")}coslr-200e_cifar100.py'
        if (FOLDER / file).exists():
            config = f'[config](../configs/mergemix/{file})'
        elif name in RIVALS:
            config = 'no config yet'
        else:
            config = 'left out: it trains a network of its own that generates the masks'
        rows.append([name, f'{top1:.2f}' if top1 else '-', config])
    return table(['mixing', 'reported', 'config'], rows)


def models():
    """The models of the metafile."""
    lines = ['Models:']
    for path in config_files('mergemix'):
        lines += [
            f'  - Name: {path.stem}',
            f'    In Collection: {"ToMe" if path.stem.startswith("tome-") else "MergeMix"}',
            '    Metadata:',
            f'      Training Data: {DATA[NAME.fullmatch(path.stem)["dataset"]]}',
            f'    Config: {path.relative_to(ROOT)}',
        ]
    return '\n'.join(lines) + '\n'


def written(path):
    """The text of a file with what is derived put in place of what is there."""
    text = path.read_text()
    if path.name == 'metafile.yml':
        return text[: text.index('Models:\n')] + models()
    for make in TABLES[path]:
        block = re.compile(rf'(<!-- {make.__name__}: [^\n]* -->\n\n)(?:\|[^\n]*\n)*\n*')
        text, found = block.subn(lambda match, make=make: f'{match[1]}{make()}\n', text)
        assert found == 1, f'{path.name} has no place for the table of {make.__name__}'
    return text


TABLES = {
    FOLDER / 'README.md': [baselines, rivals],
    FOLDER / 'metafile.yml': [models],
    ROOT / 'docs/paper_tables.md': [reported],
}

if __name__ == '__main__':
    for path in TABLES:
        path.write_text(written(path))
