"""Sphinx extension: equations as MathML, which browsers draw by themselves, so that the site needs no network."""

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def _visit_inline(translator, node: nodes.math) -> None:
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _visit_block(translator, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app) -> dict:
    """Register the renderer under the name ``mathml``."""
    app.add_html_math_renderer('mathml', (_visit_inline, None), (_visit_block, None))
    return dict(parallel_read_safe=True, parallel_write_safe=True)
