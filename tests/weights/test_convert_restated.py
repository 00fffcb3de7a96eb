"""Weights of Detectron2 and MMDetection give their boxes, by the rules restated in restated.py."""

import copy
import functools
import pickle
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TRAINING
from restated import Detectron2, MMDetection, random_weights, spread
from test_convert import LONG, SHORT, SIZES, picture

import retinanet
from retinanet.cli import main
from retinanet.config.io import flat
from retinanet.data.scenes import NAMES
from retinanet.errors import CheckpointError, ConfigError
from retinanet.weights.foreign import convert
from retinanet.weights.foreign.convert import import_weights, rename
from retinanet.weights.foreign.projects import COCO, DETECTRON2, MMDETECTION

pytest.importorskip("cv2", reason="MMDetection resizes with OpenCV")

CONFIG = """
img_norm_cfg = dict(mean={mean}, std={std}, to_rgb={rgb})
model = dict(
    type='RetinaNet',
    backbone=dict(type='ResNet', depth=50, style='{style}'),
    neck=dict(type='FPN', add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=80,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[.0, .0, .0, .0],
            target_stds=[1.0, 1.0, 1.0, 1.0])),
    train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0)),
    test_cfg=dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05,
        nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
"""
PYTORCH = CONFIG.format(
    mean="[123.675, 116.28, 103.53]", std="[58.395, 57.12, 57.375]", rgb=True, style="pytorch"
)
CAFFE = CONFIG.format(mean="[103.53, 116.28, 123.675]", std="[1.0, 1.0, 1.0]", rgb=False, style="caffe")
KINDS = {
    "detectron2": (Detectron2, 50, {"caffe": True}),
    "mmdet-caffe": (MMDetection, 50, {"caffe": True}),
    "mmdet-pytorch": (MMDetection, 18, {"caffe": False}),
}


def trained(project, layout, image, **how):
    """Random weights whose answers are spread as a trained network's."""
    weights = random_weights(layout)
    names = {"cls": "head.cls_score", "bbox": "head.bbox_pred"} if project is Detectron2 else {}
    names = names or {"cls": "bbox_head.retina_cls", "reg": "bbox_head.retina_reg"}
    with torch.inference_mode(False), torch.no_grad():
        levels = project.pyramid(weights, image, **how)
        for (subnet, name), deviation, mean in zip(names.items(), (0.7, 0.3), (-4.5, 0.0), strict=True):
            spread(weights, name, project.towers(weights, levels, subnet), deviation, mean)
    return weights


def write(path, project, weights, meta=None):
    """As their tools write it: a pickle of numpy arrays, or torch.save with a meta."""
    if project is Detectron2:
        content = {
            "model": {key: value.float().numpy() for key, value in weights.items()},
            "__author__": "Detectron2 Model Zoo",
        }
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(
            {"meta": meta or {}, "state_dict": {key: value.float() for key, value in weights.items()}}, path
        )


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """Their project, our detector from its weights, its raw outputs and its detections on an image."""
    project, depth, how = KINDS[request.param]
    extra = {} if project is Detectron2 else how
    _, image = project.prepared(rgb(480, 640), SHORT, LONG, **extra)
    weights = trained(project, project.layout(depth), image, **how)
    path = tmp_path_factory.mktemp(request.param) / ("theirs.pkl" if project is Detectron2 else "theirs.pth")
    write(
        path, project, weights, {"config": CAFFE if how["caffe"] else PYTORCH, "CLASSES": list(COCO.values())}
    )
    detector = retinanet.load(path, device="cpu", scale=SHORT)

    def raw(image):
        return project.raw(weights, image, **how)

    @functools.cache
    def answers(height, width):
        with torch.inference_mode():
            return project.answers(weights, rgb(height, width), SHORT, LONG, **extra)

    return project, detector, raw, answers, extra


def rgb(height, width):
    return picture(height, width).permute(1, 2, 0).contiguous().numpy()


def unmatched(found, expected):
    """How many detections of either lack in the other: box within 0.01 px, score within 1e-5, same class."""
    boxes, scores, labels = expected
    near = (found.boxes[None] - boxes[:, None]).abs().amax(2) <= 0.01
    near &= (found.scores[None] - scores[:, None]).abs() <= 1e-5
    near &= found.labels[None] == labels[:, None]
    return int((~near.any(dim=1)).sum()) + int((~near.any(dim=0)).sum())


@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_their_boxes_are_ours(both, height, width):
    """In float64, where rounding decides nothing: the same input image, and every detection is the same."""
    project, detector, _, answers, extra = both
    expected = answers(height, width)
    model = copy.deepcopy(detector.model).double()
    with torch.inference_mode():
        size, image = project.prepared(rgb(height, width), SHORT, LONG, **extra)
        batch, sizes = detector.preprocess.stack([detector.preprocess.resized(picture(height, width))])
        assert sizes.tolist() == [list(size)]
        torch.testing.assert_close(
            detector.preprocess.normalize(batch, sizes).double(), image, atol=2e-5, rtol=0
        )
        logits, offsets = model(image)
        (found,) = detector.select((logits, offsets, image), sizes, [(height, width)])
    assert len(found) == len(expected[0]) > (20 if height > 1 else 2)
    assert unmatched(found, expected) == 0


def test_from_a_picture_to_boxes_in_float32(both):
    """The whole way, on every image. Of two boxes that score alike to five digits either may win: 2 %."""
    _, detector, _, answers, _ = both
    wrong, total = 0, 0
    for height, width in SIZES:
        expected = answers(height, width)
        wrong += unmatched(detector.predict(picture(height, width)), expected)
        total += 2 * len(expected[0])
    assert wrong <= 0.02 * total


def test_the_raw_outputs_and_anchors_are_theirs(both):
    project, detector, raw, _, extra = both
    with torch.inference_mode():
        _, image = project.prepared(rgb(97, 301), SHORT, LONG, **extra)
        expected = raw(image)
        found = detector.model(image.float())
    anchors = project.anchors(*image.shape[-2:])
    for ours, theirs in zip(detector.model.anchors(image), anchors, strict=True):
        torch.testing.assert_close(ours, in_our_order(project, theirs), atol=1e-3, rtol=0)
    for outputs, theirs in zip(found, expected, strict=True):
        wanted = torch.cat([in_our_order(project, level) for level in theirs])
        torch.testing.assert_close(
            torch.cat(outputs, 1)[0].double(), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0
        )


def in_our_order(project, level):
    return level if project is Detectron2 else level.unflatten(0, (-1, 3, 3)).transpose(1, 2).flatten(0, 2)


PUBLISHED = {
    "detectron2 R50": (DETECTRON2, Detectron2.layout(50), "resnet50", None),
    "detectron2 R101": (DETECTRON2, Detectron2.layout(101), "resnet101", None),
    "mmdet r18": (MMDETECTION, MMDetection.layout(18), "resnet18", PYTORCH),
    "mmdet r50": (MMDETECTION, MMDetection.layout(50), "resnet50", PYTORCH),
    "mmdet r101 caffe": (MMDETECTION, MMDetection.layout(101), "resnet101", CAFFE),
    "mmdet x101 32x4d": (
        MMDETECTION,
        MMDetection.layout(101, groups=32, width=4),
        "resnext101_32x4d",
        PYTORCH,
    ),
    "mmdet x101 64x4d": (
        MMDETECTION,
        MMDetection.layout(101, groups=64, width=4),
        "resnext101_64x4d",
        PYTORCH,
    ),
}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_every_key_of_the_published_layouts_has_a_rule_and_every_rule_is_used(kind, tmp_path, monkeypatch):
    """On shapes without values; batch norm's counters are there as in the files."""
    project, layout, backbone, config = PUBLISHED[kind]
    weights = {key: torch.empty(shape, device="meta") for key, shape in layout.items()}
    if project is DETECTRON2:  # what files until 2020 have besides
        weights |= {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}
        weights["pixel_mean"] += torch.tensor([103.53, 116.28, 123.675])[:, None, None]
        weights["anchor_generator.cell_anchors.4"] = Detectron2.anchors(128, 128)[4][:9]
    else:
        weights |= {
            key.replace("running_var", "num_batches_tracked"): torch.zeros(1)
            for key in layout
            if key.endswith("running_var")
        }
    path = tmp_path / "theirs.pth"
    path.touch()
    content = {
        "state_dict": weights,
        "meta": {"config": config, "CLASSES": tuple(COCO.values())} if config else {},
    }
    monkeypatch.setattr(convert, "read_foreign", lambda path: content)
    ours, card = import_weights(path)
    assert card.model.network.backbone == backbone
    assert (card.model.network.backbone_stride == "1x1") == (project is DETECTRON2 or config is CAFFE)
    assert len(ours) == len(layout)
    used = {
        next(rule[0] for rule in project.table if re.fullmatch(rule[0], key))
        for key in weights
        if not key.endswith("tracked")
    }
    assert used == {rule[0] for rule in project.table}


def test_resnext_and_a_deep_resnet_give_their_raw_outputs(tmp_path):
    """Groups, and blocks with numbers of two digits."""
    meta = {"cfg": PYTORCH, "dataset_meta": {"classes": ("a", "b")}}
    for project, layout, how in (
        (MMDetection, MMDetection.layout(101, classes=2, groups=32, width=4), {}),
        (Detectron2, Detectron2.layout(101), {"caffe": True}),
    ):
        image = torch.rand(1, 3, 64, 96).double()
        weights = trained(project, layout, image, **how)
        write(tmp_path / f"{project.__name__}.pth", project, weights, meta)
        detector = retinanet.load(tmp_path / f"{project.__name__}.pth", device="cpu")
        with torch.inference_mode():
            expected = project.raw(weights, image, **how)
            found = detector.model(image.float())
        for outputs, theirs in zip(found, expected, strict=True):
            wanted = torch.cat([in_our_order(project, level) for level in theirs])
            torch.testing.assert_close(
                torch.cat(outputs, 1)[0].double(), wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0
            )
    assert retinanet.load(tmp_path / "MMDetection.pth", device="cpu").names == ["a", "b"]


def content(meta, layout=None):
    weights = {
        key: torch.zeros(shape) for key, shape in (layout or MMDetection.layout(18, classes=2)).items()
    }
    return {"state_dict": weights, "meta": meta}


def settings(info):
    """All settings of a file's model by name."""
    return SimpleNamespace(**flat(info.model))


def imported(tmp_path, meta, layout=None, **how):
    torch.save(content(meta, layout), tmp_path / "theirs.pth")
    return import_weights(tmp_path / "theirs.pth", **how)[1]


def test_what_an_mmdetection_file_says_of_itself_is_taken_over(tmp_path):
    changes = {
        "score_thr=0.05": "score_thr=0.1",
        "max_per_img=100": "max_per_img=300",
        "nms_pre=1000": "nms_pre=500",
    }
    changes |= {"octave_base_scale=4": "octave_base_scale=3", "iou_threshold=0.5": "iou_threshold=0.6"}
    changes |= {
        "mean=[123.675, 116.28, 103.53]": "mean=[127.5, 0, 51.0]",
        "std=[58.395, 57.12, 57.375]": "std=[255, 51.0, 25.5]",
    }
    text = PYTORCH
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    model = settings(imported(tmp_path, {"cfg": text, "dataset_meta": {"classes": ("a", "b")}}))
    assert (model.score_threshold, model.max_detections, model.topk_candidates) == (0.1, 300, 500)
    assert (model.anchor_size, model.nms_threshold) == (3.0, 0.6)
    assert model.pixel_mean == pytest.approx((0.5, 0, 0.2))
    assert model.pixel_std == pytest.approx((1, 0.2, 0.1))
    assert (model.pixel_order, model.backbone_stride, model.p7_relu) == ("rgb", "3x3", False)
    augmented = "tta_model = dict(tta_cfg=dict(nms=dict(iou_threshold=0.9), max_per_img=7))"
    sizes = "test_pipeline = [dict(keep_ratio=True, scale=(512, 320), type='Resize')]"
    others = settings(imported(tmp_path, {"cfg": f"{text}\n{augmented}\n{sizes}\n", "CLASSES": ["a", "b"]}))
    assert (others.nms_threshold, others.max_detections, others.scale, others.max_side) == (
        0.6,
        300,
        320,
        512,
    )
    inherited = settings(
        imported(tmp_path, {"config": f"base.py\n{PYTORCH}\nchild.py\n{CAFFE}", "CLASSES": ["a", "b"]})
    )
    assert (inherited.pixel_order, inherited.pixel_std) == ("bgr", pytest.approx((1 / 255,) * 3))
    assert inherited.backbone_stride == "3x3"  # a ResNet-18 has no 1x1 that it could be in


def test_a_file_that_does_not_tell_its_style_needs_it(tmp_path):
    with pytest.raises(ConfigError, match="--style"):
        imported(tmp_path, {"CLASSES": ["a", "b"]})
    assert imported(tmp_path, {"CLASSES": ["a", "b"]}, style="caffe").model.preprocess.pixel_order == "bgr"
    chosen = settings(imported(tmp_path, {"cfg": CAFFE, "CLASSES": ["a", "b"]}, style="pytorch"))
    assert (chosen.pixel_order, chosen.backbone_stride) == ("rgb", "3x3")
    out = tmp_path / "ours.safetensors"
    assert main(["import", str(tmp_path / "theirs.pth"), "--style", "caffe", "--out", str(out)]) == 0
    assert retinanet.load(out, device="cpu").preprocess.pixel_order == "bgr"


def detectron2_file(path, **constants):
    weights = {key: np.zeros(shape, np.float32) for key, shape in Detectron2.layout(50, classes=2).items()}
    weights |= {key: np.array(value, np.float32) for key, value in constants.items()}
    path.write_bytes(pickle.dumps({"model": weights}))
    return path


def test_the_constants_in_a_detectron2_file_are_believed(tmp_path):
    constants = {
        "pixel_mean": [[[103.53]], [[116.28]], [[123.675]]],
        "pixel_std": [[[57.375]], [[57.12]], [[58.395]]],
    }
    model = settings(import_weights(detectron2_file(tmp_path / "bgr.pkl", **constants), ["a", "b"])[1])
    assert (model.pixel_order, model.backbone_stride) == ("bgr", "3x3")
    assert model.pixel_mean == pytest.approx((0.485, 0.456, 0.406))
    assert model.pixel_std == pytest.approx((0.229, 0.224, 0.225))
    constants = {
        "pixel_mean": [[[123.675]], [[116.28]], [[103.53]]],
        "pixel_std": [[[58.395]], [[57.12]], [[57.375]]],
    }
    model = settings(import_weights(detectron2_file(tmp_path / "rgb.pkl", **constants), ["a", "b"])[1])
    assert (model.pixel_order, model.pixel_std) == ("rgb", pytest.approx((0.229, 0.224, 0.225)))
    odd = {"anchor_generator.cell_anchors.0": np.ones((9, 4))}
    with pytest.raises(CheckpointError, match="anchors are not RetinaNet's"):
        import_weights(detectron2_file(tmp_path / "odd.pkl", **odd), ["a", "b"])
    with pytest.raises(ConfigError, match="2 classes, not 0"):
        import_weights(detectron2_file(tmp_path / "none.pkl"), [])


def refused(tmp_path, monkeypatch, file, reason):
    monkeypatch.setattr(convert, "read_foreign", lambda path: file)
    (tmp_path / "theirs.pth").touch()
    with pytest.raises((CheckpointError, ConfigError), match=reason):
        import_weights(tmp_path / "theirs.pth")


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [
        ("bbox_head.retina_cls.bias", (7,), "does not hold|classes"),
        ("bbox_head.retina_cls.bias", (), "does not hold"),
        ("backbone.layer1.0.conv2.weight", (48, 5, 3, 3), "no known ResNet"),
        ("neck.fpn_convs.3.conv.weight", (256, 256, 3, 3), "neither from C5"),
        ("neck.fpn_convs.5.conv.weight", (1,), "no rule for the keys neck.fpn_convs.5"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, monkeypatch, name, shape, reason):
    file = content({"cfg": PYTORCH, "CLASSES": ["a", "b"]})
    file["state_dict"][name] = torch.zeros(shape)
    refused(tmp_path, monkeypatch, file, reason)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("score_thr=0.05", "score_thr=e.-", "does not hold"),
        ("[0.5, 1.0, 2.0]", "[0.5, x, 2.0]", "does not hold"),
        ("nms_pre=1000", f"nms_pre={10**60}", "topk_candidates must be"),
        ("per_octave=3", "per_octave=0", "anchor_scales must be"),
        ("per_octave=3", "per_octave=999999999", "0 classes"),
        ("[1.0, 1.0, 1.0, 1.0]", "[0.1, 0.1, 0.2, 0.2]", "target_stds = 0.1"),
        ("octave_base_scale=4", "scales=[8]", "anchor scales = 8"),
        (
            "\nmodel = ",
            "\ntest_pipeline = [dict(type='Resize', keep_ratio=False)]\nmodel = ",
            "keep_ratio = False",
        ),
        ("ratios=", "strides=[4, 8, 16, 32, 64], ratios=", "strides = 4"),
    ],
)
def test_configs_that_do_not_fit_are_refused(tmp_path, monkeypatch, old, new, reason):
    assert old in PYTORCH
    meta = {"cfg": PYTORCH.replace(old, new), "CLASSES": ["a", "b"]}
    refused(tmp_path, monkeypatch, content(meta), reason)


@pytest.mark.usefixtures("undrawn")
def test_a_training_starts_from_them_and_keeps_the_rows_of_known_classes(scenes, tmp_path, caplog):
    """Two of their three classes have names that the new data know; BGR and what else is theirs stay."""
    names = [NAMES[2], "zeppelin", NAMES[0]]
    file = content({"cfg": CAFFE, "CLASSES": names}, MMDetection.layout(18, classes=3))
    file["state_dict"]["bbox_head.retina_cls.bias"] = torch.arange(27.0)  # by ratio, scale, class
    torch.save(file, tmp_path / "theirs.pth")
    settings = TRAINING | {"scale": 64, "max_side": None, "ema": None}
    with caplog.at_level("INFO", "retinanet"):
        run = retinanet.train(scenes, "tiny", init=tmp_path / "theirs.pth", out=tmp_path / "run", **settings)
    assert f"classes kept by name: {NAMES[0]}, {NAMES[2]}; new: {NAMES[1]}" in caplog.text
    detector = retinanet.load(run, device="cpu")
    assert detector.preprocess.pixel_order == "bgr"
    rows = detector.model.class_subnet[-1].bias.detach().reshape(3, 3, len(NAMES))  # scale, ratio, class
    assert rows[1, 2, 0] == 27 - 9 + 3 + 2  # their third class at ratio 2, scale 1
    assert rows[1, 2, 2] == 27 - 9 + 3


def test_rename_refuses_two_keys_of_one_name(tmp_path):
    weights = {
        "backbone.fpn_lateral3.weight": torch.zeros(1),
        "backbone.fpn_lateral03.weight": torch.zeros(1),
    }
    with pytest.raises(CheckpointError, match="no rule"):
        rename(tmp_path, weights, DETECTRON2.table)
