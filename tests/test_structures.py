"""Targets and detections check themselves."""

import sys
from dataclasses import replace

import pytest
import torch

from retinanet.errors import Problem, report, unknown_name_error
from retinanet.structures import Detections, Targets


def detections():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 9, 9], [1, 1, 2, 2]])
    return Detections(boxes, torch.tensor([0.9, 0.5, 0.1]), torch.tensor([1, 0, 1]), ["cat", "dog"])


def test_targets_are_padded_to_the_fullest_picture():
    targets = Targets.pad(
        [torch.ones(2, 4), torch.zeros(0, 4)],
        [torch.tensor([3, 1]), torch.zeros(0, dtype=torch.long)],
        [(10, 20), (30, 40)],
    )
    assert targets.labels.tolist() == [[3, 1], [-1, -1]]
    assert targets.boxes.shape == (2, 2, 4)
    assert targets.sizes.tolist() == [[10, 20], [30, 40]]
    assert len(targets) == 2
    assert targets[1:].sizes.tolist() == [[30, 40]]
    assert targets.to("cpu").labels.tolist() == targets.labels.tolist()
    assert targets[1:].seeds is None
    seeded = replace(targets, seeds=torch.tensor([5, 7]))
    assert seeded[1:].to("cpu").seeds.tolist() == [7]


@pytest.mark.parametrize("shape", [(2, 2, 5), (2, 3, 4), (1, 2, 4)])
def test_targets_of_unequal_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="boxes must be"):
        Targets(torch.zeros(*shape), torch.zeros(2, 2, dtype=torch.long), torch.zeros(2, 2))


def test_detections_are_indexed_like_a_list():
    found = detections()
    assert len(found) == 3
    assert found[0].scores.tolist() == pytest.approx([0.9])
    assert found[-1].scores.tolist() == pytest.approx([0.1])
    assert found[:2].labels.tolist() == [1, 0]
    assert found[found.labels == 1].scores.tolist() == pytest.approx([0.9, 0.1])
    assert found.names[found.labels[0]] == "dog"


def test_detections_are_read_as_names_scores_and_boxes():
    name, score, box = next(iter(detections()))
    assert (name, score, box) == ("dog", pytest.approx(0.9), [0, 0, 10, 10])


def test_detections_print_as_one_line_of_counts():
    assert repr(detections()) == "Detections(3: 2 dog, 1 cat; best score 0.90)"
    assert repr(detections()[:0]) == "Detections(0)"
    assert repr(replace(detections()[1:2], names=[])) == "Detections(1: 1 0; best score 0.50)"


def test_a_threshold_may_differ_from_class_to_class():
    assert len(detections().above(0.5)) == 2
    assert detections().above(torch.tensor([0.6, 0.05])).labels.tolist() == [1, 1]


def test_detections_that_disagree_on_their_number_are_refused():
    with pytest.raises(ValueError, match="agree on N"):
        Detections(torch.zeros(2, 4), torch.zeros(3), torch.zeros(3, dtype=torch.long))


def test_without_supervision_the_error_is_the_pip_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        detections().to_supervision()


def test_a_report_groups_by_kind_and_says_what_it_left_out():
    problems = [Problem("boxes without area", "train.json", f"annotation {i}") for i in range(5)] + [
        Problem("missing pictures", "train.json", "a.jpg")
    ]
    text = report(problems, limit=2)
    assert text.splitlines()[0] == "train.json: 5 boxes without area"
    assert "... and 3 more" in text
    assert "a.jpg" in text
    assert "annotation 4" in report(problems)


def test_unknown_names_get_their_neighbours_or_all():
    assert "did you mean 'focal'" in str(unknown_name_error("loss", "focl", ["focal", "balanced"]))
    assert "balanced, focal" in str(unknown_name_error("loss", "xyz", ["focal", "balanced"]))
