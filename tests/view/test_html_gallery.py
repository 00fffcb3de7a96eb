"""Crops show what they are asked to, and a gallery is one well-formed file."""

from xml.etree import ElementTree

import pytest
import torch

from retinanet.structures import Detections
from retinanet.view.draw import colour, draw_both
from retinanet.view.html import Crop, crop, placed, write_page


@pytest.mark.parametrize(
    "box", [(90, 40, 110, 60), (0, 0, 5, 5), (195, 95, 200, 100), (0, 0, 200, 100), (-40, -40, -20, -20)]
)
def test_a_crop_is_of_the_size_asked_for_and_holds_the_box(box):
    part, scale, shown = crop(torch.zeros(3, 100, 200, dtype=torch.uint8), [box], side=120)
    assert max(part.shape[1:]) == 120
    assert shown[0] <= max(box[0], 0) and shown[3] >= min(box[3], 100)
    left, top, right, bottom = placed(torch.tensor([box]).float(), scale, shown)[0].tolist()
    assert (right - left, bottom - top) == pytest.approx(
        ((box[2] - box[0]) * scale, (box[3] - box[1]) * scale)
    )


def test_a_pixel_stays_where_its_box_is():
    image = torch.zeros(3, 100, 200, dtype=torch.uint8)
    image[:, 50:52, 100:102] = 255
    part, scale, shown = crop(image, [(100, 50, 102, 52)], side=200)
    left, top, right, bottom = (
        round(side) for side in placed(torch.tensor([[100.0, 50.0, 102.0, 52.0]]), scale, shown)[0].tolist()
    )
    assert part[0, top:bottom, left:right].float().mean() > 150 > 5 > part[0].float().mean()


def test_annotation_and_answer_in_one_place_are_both_named():
    image, box = torch.full((3, 200, 200), 128, dtype=torch.uint8), torch.tensor([[50.0, 60.0, 150.0, 160.0]])
    found = Detections(box, torch.tensor([0.9]), torch.tensor([1]), ["cat", "dog"])
    drawn = draw_both(image, box, torch.tensor([0]), found, ["cat", "dog"])
    for label in (0, 1):
        ground = (drawn == torch.tensor(colour(label), dtype=torch.uint8)[:, None, None]).all(dim=0)
        assert ground.sum() > 150  # its tag, not only its frame
    assert torch.equal(image, torch.full_like(image, 128))


def test_a_gallery_is_one_well_formed_file(tmp_path):
    pictures = [Crop(torch.zeros(3, 20, 30, dtype=torch.uint8), "a <title>", ["one & two", "three"])] * 2
    path = tmp_path / "new" / "page.html"
    write_page(
        path,
        "All & sundry",
        "One.\n\nTwo.",
        [("things", "2")],
        sections=[("Things", "What they are.", iter(pictures))],
        table="a  1\nb  2",
    )
    root = ElementTree.fromstring(path.read_text().replace("<!DOCTYPE html>", "").strip())
    assert [p.text for p in root.findall("./body/main/p")] == ["One.", "Two.", "What they are."]
    assert [image.get("alt") for image in root.iter("img")] == ["a <title>"] * 2
    assert root.findtext(".//pre/code") == "a  1\nb  2"
    assert "http" not in path.read_text()
