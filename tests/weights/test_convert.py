"""Weights of other projects give their boxes: both RetinaNets of torchvision, with random weights."""

import copy
import re

import pytest
import torch
from helpers import TRAINING
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.ops.misc import FrozenBatchNorm2d

import retinanet
from retinanet.cli import main
from retinanet.errors import CheckpointError, ConfigError
from retinanet.weights.checkpoint import build
from retinanet.weights.foreign import convert
from retinanet.weights.foreign.convert import import_weights, rename
from retinanet.weights.foreign.projects import COCO, TORCHVISION

BUILDERS = {"v1": retinanet_resnet50_fpn, "v2": retinanet_resnet50_fpn_v2}
SHORT, LONG = 200, 333
"""Sides instead of 800 and 1333: sixteen times as fast, and the same arithmetic."""
SIZES = [(480, 640), (640, 480), (333, 500), (97, 1201), (1201, 97), (31, 33), (1, 40)]
SIZES += [(801, 801), (800, 1333), (1500, 2100), (427, 639), (64, 64)]
"""Height and width: usual, odd, tiny, long, and larger than the limit."""


def picture(height, width):
    """Noise of several sizes, so that no two places look alike."""
    generator = torch.Generator().manual_seed(height * 10_000 + width)
    layers = []
    for cell in (1, 4, 16, 64):
        coarse = torch.rand(1, 3, max(2, height // cell), max(2, width // cell), generator=generator)
        layers.append(nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0])
    return (torch.stack(layers).mean(0).sub(0.5).mul(2.5).add(0.5).clamp(0, 1) * 255).byte()


def randomised(version, seed=0):
    """torchvision's network as if trained: spread logits and offsets, wide batch-norm statistics."""
    torch.manual_seed(seed)
    model = BUILDERS[version](weights=None, weights_backbone=None, min_size=SHORT, max_size=LONG).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
                module.running_mean.normal_(0, 0.1)
                module.running_var.copy_(torch.rand_like(module.running_var) + 0.5)
                module.running_var[0] = 1e-8
                module.weight.uniform_(0.2, 0.5)
                module.weight[0] = 1e-5
                module.bias.normal_(0, 0.1)
            if isinstance(module, nn.GroupNorm):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        for head in (model.head.classification_head, model.head.regression_head):
            for module in head.conv.modules():
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        spread(model, model.head.classification_head.cls_logits, 0.7, -4.5)
        spread(model, model.head.regression_head.bbox_reg, 0.3, 0.0)
        dead = torch.tensor([slot not in COCO for slot in range(91)])
        # in trained weights nobody has seen these
        model.head.classification_head.cls_logits.bias.unflatten(0, (9, 91))[:, dead] = -100.0
    return model


def spread(model, conv, deviation, mean):
    """Scale a last convolution so that each channel varies from cell to cell, as in a trained network."""
    nn.init.normal_(conv.weight)
    nn.init.zeros_(conv.bias)
    seen = []
    hook = conv.register_forward_hook(lambda layer, inputs, output: seen.append(output[0].flatten(1)))
    images, _ = model.transform([picture(480, 640).float() / 255])
    model.head(list(model.backbone(images.tensors).values()))
    hook.remove()
    values = torch.cat(seen, dim=1)  # [channels, cells of all levels]
    factor = deviation / values.std(dim=1)
    conv.weight.mul_(factor[:, None, None, None])
    conv.bias.copy_(mean - values.mean(dim=1) * factor)


@pytest.fixture(scope="module", params=BUILDERS)
def both(request, tmp_path_factory):
    """torchvision's detector, ours from its state dict, and the file."""
    theirs = randomised(request.param)
    path = tmp_path_factory.mktemp(request.param) / "theirs.pth"
    torch.save(theirs.state_dict(), path)
    return theirs, retinanet.load(path, device="cpu", scale=SHORT), path


def unmatched(found, expected):
    """How many of torchvision's detections are not ours: same class, box to 0.01 px, score to 1e-5."""
    labels = torch.tensor([list(COCO).index(int(label)) for label in expected["labels"]])
    near = (found.boxes[None] - expected["boxes"][:, None]).abs().amax(2) <= 0.01
    near &= (found.scores[None] - expected["scores"][:, None]).abs() <= 1e-5
    near &= found.labels[None] == labels[:, None]
    return int((~near.any(dim=1)).sum()) + int((~near.any(dim=0)).sum())


@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_torchvisions_boxes_are_ours(both, height, width):
    """In float64, where rounding decides nothing: every answer is the same."""
    theirs, detector, _ = (copy.deepcopy(one) for one in both)
    theirs, model = theirs.double(), detector.model.double()
    image = picture(height, width)
    with torch.inference_mode():
        (expected,) = theirs([image.double() / 255])
        transformed, _ = theirs.transform([image.double() / 255])
        _, sizes = detector.preprocess.stack([detector.preprocess.resized(image)])
        assert sizes.tolist() == [list(map(float, size)) for size in transformed.image_sizes]
        logits, offsets = model(transformed.tensors)
        (found,) = detector.select((logits, offsets, transformed.tensors), sizes, [(height, width)])
    assert len(found) == len(expected["boxes"]) > 20
    assert unmatched(found, expected) == 0


@pytest.mark.parametrize(("height", "width"), SIZES, ids=str)
def test_from_a_picture_to_boxes_in_float32(both, height, width):
    """The whole way. Of two boxes whose scores agree to five digits either may win the NMS: 2 % differ."""
    theirs, detector, _ = both
    image = picture(height, width)
    with torch.inference_mode():
        (expected,) = theirs([image.float() / 255])
        transformed, _ = theirs.transform([image.float() / 255])
    batch, sizes = detector.preprocess.stack([detector.preprocess.resized(image)])
    torch.testing.assert_close(
        detector.preprocess.normalize(batch, sizes), transformed.tensors, atol=1e-5, rtol=0
    )
    found = detector.predict(image)
    assert abs(len(found) - len(expected["boxes"])) <= 0.02 * len(found)
    assert unmatched(found, expected) <= 2 * 0.02 * len(found)


def raw(theirs, images):
    """torchvision's logits [A, 80] and offsets [A, 4] for normalised images, its anchors in our order."""
    outputs = theirs.head(list(theirs.backbone(images).values()))

    def ordered(values):
        return values[0].unflatten(0, (-1, 3, 3)).transpose(1, 2).flatten(0, 2)

    return ordered(outputs["cls_logits"])[:, list(COCO)], ordered(outputs["bbox_regression"])


@pytest.mark.parametrize(("height", "width"), [(333, 500), (97, 301)], ids=str)
def test_the_raw_outputs_are_torchvisions(both, height, width):
    theirs, detector, _ = both
    image = picture(height, width)
    with torch.inference_mode():
        transformed, _ = theirs.transform([image.float() / 255])
        expected = raw(theirs, transformed.tensors)
        batch, sizes = detector.preprocess.stack([detector.preprocess.resized(image)])
        normalized = detector.preprocess.normalize(batch, sizes)
        torch.testing.assert_close(normalized, transformed.tensors, atol=1e-5, rtol=1e-5)
        for found, wanted in zip(detector.model(normalized), expected, strict=True):
            torch.testing.assert_close(
                torch.cat(found, 1)[0], wanted, atol=1e-4 * float(wanted.abs().max()), rtol=0
            )


def test_the_anchors_are_torchvisions(both):
    theirs, detector, _ = both
    from torchvision.models.detection.image_list import ImageList

    for height, width in ((800, 1088), (800, 800), (96, 1344)):
        images = torch.zeros(1, 3, height, width)
        shapes = [
            torch.zeros(1, 1, -(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)
        ]
        (expected,) = theirs.anchor_generator(ImageList(images, [(height, width)]), shapes)
        ordered = expected.unflatten(0, (-1, 3, 3)).transpose(1, 2).flatten(0, 2)
        torch.testing.assert_close(torch.cat(detector.model.anchors(images)), ordered, atol=0, rtol=0)


def test_every_rule_is_used_and_every_key_has_one(both):
    theirs, _, path = both
    ours = rename(path, theirs.state_dict(), TORCHVISION.table)
    counted = [key for key in theirs.state_dict() if not key.endswith("num_batches_tracked")]
    assert len(ours) == len(counted)


def old_names(weights):
    """The keys as torchvision before 0.13 wrote them, and its published v1 file has them."""

    def old(key):
        key = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", key)
        return re.sub(r"_head\.conv\.(\d)\.0\.", lambda found: f"_head.conv.{2 * int(found[1])}.", key)

    return {old(key): value for key, value in weights.items()}


def test_the_names_of_old_files_are_understood(tmp_path):
    weights = randomised("v1").state_dict()
    torch.save(old_names(weights), tmp_path / "old.pth")
    torch.save(weights, tmp_path / "new.pth")
    (old, _), (new, _) = (import_weights(tmp_path / name) for name in ("old.pth", "new.pth"))
    assert all(torch.equal(old[key], new[key]) for key in new)
    used = {
        next(rule[0] for rule in TORCHVISION.table if re.fullmatch(rule[0], key))
        for key in [*weights, *old_names(weights)]
    }
    v2 = randomised("v2").state_dict()
    used |= {next(rule[0] for rule in TORCHVISION.table if re.fullmatch(rule[0], key)) for key in v2}
    assert used == {rule[0] for rule in TORCHVISION.table}


def test_the_eps_of_batch_norm_makes_the_boxes(tmp_path):
    """torchvision sets it to 0 when it loads its own v1 file; a file of a user's own has 1e-5."""
    from torchvision.models.detection._utils import overwrite_eps

    theirs = randomised("v1")
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    overwrite_eps(theirs, 0.0)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    weights, card = import_weights(tmp_path / "theirs.pth", eps=0.0)
    assert card.model.network.backbone_eps == 0.0
    model = build(card.model, 80).eval()
    model.load_state_dict(weights)
    images = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        expected, _ = raw(theirs, images)
        logits, _ = model(images)
    torch.testing.assert_close(
        torch.cat(logits, 1)[0], expected, atol=1e-4 * float(expected.abs().max()), rtol=0
    )


def test_the_verb_writes_a_file_of_ours_that_answers_alike(both, tmp_path, capsys):
    _, detector, path = both
    out = tmp_path / "ours.safetensors"
    assert main(["import", str(path), "--out", str(out)]) == 0
    again = retinanet.load(out, device="cpu", scale=SHORT)
    assert again.names == list(COCO.values())
    assert again.category_ids == list(COCO)
    image = picture(97, 301)
    assert torch.equal(again.predict(image).boxes, detector.predict(image).boxes)
    assert main(["import", str(path), "--out", str(out)]) == 1
    assert "nothing is overwritten" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_a_training_starts_from_imported_weights_with_other_classes(both, scenes, tmp_path, caplog):
    _, detector, path = both
    settings = TRAINING | {"scale": 64, "max_side": None}
    with caplog.at_level("INFO", "retinanet"):
        run = retinanet.train(scenes, "tiny", init=path, out=tmp_path / "run", **settings)
    assert "no class has a name that the model knows" in caplog.text
    mine = retinanet.load(run, device="cpu").model.state_dict()
    theirs = detector.model.state_dict()
    assert torch.equal(mine["pyramid.p6.weight"], theirs["pyramid.p6.weight"])


@pytest.fixture(scope="module")
def published():
    """The state dict of torchvision's first RetinaNet."""
    return BUILDERS["v1"](weights=None, weights_backbone=None).state_dict()


@pytest.mark.parametrize(
    ("name", "shape", "reason"),
    [  # a tensor of that shape, or none
        ("head.regression_head.bbox_reg.bias", None, "not the whole of a RetinaNet"),
        ("backbone.body.layer3.0.conv1.weight", None, "missing"),
        ("head.mask.weight", (1,), "no rule for the keys head.mask.weight"),
        ("backbone.body.layer5.weight", (1,), "left over"),
        ("backbone.body.conv1.weight", (64, 4, 7, 7), "of another shape"),
        ("backbone.body.conv1.weight", None, "1 missing, the first: backbone.body.conv1.weight"),
        ("head.classification_head.cls_logits.weight", None, "no.* project that is known"),
        ("backbone.body.layer1.0.conv2.weight", None, "no known ResNet"),
    ],
)
def test_weights_that_do_not_fit_are_refused(published, tmp_path, monkeypatch, name, shape, reason):
    weights = {key: value for key, value in published.items() if key != name}
    weights |= {} if shape is None else {name: torch.zeros(shape)}
    monkeypatch.setattr(convert, "read_foreign", lambda path: weights)
    (tmp_path / "theirs.pth").touch()
    with pytest.raises(CheckpointError, match=reason):
        import_weights(tmp_path / "theirs.pth")


def test_classes_that_are_not_cocos_need_names(tmp_path):
    weights = BUILDERS["v1"](weights=None, weights_backbone=None, num_classes=3).state_dict()
    torch.save(weights, tmp_path / "theirs.pth")
    with pytest.raises(ConfigError, match="--names"):
        import_weights(tmp_path / "theirs.pth")
    (tmp_path / "names.txt").write_text("background\ncat\ndog\n")
    assert main(["import", str(tmp_path / "theirs.pth"), "--names", str(tmp_path / "names.txt")]) == 0
    assert retinanet.load(tmp_path / "theirs.safetensors", device="cpu").names == ["background", "cat", "dog"]
    with pytest.raises(ConfigError, match="3 classes, not 2"):
        import_weights(tmp_path / "theirs.pth", ["cat", "dog"])
