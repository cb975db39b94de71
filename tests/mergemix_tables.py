"""Writes what follows from the names of the configs: ``PYTHONPATH=. python tests/mergemix_tables.py``.

That is the list of models in configs/mergemix/metafile.yml, and the tables of baselines and rivals in README.md.
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


def written(name, text):
    """The text of a file with what is derived put in place of what is there."""
    if name == 'metafile.yml':
        return text[: text.index('Models:\n')] + models()
    for title, make in dict(baselines=baselines, rivals=rivals).items():
        block = re.compile(rf'(<!-- {title}: [^\n]* -->\n\n)(?:\|[^\n]*\n)*\n*')
        text, found = block.subn(lambda match: f'{match[1]}{make()}\n', text)
        assert found == 1, f'{name} has no place for the table of {title}'
    return text


if __name__ == '__main__':
    for name in ('README.md', 'metafile.yml'):
        (FOLDER / name).write_text(written(name, (FOLDER / name).read_text()))
