"""Settings of the documentation's site; `make docs` builds it.

The source folder is the root of the repository, so that relative links between docs/ and the READMEs of configs/ and
projects/ mean the same on the site as in the repository. Links to any other file become downloads.
"""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(DOCS / '_ext'), str(ROOT)]

from mergemix_mm import __version__  # noqa: E402

project = 'mergemix_mm'
copyright = 'the authors of mergemix_mm, Apache 2.0'
version = release = __version__

root_doc = 'docs/index'
include_patterns = ['docs/**', 'configs/*/README.md', 'projects/*/README.md']
# Folders are walked before `include_patterns` is looked at.
exclude_patterns = [
    '.*',
    '*.egg-info',
    'build',
    'data',
    'dist',
    'docs/_*',
    'mergemix_mm',
    'tests',
    'tools',
    'work_dirs',
]

extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode', 'mathml']
myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4
# Shell blocks hold `<placeholders>`, and Python blocks end in `...` where the reader goes on.
highlight_language = 'python'
default_role = 'code'

autodoc_member_order = 'bysource'
autodoc_inherit_docstrings = False
# The docstrings name every type.
autodoc_typehints = 'none'
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = 'furo'
html_title = 'mergemix_mm'
html_math_renderer = 'mathml'
html_static_path = ['_static']
html_css_files = ['site.css']
templates_path = ['_templates']
# The root of the site, above docs/ and configs/, sends readers to its first page.
html_additional_pages = {'index': 'to_docs.html'}
html_copy_source = False
