"""What users write: registered names with their arguments, exported names, paths of tools and configs.

``PYTHONPATH=. python tests/golden/public_names.py`` adds what is new to public_names.json beside this file. Nothing is
taken out of it: tests/test_golden.py has all of it resolve.
"""

import importlib
import inspect
import json
import pkgutil
from pathlib import Path

import mergemix_mm

FILE = Path(__file__).with_suffix('.json')
ROOT = Path(__file__).parents[2]
# Files that users do not run, which moved without a stub: old path -> new path. CHANGELOG.md lists them.
MOVED_PATHS = {
    f'tools/benchmarks/{old}.py': f'tools/benchmarks/{new}.py'
    for old, new in {
        'attention_consistency': 'lib/digit_mixes',
        'detection_training': 'lib/detection',
        'digit_mixes': 'lib/digit_mixes',
        'digits_accuracy': 'mixing_study',
        'digits_training': 'lib/digits',
        'release_scheme': 'lib/release_scheme',
        'shapes_training': 'lib/llava',
        'sphinx_encoders': 'lib/sphinx',
        'sphinx_studies': 'shapes_sphinx',
        'sphinx_training': 'lib/sphinx',
        'unified_training': 'lib/janus',
    }.items()
}


def collect() -> dict[str, list[str]]:
    """What there is today, by kind, as sorted strings."""
    import mmengine.registry
    import mmpretrain.registry

    registries = {}
    for module in (mmengine.registry, mmpretrain.registry):
        for name, registry in vars(module).items():
            if isinstance(registry, mmengine.registry.Registry):
                registries.setdefault(id(registry), (f'{module.__name__}.{name}', registry))
    registered, arguments = [], []
    for place, registry in registries.values():
        for name, made in registry.module_dict.items():
            if made.__module__.startswith('mergemix_mm'):
                registered.append(f'{place} {name}')
                arguments += [f'{place} {name} {argument}' for argument in inspect.signature(made).parameters]
    exported, parameters = [], []
    for module in modules():
        for name in getattr(module, '__all__', ()):
            exported.append(f'{module.__name__}.{name}')
            if module is mergemix_mm.functional and inspect.isfunction(getattr(module, name)):
                found = inspect.signature(getattr(module, name)).parameters
                parameters += [f'{module.__name__}.{name} {parameter}' for parameter in found]
    paths = [str(path.relative_to(ROOT)) for folder in ('tools', 'configs') for path in (ROOT / folder).rglob('*.py')]
    shells = [str(path.relative_to(ROOT)) for path in (ROOT / 'tools').rglob('*.sh')]
    found = dict(
        registered=registered,
        arguments=arguments,
        exported=exported,
        parameters=parameters,
        # Files whose path has a part that begins with an underscore, bases among them, and what the benchmarks share
        # in lib/ are internal.
        paths=[path for path in paths + shells if '/_' not in path and '/lib/' not in path],
    )
    return {kind: sorted(set(names)) for kind, names in found.items()}


def modules():
    """The package and its subpackages."""
    import mergemix_mm.functional

    yield mergemix_mm
    for found in pkgutil.walk_packages(mergemix_mm.__path__, 'mergemix_mm.'):
        if found.ispkg:
            yield importlib.import_module(found.name)


def main() -> None:
    """Add what is new."""
    known = json.loads(FILE.read_text()) if FILE.exists() else {}
    names = {kind: sorted(set(found) | set(known.get(kind, ()))) for kind, found in collect().items()}
    FILE.write_text(json.dumps(names, indent=0) + '\n')


if __name__ == '__main__':
    main()
