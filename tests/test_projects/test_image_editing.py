"""Image editing: masks that grow, pixels that stay, and the command on a tiny inpainting pipeline."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_applications
import torch
from PIL import Image
from tiny_applications import BOX, EXPRESSION, SIZE

from projects.image_editing.models.editing import dilate, erase, replace
from projects.image_editing.run import main

MASK = np.zeros(SIZE, dtype=bool)
MASK[BOX[1] : BOX[3], BOX[0] : BOX[2]] = True


class Painter:
    """Stands in for a pipeline of diffusers: paints everything green, and remembers its call."""

    vae_scale_factor = 8
    unet = SimpleNamespace(config=SimpleNamespace(sample_size=16))

    def __call__(self, **kwargs):
        self.called = kwargs
        return SimpleNamespace(images=[Image.new('RGB', (kwargs['width'], kwargs['height']), (0, 200, 0))])


def test_a_mask_grows_by_its_distance():
    point = np.zeros((9, 9), dtype=bool)
    point[4, 4] = True
    y, x = np.mgrid[-4:5, -4:5]
    assert np.array_equal(dilate(point, 0), point)
    assert np.array_equal(dilate(point, 1), np.hypot(x, y) <= 1)
    grown = dilate(MASK, 3)
    assert grown[BOX[1] - 3, BOX[0] : BOX[2]].all() and grown[BOX[1] - 4].sum() == 0


def test_erasing_fills_from_around_and_leaves_the_rest():
    picture = tiny_applications.picture()
    after = np.asarray(erase(picture, MASK))
    assert np.array_equal(after[~MASK], np.asarray(picture)[~MASK])
    # The background has one colour, about which Telea wavers by a few grey levels.
    assert np.abs(after[MASK].astype(int) - (90, 100, 110)).max() <= 4


def test_replacing_asks_the_pipeline_at_its_own_resolution_and_leaves_the_rest():
    picture, painter = tiny_applications.picture(), Painter()
    after = np.asarray(replace(picture, MASK, 'a green square', painter, seed=3))
    assert (after[MASK] == (0, 200, 0)).all()
    assert np.array_equal(after[~MASK], np.asarray(picture)[~MASK])
    called = painter.called
    # The shorter side, 40, becomes 16 * 8 = 128; the longer one keeps the proportions.
    assert (called['width'], called['height']) == (192, 128) == called['image'].size == called['mask_image'].size
    assert called['prompt'] == 'a green square' and called['generator'].initial_seed() == 3
    painted = np.asarray(called['mask_image']) > 127
    assert painted.mean() == pytest.approx(MASK.mean(), abs=0.01)
    assert painted[100, 60] and not painted[20, 60]


def run(sphinx_folder, picture_file, out, *options):
    arguments = [sphinx_folder, picture_file, EXPRESSION, '--grabcut', '--device', 'cpu', '--out', out, *options]
    main([str(argument) for argument in arguments])


def test_the_command_erases_and_draws(sphinx_folder, picture_file, tmp_path):
    out, figure = tmp_path / 'edited.png', tmp_path / 'figure.png'
    run(sphinx_folder, picture_file, out, '--erase', '--dilate', '2', '--figure', figure)
    assert np.abs(np.asarray(Image.open(out)).astype(int) - (90, 100, 110)).max() <= 4
    assert Image.open(figure).width > 2 * Image.open(figure).height


def test_the_command_wants_one_edit(sphinx_folder, picture_file, tmp_path, capsys):
    for options in ([], ['--erase', '--replace', 'a cat'], ['--erase', '--dilate', '-1']):
        with pytest.raises(SystemExit):
            run(sphinx_folder, picture_file, tmp_path / 'out.png', *options)
    printed = capsys.readouterr().err
    assert 'one of the arguments --erase --replace is required' in printed
    assert 'not allowed with argument --erase' in printed and '--dilate -1 must be at least 0' in printed


def test_a_missing_diffusers_is_named_with_its_command(sphinx_folder, picture_file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'diffusers', None)
    with pytest.raises(SystemExit, match='--replace: diffusers.*run `pip install "diffusers<0.37"`'):
        run(sphinx_folder, picture_file, tmp_path / 'out.png', '--replace', 'a cat')


@pytest.fixture(scope='module')
def pipeline_folder(tmp_path_factory):
    """Stable Diffusion's inpainting with random weights, for images of 32 pixels."""
    diffusers = pytest.importorskip('diffusers', reason='pip install "diffusers<0.37"')
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('pipeline')
    words = ['<|startoftext|>', '<|endoftext|>', *(letter + end for letter in 'abcdefgr' for end in ('', '</w>'))]
    (folder / 'vocab.json').write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / 'merges.txt').write_text('#version: 0.2\n')
    blocks = dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8)
    text = CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    diffusers.StableDiffusionInpaintPipeline(
        vae=diffusers.AutoencoderKL(
            down_block_types=('DownEncoderBlock2D',) * 2, up_block_types=('UpDecoderBlock2D',) * 2, **blocks
        ),
        text_encoder=CLIPTextModel(text),
        tokenizer=CLIPTokenizer(folder / 'vocab.json', folder / 'merges.txt', model_max_length=77),
        unet=diffusers.UNet2DConditionModel(
            sample_size=16,
            in_channels=9,
            cross_attention_dim=16,
            attention_head_dim=2,
            down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D'),
            up_block_types=('CrossAttnUpBlock2D', 'UpBlock2D'),
            **blocks,
        ),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


def test_the_command_replaces_with_a_pipeline_of_diffusers(sphinx_folder, picture_file, pipeline_folder, tmp_path):
    edited = []
    for seed in (0, 0, 1):
        out = tmp_path / f'{len(edited)}.png'
        options = ['--replace', 'a bag', '--inpainting', pipeline_folder, '--dilate', '0', '--seed', seed]
        run(sphinx_folder, picture_file, out, *options)
        edited.append(np.asarray(Image.open(out)))
    picture = np.asarray(tiny_applications.picture())
    assert all(np.array_equal(image[~MASK], picture[~MASK]) for image in edited)
    assert (edited[0][MASK] != picture[MASK]).any(-1).mean() > 0.9
    assert np.array_equal(edited[0], edited[1]) and (edited[0] != edited[2]).any()


def test_a_pipeline_that_is_not_there_is_named(sphinx_folder, picture_file, pipeline_folder, tmp_path):
    with pytest.raises(SystemExit, match='--replace: .*'):
        run(sphinx_folder, picture_file, tmp_path / 'out.png', '--replace', 'a', '--inpainting', tmp_path / 'none')
