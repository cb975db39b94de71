"""Writes the tables of docs/families.md from the declarations: ``PYTHONPATH=. python tests/families_table.py``."""

import re
import sys
from pathlib import Path

import tiny_vlms

from mergemix_mm.families import FAMILIES
from mergemix_mm.families.refused import REFUSED

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs/families.md'


def scoring(name):
    """How MergeMix scores the tower of a tiny model."""
    from mergemix_mm.models.vision_encoders import build_vision_encoder

    tower = tiny_vlms.tiny_family(name).vision_encoder
    if tower is None:
        return '`encoder=`'
    return 'merging' if build_vision_encoder(tower).no_merge is None else 'without merging'


def aligned(name):
    """Which layers of a tiny model AIA can align."""
    kinds = getattr(tiny_vlms.tiny_family(name).model.config.get_text_config(), 'layer_types', None) or []
    return 'layers of softmax attention' if 'linear_attention' in kinds else 'all layers'


def packed(name):
    """Whether conversations can share a row without padding."""
    return 'yes' if tiny_vlms.tiny_family(name).no_packing is None else 'no'


def served():
    """The lines of the families whose tiny model the installed version of transformers has, by name."""
    lines = {}
    for name in tiny_vlms.ALL_FAMILIES:
        family = type(tiny_vlms.tiny_family(name))
        module = sys.modules[family.__module__]
        title = re.sub(r' \(http[^)]*\)', '', module.__doc__.partition(': ')[0])
        types = ', '.join(f'`{one}`' for one, other in FAMILIES.items() if other.__module__ == family.__module__)
        own = Path(f'tests/test_families/test_{name}.py')
        tests = f'`{name}`' + (f', `{own.name}`' if (ROOT / own).exists() else '')
        versions = tiny_vlms.TRANSFORMERS[name]
        lines[name] = (
            f'| {title} | {types} | {scoring(name)} | {aligned(name)} | {packed(name)} | {versions} | {tests} |'
        )
    return lines


def refused():
    """The table of what is refused."""
    rows = [f'| `{name}` | {reason} |' for name, reason in sorted(REFUSED.items())]
    return '\n'.join(['| model type | reason |', '| :-- | :-- |', *rows])


def table():
    """The table of what is served."""
    head = ['models', 'model types', 'MergeMix on its tower', 'AIA', 'packed', 'transformers', 'tests']
    lines = [f'| {" | ".join(head)} |', '| ' + ' | '.join([':--'] * len(head)) + ' |', *served().values()]
    return '\n'.join(lines)


def written(text):
    """A page with the tables of today."""
    for name, content in (('served', table()), ('refused', refused())):
        text = re.sub(rf'(<!-- {name} -->\n).*?(<!-- end -->)', rf'\1\n{content}\n\n\2', text, flags=re.DOTALL)
    return text


if __name__ == '__main__':
    PAGE.write_text(written(PAGE.read_text()))
