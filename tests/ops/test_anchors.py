"""Anchors by hand."""

import copy

import pytest
import torch

from retinanet.ops.anchors import cell_anchors, grid_anchors, inside


def sides(anchors):
    return torch.stack([anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]], dim=1)


def test_a_cell_of_p3_has_the_papers_nine_anchors():
    anchors = cell_anchors(8)
    areas = sides(anchors).prod(dim=1).sqrt()
    torch.testing.assert_close(
        areas, torch.tensor([32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]).repeat_interleave(3)
    )
    ratios = sides(anchors)[:, 1] / sides(anchors)[:, 0]
    torch.testing.assert_close(ratios, torch.tensor([0.5, 1.0, 2.0]).repeat(3))
    torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])


def test_anchors_span_32_to_813_px_over_the_five_levels():
    smallest, largest = cell_anchors(8)[1], cell_anchors(128)[-2]
    assert sides(smallest[None]).tolist() == [[32, 32]]
    torch.testing.assert_close(sides(largest[None]), torch.full((1, 2), 512 * 2 ** (2 / 3)))


def test_cells_follow_rows_then_columns_with_their_centres_in_the_middle():
    (level,) = grid_anchors([(2, 3)], strides=[8], scales=[1.0], ratios=[1.0])
    centres = (level[:, :2] + level[:, 2:]) / 2
    assert centres.tolist() == [[4, 4], [12, 4], [20, 4], [4, 12], [12, 12], [20, 12]]


def test_the_anchor_of_a_corner_convention():
    (level,) = grid_anchors([(1, 2)], strides=[8], scales=[1.0], ratios=[1.0], center=0.0)
    assert ((level[:, :2] + level[:, 2:]) / 2).tolist() == [[0, 0], [8, 0]]


def test_an_800_px_square_has_120_087_anchors():
    levels = grid_anchors([(-(-800 // stride), -(-800 // stride)) for stride in (8, 16, 32, 64, 128)])
    assert sum(map(len, levels)) == 120_087


def test_anchors_centred_in_the_padding_are_outside():
    (level,) = grid_anchors([(1, 3)], strides=[8], scales=[1.0], ratios=[1.0])
    assert inside(level, torch.tensor([[8.0, 24], [8, 20], [4, 24]])).tolist() == [
        [True] * 3,
        [True, True, False],
        [False] * 3,
    ]


@pytest.mark.parametrize(
    "settings", [{}, {"center": 0.0, "rounded": True, "image": (60, 75)}, {"bases": [(8, 16), (16,)]}]
)
def test_the_grid_of_a_level_says_where_its_anchors_stand(settings):
    levels = grid_anchors([(8, 10), (4, 5)], (8, 16), **settings)
    for level, grid in zip(levels, levels.grids, strict=True):
        x, y = (
            first + torch.arange(count) * step
            for first, count, step in zip(grid.first, grid.cells, grid.step, strict=True)
        )
        centers = torch.cartesian_prod(y, x).flip(1).repeat(1, 2)
        assert torch.equal(level, (centers[:, None] + torch.tensor(grid.shapes)).flatten(0, 1))


def test_anchors_on_grids_are_a_list():
    levels = grid_anchors([(1, 2), (1, 1)], (8, 16))
    assert isinstance(levels, list)
    assert torch.cat(levels).shape == (27, 4)
    assert copy.deepcopy(levels).grids == levels.grids
