"""The comparison finds what differs, allows what rounding decides, and nothing else."""

import torch

from retinanet.export.proof import Case, Proof, add, compare_case, failures, odd_images
from retinanet.model.postprocess import Postprocess
from retinanet.model.preprocess import Preprocess
from retinanet.structures import Detections


def answer(*rows):
    """(x, score, label) of boxes of 10 x 10 px at height 0."""
    boxes = torch.tensor([[x, 0.0, x + 10, 10.0] for x, _, _ in rows]).reshape(-1, 4)
    return Detections(
        boxes,
        torch.tensor([score for _, score, _ in rows]),
        torch.tensor([label for *_, label in rows]).long(),
        ["a", "b"],
    )


def differences(one, other):
    case = Case("images", 1, 1)
    add(case, one, other, 0.6)
    return case


def verdict(case, precision="fp32", ap=None):
    return failures(Proof([case], {}, ap), precision, 0.003)


def test_equal_answers_pass_in_whatever_order_equal_scores_come():
    one = answer((0, 0.9, 0), (30, 0.5, 1), (60, 0.5, 0))
    case = differences(one, answer((0, 0.9, 0), (60, 0.5, 0), (30, 0.5, 1)))
    assert (case.pixels, case.score, case.alone) == (0, 0, 0) and verdict(case) == []


def test_a_box_that_moved_is_told_by_how_far():
    case = differences(answer((0, 0.9, 0)), answer((0.25, 0.9, 0)))
    assert round(case.pixels, 3) == 0.25
    assert "boxes differ by 0.25 px" in verdict(case)[0]
    assert verdict(differences(answer((0, 0.9, 0)), answer((0.05, 0.9, 0)))) == []


def test_a_score_that_moved_is_told():
    assert "scores differ by 0.004" in verdict(differences(answer((0, 0.9, 0)), answer((0, 0.904, 0))))[0]


def test_an_answer_of_one_side_only_is_told():
    for one, other in [
        ((), ((0, 0.9, 0),)),
        (((0, 0.9, 0),), ()),
        (((0, 0.9, 0),), ((0, 0.9, 1),)),
        (((0, 0.9, 0),), ((40, 0.9, 0),)),
    ]:
        case = differences(answer(*one), answer(*other))
        assert case.alone == len(one) + len(other) and "on one side only" in verdict(case)[0]


def test_few_unsure_detections_may_be_on_one_side_only():
    shared = ((0, 0.9, 0), (30, 0.8, 0))
    at_the_limit = differences(answer(*shared, (60, 0.5, 0)), answer(*shared, (90, 0.5004, 1)))
    assert (at_the_limit.alone, at_the_limit.sure_alone) == (0, 0) and verdict(at_the_limit) == []
    unsure = ((60, 0.5, 0), (90, 0.4, 0), (120, 0.3, 0), (150, 0.2, 0))
    few, many = (differences(answer(*shared, *unsure[:count]), answer(*shared)) for count in (3, 4))
    assert few.alone == 2 and verdict(few) == []
    assert "3 detections are on one side only, of 6" in verdict(many)[0]
    sure = differences(answer(*shared, (60, 0.7, 0)), answer(*shared))
    assert "1 detections are on one side only, of 3" in verdict(sure)[0]


def test_many_unsure_detections_excuse_no_sure_one():
    unsure = tuple((20 * place, 0.5 - place / 1000, 0) for place in range(5, 205))
    shared = ((0, 0.9, 0), (30, 0.8, 0), *unsure)
    case = differences(answer(*shared, (60, 0.7, 0)), answer(*shared))
    assert case.sure_alone == 1 and "1 detections are on one side only, of 203" in verdict(case)[0]


def test_bf16_and_int8_are_judged_by_ap():
    case = differences(answer((0, 0.9, 0)), answer((3, 0.7, 0)))
    assert verdict(case, "bf16", {"source": 0.5, "exported": 0.5}) == []
    assert verdict(case, "bf16", {"source": 0.5, "exported": 0.498}) == []
    assert "AP falls from 0.5000 to 0.4900" in verdict(case, "int8", {"source": 0.5, "exported": 0.49})[0]


def test_where_ap_is_not_known_bf16_must_find_the_sure_answers_again():
    one = answer((0, 0.9, 0), (30, 0.8, 1), (60, 0.3, 0))
    assert verdict(differences(one, answer((0.5, 0.7, 0), (30, 0.75, 1))), "bf16") == []
    assert (
        "of 4 sure detections only 2 are found again"
        in verdict(differences(one, answer((0, 0.9, 0), (30, 0.8, 0))), "bf16")[0]
    )
    assert (
        "of 3 sure detections only 2 are found again"
        in verdict(differences(answer((0, 0.9, 0)), answer((0, 0.9, 0), (50, 0.9, 0))), "bf16")[0]
    )


def test_where_nothing_was_compared_nothing_is_proved():
    assert "the source finds nothing" in verdict(differences(answer(), answer()))[0]
    unsure = differences(answer((0, 0.5, 0)), answer((0, 0.5, 0)))
    assert verdict(unsure) == []
    assert "no detection is above the display threshold" in verdict(unsure, "bf16")[0]
    assert "AP on --data is 0" in verdict(unsure, "int8", {"source": 0.0, "exported": 0.0})[0]


def test_a_file_that_takes_the_first_pictures_size_for_all_is_found_out():
    class Cropped:
        """A detection as large as each image; `first` takes the first image's size for the batch."""

        threshold, postprocess, preprocess = 0.6, Postprocess(score_threshold=0.05), Preprocess(64)

        def __init__(self, first):
            self.first = first

        def predict_batch(self, images, sizes, originals):
            seen = sizes[:1].expand_as(sizes) if self.first else sizes
            return [
                Detections(torch.tensor([[0, 0, w, h]]), torch.tensor([0.9]), torch.tensor([0]), ["a"])
                for h, w in seen.tolist()
            ]

    picture = torch.zeros(3, 60, 80, dtype=torch.uint8)
    wrong = {
        case.name
        for case in (
            compare_case(*one[:2], Cropped(False), Cropped(True), one[2]) for one in odd_images(picture)
        )
        if verdict(case)
    }
    assert wrong == {"batch"}
