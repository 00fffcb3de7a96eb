"""What a user adds from outside, without a change to the package: losses, an assigner, a backbone, a neck, a
format. Each of them trains."""

import typing
from dataclasses import replace
from types import MappingProxyType

import pytest
import torch
from helpers import SMALL
from PIL import Image
from torch import nn

import retinanet
from retinanet.config.schema import CriterionConfig, NetworkConfig, SourceOptions
from retinanet.data.dataset import Columns
from retinanet.data.formats.detect import FORMATS, open_dataset
from retinanet.data.formats.format import Format
from retinanet.data.images import image_size
from retinanet.errors import ConfigError, DataError
from retinanet.model.criterion import ASSIGNERS, MINING, Criterion
from retinanet.model.fuse_bn import fused_copy
from retinanet.model.retinanet import NECKS, RetinaNet
from retinanet.ops.assign import BACKGROUND
from retinanet.ops.fused import CLASS_LOSSES, ClassLoss
from retinanet.ops.losses import BOX_LOSSES
from retinanet.structures import Targets


def read_csv(file, images):
    rows = [line.split(",") for line in file.read_text().split()[1:]]
    names, columns = sorted({row[5] for row in rows}), Columns()
    for number, name in enumerate(sorted({row[0] for row in rows}), start=1):
        height, width = image_size(file.parent / name)
        columns.image(name, number, height, width)
        for place, (image, *corners, label) in enumerate(rows, start=1):
            if image == name:
                columns.box(tuple(map(float, corners)), names.index(label), place)
    return {"all": columns.build(file, images or file.parent, "all", names, range(1, len(names) + 1))}


def recognise_csv(root, images):
    files = sorted(root.glob("*.csv"))
    return (lambda: read_csv(files[0], images)) if files else None


@pytest.fixture
def csv_set(tmp_path, monkeypatch):
    """Four images with boxes in a CSV file, and the format to read it."""
    rows = ["image,xmin,ymin,xmax,ymax,label"]
    for number in range(4):
        Image.new("RGB", (64, 64), (60 * number, 80, 90)).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,8,8,40,{40 + number},cat")
    (tmp_path / "boxes.csv").write_text("\n".join(rows))
    with pytest.raises(DataError, match="no data set was recognised"):
        open_dataset(tmp_path)
    csv = Format(recognise_csv, "one *.csv beside the images", (".csv",), read_csv)
    monkeypatch.setitem(FORMATS, "csv", csv)
    return tmp_path


def test_a_format_is_two_functions_and_an_entry(csv_set):
    for path, layout in ((csv_set, None), (csv_set / "boxes.csv", None), (csv_set, "csv")):
        data = open_dataset(path, layout)["all"]
        assert data.names == ("cat",)
        assert data.boxes.tolist() == [[8, 8, 40, bottom] for bottom in (40, 41, 42, 43)]


def test_a_new_format_is_named_where_none_is_recognised(csv_set):
    (csv_set / "boxes.csv").unlink()
    with pytest.raises(DataError, match=r"(?s)CSV   one .*beside the images\nIt holds"):
        open_dataset(csv_set)
    with pytest.raises(DataError, match=r"a COCO \.json, a YOLO \.yaml, a CSV \.csv, or the folder"):
        open_dataset(csv_set / "0.png")


def test_a_new_format_trains(csv_set, tmp_path_factory):
    out = tmp_path_factory.mktemp("csv") / "run"
    run = retinanet.train(csv_set, "tiny", out=out, **SMALL | {"budget": "2it", "validations": 1})
    assert retinanet.load(run).names == ["cat"]


class Backbone(nn.Module):
    """A network that timm lacks."""

    channels = (8, 12, 16)

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8, bias=False), nn.BatchNorm2d(8))
        self.down = nn.ModuleList([nn.Conv2d(8, 12, 2, stride=2), nn.Conv2d(12, 16, 2, stride=2)])

    def forward(self, images):
        c3 = self.stem(images).relu()
        c4 = self.down[0](c3).relu()
        return [c3, c4, self.down[1](c4).relu()]


class Neck(nn.Module):
    """Two maps, each with anchors of its own size and of twice that."""

    strides = MappingProxyType({8: (8, 16), 16: (16, 32)})

    def __init__(self, in_channels, channels, p6, p7_relu):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels[:2])

    def forward(self, features):
        return [lateral(level) for lateral, level in zip(self.lateral, features[:2], strict=True)]


def asymmetric(logits, targets, shift=0.05):
    p = logits.sigmoid()
    return -torch.where(targets > 0, p, 1 - (p - shift).clamp(min=0)).clamp(min=1e-6).log()


def losses_of_steps(model=None, steps=8, **settings):
    """The total loss of each step of a plain training loop."""
    torch.manual_seed(0)
    model = model or RetinaNet(2, Backbone(), channels=16, num_convs=1, prior=0.1)
    criterion, images = Criterion(**settings), torch.rand(2, 3, 64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    targets = Targets.pad([torch.tensor([[8.0, 8, 40, 40]])] * 2, [torch.tensor([0])] * 2, [(64, 64)] * 2)
    totals = []
    for _ in range(steps):
        anchors = model.anchors(images)
        loss = sum(criterion(*model(images), anchors, criterion.match(anchors, targets)).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    return totals


def test_a_backbone_is_a_module():
    totals = losses_of_steps()
    assert totals[-1] < totals[0]


def test_batch_norm_of_a_users_backbone_is_folded_too():
    torch.manual_seed(0)
    model = RetinaNet(2, Backbone(), channels=16, num_convs=1, prior=0.1)
    model(torch.rand(2, 3, 64, 64))  # statistics
    copy, images = fused_copy(model), torch.rand(1, 3, 64, 64)
    assert not [layer for layer in copy.modules() if isinstance(layer, nn.BatchNorm2d)]
    with torch.no_grad():
        torch.testing.assert_close(copy(images)[0][0], model.eval()(images)[0][0])


def test_a_class_loss_is_a_function_with_its_parameter(monkeypatch):
    monkeypatch.setitem(CLASS_LOSSES, "asymmetric", ClassLoss(asymmetric, {"shift": 0.05}))
    plain, shifted = (losses_of_steps(loss="asymmetric", shift=shift) for shift in (0.0, 0.2))
    assert plain[-1] < plain[0]
    assert shifted[0] < plain[0]  # no loss for negatives below the shift


@pytest.mark.parametrize("loss", CLASS_LOSSES)
def test_a_loss_trains_alike_without_its_fused_form(loss, monkeypatch):
    dense = replace(CLASS_LOSSES[loss], loss_and_grad=None)
    monkeypatch.setitem(CLASS_LOSSES, "dense", dense)
    assert losses_of_steps(loss="dense") == pytest.approx(losses_of_steps(loss=loss), rel=1e-4)


def test_a_box_loss_is_a_function(monkeypatch):
    monkeypatch.setitem(BOX_LOSSES, "l2", ("offsets", lambda prediction, target: (prediction - target) ** 2))
    totals = losses_of_steps(box_loss="l2")
    assert totals[-1] < totals[0]


def test_an_assigner_is_a_function(monkeypatch):
    def all_background(anchors, boxes, valid, *limits):
        return torch.full(valid.shape, BACKGROUND)

    monkeypatch.setitem(ASSIGNERS, "nothing", all_background)
    torch.manual_seed(0)
    model = RetinaNet(2, Backbone(), channels=16, num_convs=1)
    before = model.box_subnet[-1].weight.clone()
    losses_of_steps(model, assigner="nothing")
    assert torch.equal(model.box_subnet[-1].weight, before)  # no positive, no box loss


def test_the_anchors_follow_from_a_neck(monkeypatch):
    monkeypatch.setitem(NECKS, "two", Neck)
    model = RetinaNet(
        2, Backbone(), channels=16, num_convs=1, prior=0.1, pyramid="two", anchor_scales=(1, 1.5)
    )
    images = torch.rand(1, 3, 64, 64)
    assert model.levels == ["P3", "P4"]
    assert [len(level) for level in model.anchors(images)] == [8 * 8 * 12, 4 * 4 * 12]
    assert [level.shape[1] for level in model(images)[0]] == [8 * 8 * 12, 4 * 4 * 12]
    totals = losses_of_steps(model)
    assert totals[-1] < totals[0]


def test_a_neck_whose_maps_need_different_subnets_is_refused(monkeypatch):
    monkeypatch.setitem(NECKS, "two", type("Odd", (Neck,), {"strides": {8: (8,), 16: (16, 32)}}))
    with pytest.raises(ConfigError, match="subnets are shared"):
        RetinaNet(2, Backbone(), channels=16, pyramid="two")


@pytest.mark.parametrize(
    ("owner", "name", "known"),
    [
        (SourceOptions, "layout", FORMATS),
        (CriterionConfig, "loss", CLASS_LOSSES),
        (CriterionConfig, "box_loss", BOX_LOSSES),
        (CriterionConfig, "mining", MINING),
        (NetworkConfig, "pyramid", NECKS),
    ],
)
def test_the_choices_of_a_setting_are_the_keys_of_its_dict(owner, name, known):
    kind = typing.get_type_hints(owner)[name]
    words = [word for one in (kind, *typing.get_args(kind)) for word in typing.get_args(one)]
    assert [word for word in words if isinstance(word, str)] == [*known]
