"""AttentiveMix: the most attended cells, of the partner or of the image itself."""

import pytest
import torch

from mergemix_mm.functional import TokenGroups
from mergemix_mm.models import AttentiveMix
from mergemix_mm.models.vision_encoders import PatchScores


def scores(grid, batch_size=3, seed=0):
    num = grid[0] * grid[1]
    saliency = torch.rand(batch_size, num, generator=torch.Generator().manual_seed(seed))
    return PatchScores(saliency, TokenGroups.identity(batch_size, num), grid, 0)


@pytest.mark.parametrize('attended', ['partner', 'own'])
@pytest.mark.parametrize('num_cells', [6, 1, 48])
def test_the_n_most_attended_cells_are_shown(attended, num_cells):
    """Against sorting the means of blocks of patches."""
    mixer, images = AttentiveMix(num_cells=num_cells, attended=attended), torch.randn(3, 3, 28, 28)
    found, partner = scores((14, 14)), torch.tensor([1, 2, 0])
    result = mixer.mix_scored(images, found, partner=partner)
    blocks = found.saliency.view(3, 7, 2, 7, 2).mean((2, 4)).flatten(1)
    cells = result.mask.view(3, 7, 4, 7, 4)
    assert torch.equal(cells, cells[:, :, :1, :, :1].expand_as(cells))
    for i in range(3):
        whose = i if attended == 'own' else partner[i]
        top = set(blocks[whose].argsort(descending=True)[:num_cells].tolist())
        shown = cells[i, :, 0, :, 0].flatten()
        shown = shown if attended == 'own' else ~shown
        assert set(shown.nonzero().flatten().tolist()) == top
    share = num_cells / 49
    torch.testing.assert_close(result.ratio, torch.full((3,), share if attended == 'own' else 1 - share))


@pytest.mark.parametrize('attended', ['partner', 'own'])
def test_without_a_number_of_cells_the_image_keeps_a_share_lambda(attended):
    mixer = AttentiveMix(num_cells=None, alpha=2.0, grid=4, attended=attended, per_image=True)
    generator = torch.Generator().manual_seed(3)
    result = mixer.mix_scored(torch.randn(3, 3, 16, 16), scores((8, 8)), generator, torch.tensor([1, 2, 0]))
    expected = (mixer.draw_lambda(3, torch.Generator().manual_seed(3)) * 16).floor() / 16
    torch.testing.assert_close(result.ratio, expected.float())


def test_a_share_of_one_keeps_all_cells_and_a_share_of_zero_none(monkeypatch):
    mixer = AttentiveMix(num_cells=None, grid=4)
    for share in (0.0, 1.0):
        monkeypatch.setattr(mixer, 'draw_lambda', lambda size, _: torch.full((size,), share, dtype=torch.float64))
        result = mixer.mix_scored(torch.randn(3, 3, 16, 16), scores((8, 8)), partner=torch.tensor([1, 2, 0]))
        assert (result.ratio == share).all()


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(alpha=2.0), 'alpha=2.0 has no effect with num_cells=6; set num_cells=None'),
        (dict(per_image=True), 'per_image=True has no effect with num_cells=6'),
        (dict(num_cells=49), r'num_cells=49 must be an int in \[1, 48\], or None'),
        (dict(grid=1), 'grid=1 must be an int >= 2'),
        (dict(attended='both'), "attended='both' must be 'partner' or 'own'"),
    ],
)
def test_bad_arguments_are_errors_that_name_the_key(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AttentiveMix(**kwargs)
