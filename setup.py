"""Package metadata, and a build step that puts configs and tools into the wheel."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


def read_requirements(name: str) -> list[str]:
    """Read ``requirements/<name>.txt``, following its ``-r`` lines."""
    lines = (ROOT / 'requirements' / f'{name}.txt').read_text().split('\n')
    found = []
    for line in filter(None, (line.partition('#')[0].strip() for line in lines)):
        if line.startswith('-r '):
            found += read_requirements(Path(line[3:].strip()).stem)
        else:
            found.append(line)
    return found


def read_version() -> str:
    """Read the version without importing the package, which needs torch."""
    text = (ROOT / 'mergemix_mm' / 'version.py').read_text()
    return re.search(r"__version__ = '(.+)'", text).group(1)


class BuildWithConfigs(build_py):
    """Copies configs and tools to ``mergemix_mm/.mim``, the place where OpenMMLab's packages keep theirs."""

    def run(self):
        super().run()
        if self.editable_mode:  # an editable install reads them from the repository
            return
        target = Path(self.build_lib, 'mergemix_mm', '.mim')
        for folder in ('configs', 'tools'):
            ignore = shutil.ignore_patterns('__pycache__', '*.py[co]')
            shutil.copytree(ROOT / folder, target / folder, ignore=ignore, dirs_exist_ok=True)
        if (ROOT / 'model-index.yml').exists():
            shutil.copy(ROOT / 'model-index.yml', target)


readme = ROOT / 'README.md'
setup(
    name='mergemix-mm',
    version=read_version(),
    description='MergeMix for OpenMMLab: image mixing by attention, and preference tuning of vision-language models',
    long_description=readme.read_text() if readme.exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    license_files=['LICENSE'],
    python_requires='>=3.10,<3.15',
    classifiers=[
        'Programming Language :: Python :: 3',
        *(f'Programming Language :: Python :: 3.{minor}' for minor in range(10, 15)),
    ],
    packages=find_packages(include=['mergemix_mm', 'mergemix_mm.*']),
    package_data={'mergemix_mm': ['families/chat_templates/*.jinja']},
    install_requires=read_requirements('runtime'),
    extras_require={name: read_requirements(name) for name in ('optional', 'detection', 'tests')},
    cmdclass={'build_py': BuildWithConfigs},
    zip_safe=False,
)
