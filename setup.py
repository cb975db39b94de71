"""A build step that puts configs and tools into the wheel; all metadata is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


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
        shutil.copy(ROOT / 'model-index.yml', target)


setup(cmdclass={'build_py': BuildWithConfigs})
