"""Boxes on pictures: where the colours go, that tags stay inside, and that nothing odd ends the drawing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from retinanet.data.images import image_size
from retinanet.structures import Detections
from retinanet.view.draw import PALETTE, anchors_picture, colour, draw, draw_truth, place_tag, save, sheet

NAMES = ("cat", "dog")


def grey(height: int = 120, width: int = 160) -> torch.Tensor:
    return torch.full((3, height, width), 128, dtype=torch.uint8)


def pixel(image: torch.Tensor, x: int, y: int) -> tuple[int, ...]:
    return tuple(image[:, y, x].tolist())


def test_twelve_classes_have_twelve_colours_and_sixty_have_more_than_fifty():
    assert len({colour(label) for label in range(12)}) == len(PALETTE) == 12
    assert len({colour(label) for label in range(60)}) > 50
    nearest = min(
        sum(abs(a - b) for a, b in zip(colour(i), colour(j), strict=True))
        for i in range(12)
        for j in range(i)
    )
    assert nearest > 50


def test_a_box_is_framed_in_the_colour_of_its_class_and_the_picture_is_left_alone():
    picture = grey()
    drawn = draw(picture, torch.tensor([[40.0, 50.0, 90.0, 100.0]]), torch.tensor([1]), tags=False)
    assert drawn.shape == picture.shape
    assert drawn.dtype == torch.uint8
    assert torch.equal(picture, grey())
    for x, y in ((40, 70), (89, 70), (60, 50), (60, 99)):
        assert pixel(drawn, x, y) == colour(1)
    assert pixel(drawn, 65, 75) == (128, 128, 128)
    assert pixel(drawn, 10, 10) == (128, 128, 128)


def test_the_best_detection_lies_on_top():
    boxes = torch.tensor([[40.0, 40.0, 90.0, 90.0]] * 2)
    for scores, top in (([0.9, 0.2], 0), ([0.2, 0.9], 1)):
        drawn = draw(grey(), boxes, torch.tensor([0, 1]), torch.tensor(scores), tags=False)
        assert pixel(drawn, 40, 60) == colour(top)


def test_detections_and_loose_tensors_draw_the_same():
    boxes, scores, labels = torch.tensor([[30.0, 40.0, 80.0, 90.0]]), torch.tensor([0.75]), torch.tensor([0])
    assert torch.equal(
        draw(grey(), Detections(boxes, scores, labels, NAMES)), draw(grey(), boxes, labels, scores, NAMES)
    )


@pytest.mark.parametrize(
    "box", [(0, 0, 20, 20), (150, 110, 160, 120), (-30, -30, 400, 400), (60, 2, 61, 3), (158, 0, 160, 120)]
)
def test_a_tag_lies_inside_the_picture_whole(box: tuple[float, float, float, float]):
    left, top = place_tag(box, (60, 14), (160, 120))
    assert 0 <= left <= 160 - 60
    assert 0 <= top <= 120 - 14


def test_a_tag_goes_above_the_box_then_below_then_inside():
    assert place_tag((20, 40, 60, 80), (30, 12), (160, 120)) == (20, 28)
    assert place_tag((20, 5, 60, 80), (30, 12), (160, 120)) == (20, 80)
    assert place_tag((20, 5, 60, 115), (30, 12), (160, 120)) == (20, 5)


def test_a_tag_makes_way_for_one_that_is_there():
    above = (20.0, 28.0, 50.0, 40.0)
    assert place_tag((20, 40, 60, 80), (30, 12), (160, 120), [above]) == (20, 80)


def test_tags_are_filled_with_the_colour_of_the_class_and_written_in_black_or_white():
    drawn = draw(
        grey(),
        torch.tensor([[40.0, 50.0, 90.0, 100.0]]),
        torch.tensor([5]),
        torch.tensor([0.5]),
        ["?"] * 5 + ["wombat"],
    )
    above = drawn[:, 30:49, 40:120].flatten(1).T
    assert (above == torch.tensor(colour(5))).all(dim=1).sum() > 300
    assert (above > 230).all(dim=1).any()


@pytest.mark.parametrize("height, width", [(1, 1), (6, 200), (200, 6), (24, 24)])
def test_tiny_pictures_with_long_names_are_drawn(height: int, width: int):
    boxes = torch.tensor([[0.0, 0.0, width, height], [1.0, 1.0, 2.0, 2.0]])
    names = ["a very long name of a class, longer than any picture is wide", "b"]
    assert draw(grey(height, width), boxes, torch.tensor([0, 1]), torch.tensor([0.4, 0.5]), names).shape == (
        3,
        height,
        width,
    )
    assert draw_truth(grey(height, width), boxes, torch.tensor([0, 1])).shape == (3, height, width)


def test_boxes_that_are_no_numbers_swapped_or_elsewhere_do_no_harm():
    nan, inf = float("nan"), float("inf")
    odd = torch.tensor([[nan, 0, 10, 10], [0, 0, inf, 10], [500.0, 500, 600, 600], [-90, -90, -50, -50]])
    assert torch.equal(draw(grey(), odd, torch.zeros(4, dtype=torch.long)), grey())
    swapped, straight = torch.tensor([[90.0, 80, 40, 30]]), torch.tensor([[40.0, 30, 90, 80]])
    assert torch.equal(draw(grey(), swapped), draw(grey(), straight))


def test_no_box_leaves_the_picture_as_it_is():
    empty = torch.zeros(0, 4)
    assert torch.equal(draw(grey(), empty, torch.zeros(0, dtype=torch.long)), grey())
    assert torch.equal(anchors_picture(grey(), empty, torch.zeros(0, dtype=torch.long), NAMES, empty), grey())


def test_names_in_any_script_and_labels_without_a_name_are_drawn():
    draw(
        grey(),
        torch.tensor([[20.0, 40, 80, 90]] * 3),
        torch.tensor([0, 1, 7]),
        torch.rand(3),
        ["猫\nねこ", ""],
    )


def test_the_truth_is_dashed():
    drawn = draw_truth(grey(), torch.tensor([[20.0, 20, 140, 100]]), torch.tensor([0]))
    edge = {pixel(drawn, x, 20) for x in range(22, 138)}
    assert edge == {colour(0), (0, 0, 0)}


def test_anchors_are_pale_and_lie_below_the_boxes():
    boxes, anchors = (
        torch.tensor([[40.0, 40, 80, 80]]),
        torch.tensor([[20.0, 30, 100, 110], [40, 40, 80, 80]]),
    )
    drawn = anchors_picture(grey(), boxes, torch.tensor([1]), NAMES, anchors)
    assert 128 < min(pixel(drawn, 20, 100)) < 255  # white, half transparent
    assert pixel(drawn, 40, 60) == colour(1)


def test_labels_that_do_not_go_with_the_boxes_are_refused():
    with pytest.raises(ValueError, match="2 boxes do not go with 1 labels"):
        draw(grey(), torch.zeros(2, 4), torch.zeros(1, dtype=torch.long))


def test_a_picture_of_the_wrong_type_is_refused():
    with pytest.raises(ValueError, match=r"uint8 tensor \[3, H, W\]"):
        draw(torch.rand(3, 8, 8), torch.zeros(0, 4))


def test_a_sheet_has_even_cells_and_keeps_every_picture_whole():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    shapes = [(60, 80), (60, 80), (80, 40)]
    pictures = [
        torch.tensor(c, dtype=torch.uint8)[:, None, None].expand(3, *s)
        for c, s in zip(colours, shapes, strict=True)
    ]
    made = sheet(pictures, columns=2, width=400)
    assert made.shape[2] == 400
    counts = [int((made == torch.tensor(c)[:, None, None]).all(dim=0).sum()) for c in colours]
    cell = (400 - 3 * 4) // 2
    tall = round(cell * 0.75)
    assert counts[0] == counts[1] == cell * tall
    assert counts[2] == pytest.approx(tall * tall / 2, rel=0.02)
    assert made.shape[1] == 4 + 2 * (tall + 4)
    assert sheet([], width=100).shape[2] == 100


@pytest.mark.parametrize("suffix, form", [(".png", "PNG"), (".jpg", "JPEG")])
def test_a_picture_is_saved_by_its_suffix(tmp_path: Path, suffix: str, form: str):
    path = tmp_path / "new" / f"picture{suffix}"
    save(path, grey(30, 50))
    with Image.open(path) as saved:
        assert (saved.format, saved.size) == (form, (50, 30))
        assert abs(saved.getpixel((3, 3))[0] - 128) <= 1


@pytest.mark.parametrize(
    ("suffix", "size", "written"),
    [
        (".jpg", (1, 66_000), (65_500, 1)),
        (".jpeg", (65_600, 2), (1, 65_500)),
        (".webp", (2, 16_400), (16_383, 1)),
    ],
)
def test_a_picture_that_its_format_cannot_hold_is_saved_smaller(
    tmp_path: Path, caplog, suffix, size, written
):
    save(tmp_path / f"a{suffix}", grey(*size))
    with Image.open(tmp_path / f"a{suffix}") as saved:
        assert saved.size == written
    assert f"a{suffix} is {written[0]} x {written[1]} px" in caplog.text


def test_a_picture_at_the_limit_of_its_format_is_saved_as_it_is(tmp_path: Path, caplog):
    save(tmp_path / "a.jpg", grey(1, 65_500))
    save(tmp_path / "a.png", grey(1, 66_000))
    assert image_size(tmp_path / "a.jpg") == (1, 65_500)
    assert image_size(tmp_path / "a.png") == (1, 66_000)
    assert not caplog.records
