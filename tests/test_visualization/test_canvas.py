"""Figures as arrays and files; foreign texts are drawn as they are, whatever they hold."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from mergemix_mm.models.batch_augments import MixResult
from mergemix_mm.visualization import (
    canvas,
    draw_beta_sweep,
    draw_image_grid,
    draw_interaction_curves,
    draw_mixed_samples,
    figure_to_image,
    save_image,
)

TEXTS = [
    r'$\frac{$', '$x$', '_hidden', '', '\x1b[31mred\x07\0', '\ud800', '\u202eabc', '日本語 😀', 'x' * 100_000,
    'a\tb\r\nc', '\\', '{' * 50, '%s %d {0}', '\U0010ffff',
]  # fmt: skip


def test_figure_becomes_an_rgb_array_of_its_size():
    image = figure_to_image(Figure(figsize=(2, 1), dpi=50, facecolor=(1, 0, 0)))
    assert image.shape == (50, 100, 3) and image.dtype == np.uint8
    assert (image == [255, 0, 0]).all()


def test_file_holds_the_image_and_a_failed_write_keeps_it(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    path = save_image(image, tmp_path / 'deep' / 'figure.png')
    with pytest.raises(TypeError):
        save_image(np.zeros((2, 2, 7), np.float64), path)
    np.testing.assert_array_equal(np.asarray(Image.open(path)), image)
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def drawn(monkeypatch):
    """The texts of the figures that are drawn."""
    texts = []
    render = canvas._make_texts_plain

    def record(figure):
        render(figure)
        texts.extend(text for text in figure.findobj(Text) if text.get_text())

    monkeypatch.setattr(canvas, '_make_texts_plain', record)
    return texts


@pytest.mark.filterwarnings('ignore:Glyph')
@pytest.mark.parametrize('text', TEXTS, ids=range(len(TEXTS)))
def test_every_figure_draws_any_text(text, drawn):
    draw_image_grid([np.zeros((8, 8, 3), np.uint8)], [text], true=[[(0, 0, 4, 4)]])
    draw_beta_sweep([0, 0.5, 1], {text: [1, 2, 3], 'b': [3, 2, 1]}, references={f'{text}r': 2.0}, title=text)
    images = torch.zeros(2, 3, 8, 8)
    mask = torch.tensor([[True, False, True, False]] * 2)
    result = MixResult(images, torch.tensor([1, 0]), torch.tensor([0.5, 0.5]), mask, grid=(2, 2), clean=images)
    draw_mixed_samples(result, (0, 0, 0), (1, 1, 1), labels=[0, 1], classes=[text, 'other'])
    assert not any(character in one.get_text() for one in drawn for character in '\x1b\x07\0\r\ud800\u202e')
    assert all(len(line) <= 400 for one in drawn for line in one.get_text().split('\n'))


def test_names_are_no_formulas_and_an_underscore_in_front_does_not_hide_them(drawn):
    draw_interaction_curves({r'$\frac{1}{2}$': dict(mean=[0.1, 0.2]), '_gen': dict(mean=[0.1, 0.2])}, title='$a$')
    found = {text.get_text(): text.get_parse_math() for text in drawn}
    assert found[r'$\frac{1}{2}$'] is False and found['$a$'] is False and ' _gen' in found


@pytest.mark.parametrize('by_default', [True, False])
def test_the_numbers_along_an_axis_stay_formulas(by_default):
    with matplotlib.rc_context({'text.parse_math': by_default}):
        figure = Figure()
        axes = figure.subplots()
        axes.plot([1, 1000], [1, 2])
        axes.set_xscale('log')
        figure_to_image(figure)
    assert all(text.get_parse_math() for text in axes.get_xticklabels())


def test_the_page_of_the_gallery_shows_markup(monkeypatch):
    folder = Path(__file__).parents[2] / 'tools' / 'gallery'
    monkeypatch.syspath_prepend(str(folder))
    page, results = importlib.import_module('_page'), importlib.import_module('_results')
    evil = '<script>alert("x")</script>'
    entry = SimpleNamespace(name='mergemix', title=evil, text=evil)
    shown = results.Shown({evil: evil}, [results.Figure(f'{evil}" onerror="x', b'')])
    done = [dict(command=f'tools/train.py {evil}', seconds=1)]
    html = page.make_page([page.Section(entry, done, shown, evil)], quick=False, root=folder)
    assert '<script>' not in html and '" onerror' not in html and html.count('&lt;script&gt;') >= 6
