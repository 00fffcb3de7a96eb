"""Tiles: they cover a picture, and what a seam has cut is found once and whole."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import equal
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import retinanet
from retinanet import cli
from retinanet.commands import evaluate as evaluate_command
from retinanet.commands import predict
from retinanet.config.commands import EvalConfig, PredictConfig
from retinanet.data.formats.coco import read_coco
from retinanet.data.scenes import scene
from retinanet.errors import ConfigError, DataError
from retinanet.evaluation import evaluate
from retinanet.inference.detector import Detector, parts_of
from retinanet.inference.tiles import Tiling, in_tiles, tile_offsets
from retinanet.model.postprocess import Postprocess
from retinanet.model.preprocess import Preprocess
from retinanet.structures import Detections

NAMES = ["ant", "bee", "cow"]


class AsItIs(Preprocess):
    """Pictures go in as they are, so that the stub below answers in whole pixels."""

    def size(self, height, width, scale=None):
        return height, width


class Stub(Detector):
    """Answers the coloured rectangles that it sees: red is the object, green its class, blue its score in
    hundredths.

    blind   looks with a side above this show it nothing: the coarse look at a whole picture
    """

    def __init__(self, blind=10**6):
        self.preprocess, self.postprocess, self.blind = AsItIs(padding_multiple=1), Postprocess(), blind
        self.scales, self.tiling = (self.preprocess,), None
        self.names, self.category_ids, self.threshold = NAMES, [1, 2, 3], 0.5
        self.device, self.precision = torch.device("cpu"), "fp32"
        self.batches = []

    def predict_batch(self, images, sizes, originals):
        self.batches.append([tuple(original) for original in originals])
        return [
            self.look(image[:, :height, :width])
            for image, (height, width) in zip(images, sizes.int().tolist(), strict=True)
        ]

    def look(self, image):
        rows = []
        for number in sorted(set(image[0].unique().tolist()) - {0}) if max(image.shape) <= self.blind else ():
            y, x = (image[0] == number).nonzero(as_tuple=True)
            _, label, score = image[:, y[0], x[0]].tolist()
            rows.append(
                (score / 100, label, [int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1])
            )
        rows.sort(key=lambda row: -row[0])
        boxes = torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 4)
        return Detections(
            boxes,
            torch.tensor([row[0] for row in rows]),
            torch.tensor([row[1] for row in rows], dtype=torch.long),
            NAMES,
        )


def painted(height, width, boxes, labels=None, scores=None):
    """A black picture [3, H, W] with these rectangles, objects 1, 2, ..."""
    picture = torch.zeros(3, height, width, dtype=torch.uint8)
    for number, (left, top, right, bottom) in enumerate(boxes):
        colour = torch.tensor(
            [number + 1, labels[number] if labels else 0, scores[number] if scores else 90], dtype=torch.uint8
        )
        picture[:, top:bottom, left:right] = colour[:, None, None]
    return picture


def found(*rows):
    """Detections from rows of (score, label, box)."""
    boxes = torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 4)
    return Detections(
        boxes,
        torch.tensor([row[0] for row in rows]),
        torch.tensor([row[1] for row in rows], dtype=torch.long),
        NAMES,
    )


@given(st.integers(1, 5000), st.integers(32, 1000), st.floats(0, 0.99))
def test_tiles_cover_a_side_evenly_and_overlap_as_was_asked(length, size, overlap):
    first = tile_offsets(length, size, overlap)
    gaps = np.diff(first)
    assert first[0] == 0
    assert first[-1] == max(0, length - size)
    if len(first) > 1:
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
        assert size - gaps.max() >= min(size * overlap, size - 1)
        # one tile less would not do
        assert len(first) == 2 or (length - size) / (len(first) - 2) > size * (1 - overlap) - 1


@given(st.integers(1, 300), st.integers(1, 300), st.integers(32, 100), st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_every_pixel_lies_in_a_tile_and_every_tile_in_the_picture(height, width, size, overlap):
    whole, *tiles = Tiling(size, overlap).grid(height, width)
    assert whole == (0, 0, width, height)
    assert bool(tiles) == (max(height, width) > size)
    seen = np.zeros((height, width), dtype=int)
    for left, top, right, bottom in tiles:
        assert right - left == min(size, width)
        assert bottom - top == min(size, height)
        seen[top:bottom, left:right] += 1
    assert seen.all() or not tiles


@st.composite
def scattered(draw):
    """Height and width, tile and overlap, and rectangles of any size, no two of which touch."""
    height, width, size = draw(st.integers(40, 200)), draw(st.integers(40, 200)), draw(st.integers(32, 90))
    overlap = draw(st.sampled_from([0.05, 0.1, 0.25, 0.5, 0.8]))
    boxes = []
    for _ in range(draw(st.integers(1, 6))):
        left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
        right, bottom = draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height))
        if all(right < box[0] or box[2] < left or bottom < box[1] or box[3] < top for box in boxes):
            boxes.append((left, top, right, bottom))
    labels = [draw(st.integers(0, 2)) for _ in boxes]
    scores = [draw(st.integers(6, 99)) for _ in boxes]
    return height, width, size, overlap, boxes, labels, scores


@settings(max_examples=150, deadline=None)
@given(scattered(), st.booleans())
def test_whatever_seams_cut_is_found_once_and_whole(case, blind):
    height, width, size, overlap, boxes, labels, scores = case
    stub = Stub(size if blind else 10**6)
    answer = in_tiles(stub, size, overlap).predict(painted(height, width, boxes, labels, scores))
    expected = sorted(zip((score / 100 for score in scores), labels, boxes, strict=True))
    rows = zip(
        answer.scores.tolist(), answer.labels.tolist(), map(tuple, answer.boxes.int().tolist()), strict=True
    )
    assert sorted((round(score, 2), label, box) for score, label, box in rows) == expected
    assert (answer.scores.diff() <= 0).all()


def test_without_overlap_an_object_on_a_seam_is_found_in_two_pieces():
    answer = in_tiles(Stub(blind=64), 64, 0.0).predict(painted(64, 128, [(50, 10, 70, 20)]))
    assert answer.boxes.tolist() == [[50, 10, 64, 20], [64, 10, 70, 20]]


TILES = Tiling(100, 0.25).grid(100, 175)
"""The whole, then tiles of 100 that begin at 0 and at 75: the seams are at 75 and at 100."""


def of_both(left=(), right=(), whole=(), threshold=0.5):
    """Merged answers of the two tiles and of the whole; boxes in pixels of the picture."""
    moved = [(score, label, [x1 - 75, y1, x2 - 75, y2]) for score, label, (x1, y1, x2, y2) in right]
    answer = Tiling(100, 0.25).merge(
        TILES, [found(*whole), found(*left), found(*moved)], (100, 175), threshold
    )
    return [
        (round(score, 2), NAMES.index(name), [round(side) for side in box]) for name, score, box in answer
    ]


def test_the_tile_that_sees_all_of_an_object_answers_for_it():
    car = (0.6, 0, [90, 10, 110, 20])
    assert of_both(left=[(0.9, 0, [90, 10, 99.5, 20])], right=[car]) == [car]
    # a piece of a bus may look like another class; nobody who sees all of it says so
    assert of_both(left=[(0.9, 1, [90, 10, 99.5, 20])], right=[car]) == [car]
    assert of_both(left=[(0.9, 0, [90, 10, 99.5, 20])]) == []
    # cut by the border of the picture, or near no seam: it stays
    corner, middle = (0.9, 0, [0, 0, 20, 20]), (0.8, 0, [30, 60, 50, 80])
    assert of_both(left=[corner, middle]) == [corner, middle]


def test_pieces_become_one_box_with_the_best_score_and_each_side_from_the_best_piece_that_has_it():
    long = [(0.6, 0, [40, 10, 100, 20])], [(0.7, 0, [75, 11, 150, 21])]
    assert of_both(*long) == [(0.7, 0, [40, 11, 150, 21])]
    other = [(0.6, 0, [40, 10, 100, 20])], [(0.7, 1, [75, 11, 150, 21])]
    assert of_both(*other) == [(0.7, 1, [75, 11, 150, 21]), (0.6, 0, [40, 10, 100, 20])]
    below = [(0.6, 0, [40, 10, 100, 20])], [(0.7, 0, [75, 21, 150, 31])]
    assert len(of_both(*below)) == 2


def test_a_piece_of_low_score_goes_and_makes_nothing_larger():
    junk = (0.1, 0, [75, 11, 150, 21])
    assert of_both([(0.6, 0, [40, 10, 100, 20])], [junk]) == [(0.6, 0, [40, 10, 100, 20])]
    assert of_both([(0.6, 0, [40, 10, 100, 20])], [junk, (0.4, 0, [75, 10, 120, 20])]) == [
        (0.6, 0, [40, 10, 120, 20])
    ]


def test_a_piece_goes_where_the_look_at_the_whole_finds_its_object_with_half_of_its_score():
    ship = (0.5, 0, [42, 9, 151, 21])
    assert of_both([(0.9, 0, [40, 10, 100, 20])], [], [ship]) == [ship]
    assert of_both([(0.9, 1, [40, 10, 100, 20])], [], [ship]) == [(0.9, 1, [40, 10, 100, 20]), ship]
    faint = (0.4, *ship[1:])
    assert of_both([(0.9, 0, [40, 10, 100, 20])], [], [faint]) == [(0.9, 0, [40, 10, 100, 20]), faint]
    # pieces that make a whole are held against it by their score alone
    both = [(0.6, 0, [40, 10, 100, 20])], [(0.7, 0, [75, 11, 150, 21])]
    assert of_both(*both, [ship]) == [(0.7, 0, [40, 11, 150, 21])]
    assert of_both(*both, [(0.8, *ship[1:])]) == [(0.8, *ship[1:])]


def test_the_look_at_the_whole_has_no_say_on_small_objects_of_which_a_tile_sees_all():
    small, large, cut_by_both = (
        (0.9, 0, [20, 20, 36, 30]),
        (0.9, 0, [20, 20, 37, 30]),
        (0.9, 0, [30, 20, 120, 30]),
    )
    assert of_both(whole=[small]) == []
    assert of_both(whole=[large]) == [large]
    assert of_both(left=[(0.95, 0, [21, 20, 36, 30])], whole=[large]) == [(0.95, 0, [21, 20, 36, 30])]
    assert of_both(whole=[cut_by_both]) == [cut_by_both]


def test_boxes_of_two_tiles_suppress_each_other_within_their_class_at_the_models_threshold():
    left, right = [(0.9, 0, [80, 10, 90, 20])], [(0.8, 0, [82, 10, 92, 20])]  # IoU 2/3
    assert of_both(left, right) == left
    assert of_both(left, right, threshold=0.7) == left + right
    right = [(0.8, 1, [82, 10, 92, 20])]
    assert of_both(left, right) == left + right


def test_an_object_across_five_tiles_is_one_box():
    answer = in_tiles(Stub(blind=64), 64, 0.25).predict(painted(64, 250, [(5, 20, 245, 40)]))
    assert answer.boxes.tolist() == [[5, 20, 245, 40]]


def test_all_that_is_left_is_kept_also_more_than_the_detector_gives_for_a_look():
    stub = Stub()
    stub.postprocess = Postprocess(max_detections=1)
    boxes = [(x, y, x + 4, y + 4) for x in range(2, 120, 8) for y in range(2, 60, 8)]
    assert len(in_tiles(stub, 32).predict(painted(64, 128, boxes))) == len(boxes) == 120


def test_a_tile_is_prepared_like_a_picture_of_its_own():
    picture = torch.from_numpy(scene(1, (96, 128), (16, 64)).image).permute(2, 0, 1)
    for kind in ("antialias", "plain", "opencv", "pillow"):
        preprocess = Preprocess(50, resize=kind)
        for look in parts_of(3, picture, [preprocess], Tiling(64, 0.25)):
            left, top, right, bottom = look.box
            alone = picture[:, top:bottom, left:right].permute(1, 2, 0).contiguous().permute(2, 0, 1)
            assert torch.equal(look.scaled[0], preprocess.resized(alone))
            assert (look.position, look.total, look.image_size) == (3, 7, (96, 128))


def test_a_tile_that_needs_no_resizing_does_not_hold_the_picture():
    """A view would be sent to another process with all of the picture."""
    picture = torch.zeros(3, 500, 500, dtype=torch.uint8)
    _, *tiles = parts_of(0, picture, [Preprocess(64)], Tiling(64, 0.25))
    assert {look.scaled[0].untyped_storage().nbytes() for look in tiles} == {3 * 64 * 64}


def test_tiles_of_several_pictures_share_batches_and_few_exist_at_a_time(monkeypatch):
    made, most = [0], [0]
    resized = AsItIs.resized

    def counted(self, image, scale=None):
        made[0] += 1
        return resized(self, image, scale)

    monkeypatch.setattr(AsItIs, "resized", counted)
    stub = Stub()
    answer = stub.predict_batch

    def answered(images, sizes, originals):
        most[0] = max(most[0], made[0] - sum(map(len, stub.batches)))
        return answer(images, sizes, originals)

    stub.predict_batch = answered
    pictures = [painted(64, 64 + 80 * (number % 2), [(50, 10, 70, 20)]) for number in range(5)]
    answers = in_tiles(stub, 64).predict(pictures, batch=3)
    assert [one.boxes.tolist() for one in answers] == [[[50, 10, 64, 20]], [[50, 10, 70, 20]]] * 2 + [
        [[50, 10, 64, 20]]
    ]
    # pictures 0, 1, 2: one tile, three tiles and the whole of 144, one tile; then pictures 3 and 4 alike
    small, large = (64, 64), (64, 144)
    assert stub.batches == [[small] * 3, [large], [small] * 2, [small] * 3, [large], [small]]
    assert most[0] <= 3 + 1


def test_answers_do_not_depend_on_batch_neighbours_or_order():
    generator = torch.Generator().manual_seed(0)
    pictures = []
    for _ in range(6):
        corners = torch.randint(0, 100, (4, 2), generator=generator).tolist()
        pictures.append(
            painted(130, 150, [(x, y, x + 25, y + 18) for x, y in corners], scores=[50, 50, 60, 50])
        )
    alone = [in_tiles(Stub(), 64).predict(picture) for picture in pictures]
    assert all(map(equal, in_tiles(Stub(), 64).predict(pictures, batch=4), alone))
    assert all(map(equal, in_tiles(Stub(), 64).predict(pictures[::-1], batch=5)[::-1], alone))
    with pytest.raises(ConfigError, match="batch"):
        in_tiles(Stub(), 64).predict(pictures, batch=0)


@pytest.fixture(scope="module")
def detector(trained):
    detector = retinanet.load(trained, device="cpu")
    detector.postprocess = Postprocess(score_threshold=0.001)  # an untrained network is sure of nothing
    return detector


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, (height, width) in enumerate([(96, 128), (64, 60), (128, 96), (30, 200)]):
        Image.fromarray(scene(number, (200, 200), (16, 64)).image[:height, :width]).save(
            folder / f"{number}.png"
        )
    return sorted(folder.glob("*.png"))


def test_a_picture_no_larger_than_a_tile_is_answered_as_ever(detector, files):
    assert all(map(equal, in_tiles(detector, 200).predict(files), detector.predict(files)))
    assert in_tiles(detector, None) is detector
    assert len(in_tiles(detector, 64).predict(files[0])) > len(detector.predict(files[0]))


def test_a_stream_of_files_gives_the_same_for_any_number_of_loaders_and_names_the_broken(
    detector, files, tmp_path
):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff nothing")
    tiled = in_tiles(detector, 64)
    paths = [files[0], bad, *files[1:]]
    single = dict(tiled.stream(paths, batch=2, workers=0))
    several = dict(tiled.stream(paths, batch=2, workers=3))
    assert single.keys() == several.keys() == set(range(5))
    assert isinstance(single[1], DataError) and "bad.jpg" in str(several.pop(1))
    assert all(equal(single[index], several[index]) for index in several)
    limited = dict(tiled.stream(files, workers=0, max_pixels=64 * 64))
    assert [index for index in range(4) if isinstance(limited[index], DataError)] == [0, 2, 3]
    assert list(tiled.stream([], workers=0)) == []


def test_processes_share_an_evaluation_in_the_batches_of_one(scenes, monkeypatch):
    data = read_coco(scenes / "annotations" / "train.json")

    def answers(rank, world):
        monkeypatch.setattr(evaluate, "rank", lambda: rank)
        monkeypatch.setattr(evaluate, "world", lambda: world)
        stub = Stub(blind=0)
        found = dict(evaluate.predict_multi_view(in_tiles(stub, 50), data, 2, 0, 10**8))
        return list(found), sorted(stub.batches)

    (whole, batches), *shares = answers(0, 1), answers(0, 2), answers(1, 2)
    assert whole == sorted(shares[0][0] + shares[1][0]) == list(range(6))
    assert batches == sorted(shares[0][1] + shares[1][1])


def test_the_verb_eval_scores_what_prediction_in_tiles_answers(trained, detector, scenes, tmp_path):
    config = EvalConfig(split="test", out=tmp_path, device="cpu", workers=0, tiles=64, overlap=0.5)
    metrics = evaluate_command.run(str(trained), str(scenes), config)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["AP"] == metrics["AP"]
    assert (written["config"]["tiles"], written["config"]["overlap"]) == (64, 0.5)
    data = read_coco(scenes / "annotations" / "test.json")
    counted = []
    tiled = in_tiles(detector, 64)
    evaluation = evaluate.evaluate(tiled, data, 2, progress=counted.append)
    assert len(evaluation.results) == sum(
        map(len, tiled.predict([data.path(index) for index in range(3)], batch=2))
    )
    assert counted == [1, 2, 3]
    assert evaluation.losses == {}


def test_a_prediction_in_other_tiles_is_another_prediction(trained, files, tmp_path):
    def run(**settings):
        config = PredictConfig(device="cpu", workers=0, out=tmp_path / "out", save_images=False, **settings)
        return predict.run(str(trained), [str(files[0].parent)], config)

    assert run(tiles=64)
    assert json.loads((tmp_path / "out" / "about.json").read_text())["tiles"] == [64, 0.25]
    (tmp_path / "out" / "parts").mkdir()  # as if the last process had not cleared away
    assert run(tiles=64)
    for other in ({}, {"tiles": 80}, {"tiles": 64, "overlap": 0.5}):
        (tmp_path / "out" / "parts").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match="with other tiles;"):
            run(**other)


def test_the_flags_are_those_of_eval_and_predict():
    for command in ("predict", "eval"):
        _, (*_, config) = cli.parse([command, "m", "a", "--tiles", "800", "--overlap", "0.3"])
        assert (config.tiles, config.overlap) == (800, 0.3)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"tiles": 8}, "between 32 and 65536, not 8"),
        ({"tiles": 64, "overlap": 1.0}, "overlap must be at least 0 and below 1, not 1"),
        ({"tiles": 64, "overlap": -0.1}, "not -0.1"),
        ({"tiles": 64, "overlap": float("nan")}, "not nan"),
        ({"tiles": 64, "scales": (64, 96)}, "either tiles or several scales"),
        ({"overlap": 0.5}, "say how large these are with --tiles"),
    ],
)
def test_tiles_without_meaning_are_refused_before_anything_is_read(wrong, reason, tmp_path, scenes):
    with pytest.raises(ConfigError, match=reason):
        predict.run("nowhere", [str(tmp_path)], PredictConfig(**wrong))
    with pytest.raises(ConfigError, match=reason):
        evaluate_command.run("nowhere", str(scenes), EvalConfig(**wrong))


def test_a_detector_of_several_scales_is_not_wrapped():
    with pytest.raises(ConfigError, match="either tiles or several scales"):
        in_tiles(SimpleNamespace(scales=(1, 2)), 64)
