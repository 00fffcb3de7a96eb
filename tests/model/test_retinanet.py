"""The network: shapes, order, initialisation, freezing."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from retinanet.errors import CheckpointError, ConfigError
from retinanet.model import backbone
from retinanet.model.backbone import Backbone
from retinanet.model.retinanet import Pyramid, RetinaNet, per_anchor, stride2_conv

CELLS = [(64 // s if s <= 64 else 1) * (96 // s if s <= 96 else 1) for s in (8, 16, 32, 64, 128)]


def small(**settings):
    torch.manual_seed(0)
    return RetinaNet(
        3, **{"backbone": "resnet18", "backbone_norm": "batch", "channels": 32, "num_convs": 1} | settings
    )


def test_logits_and_offsets_have_a_row_for_each_anchor_of_each_level():
    model = small().eval()
    images = torch.randn(2, 3, 64, 96)
    logits, offsets = model(images)
    anchors = model.anchors(images)
    assert [level.shape for level in logits] == [(2, len(level), 3) for level in anchors]
    assert [level.shape for level in offsets] == [(2, len(level), 4) for level in anchors]
    assert [len(level) for level in anchors] == [9 * 96, 9 * 24, 9 * 6, 9 * 2, 9 * 1]


@pytest.mark.parametrize("size", [(65, 97), (200, 131), (33, 320)])
def test_pictures_of_any_size_fit_their_anchors(size):
    model = small().eval()
    images = torch.randn(1, 3, *size)
    logits, _ = model(images)
    assert [level.shape[1] for level in logits] == [len(level) for level in model.anchors(images)]


def test_every_anchor_first_says_object_with_probability_pi():
    logits, _ = small(prior=0.01).eval()(torch.zeros(1, 3, 64, 64))
    for level in logits:
        assert level.sigmoid().mean().item() == pytest.approx(0.01, rel=0.05)


def test_the_prior_is_on_the_last_class_bias_and_nowhere_else():
    model = small()
    biases = {name: p for name, p in model.named_parameters() if name.endswith("bias") and "subnet" in name}
    last = biases.pop("class_subnet.2.bias")
    torch.testing.assert_close(last, torch.full_like(last, -math.log(99)))
    assert not any(bias.any() for bias in biases.values())


def test_subnet_weights_start_from_a_gaussian_of_001():
    model = RetinaNet(80, "resnet18", "batch")
    for subnet in (model.class_subnet, model.box_subnet):
        for layer in subnet:
            if isinstance(layer, nn.Conv2d):
                assert layer.weight.std().item() == pytest.approx(0.01, rel=0.05)


def test_the_papers_network_has_the_papers_size():
    model = RetinaNet(80)
    convs = [layer for layer in model.class_subnet if isinstance(layer, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [256] * 4 + [720]
    assert model.box_subnet[-1].out_channels == 36
    trained = sum(p.numel() for p in model.parameters()) / 1e6
    # torchvision's ResNet-50 with P6 from C5, group norm aside, has 38.2 M
    assert trained == pytest.approx(37.9, abs=0.2)


def test_the_subnets_share_weights_over_levels_but_not_with_each_other():
    model = small()
    assert not {id(p) for p in model.class_subnet.parameters()} & {
        id(p) for p in model.box_subnet.parameters()
    }


def test_per_anchor_orders_rows_columns_anchors():
    level = torch.arange(2 * 3 * 2 * 2).reshape(1, 6, 2, 2)  # two anchors of three classes on a 2 x 2 map
    rows = per_anchor(level, 3)[0]
    assert rows[0].tolist() == [0, 4, 8]  # cell (0, 0), first anchor
    assert rows[1].tolist() == [12, 16, 20]  # cell (0, 0), second anchor
    assert rows[2].tolist() == [1, 5, 9]  # cell (0, 1)


def test_per_anchor_is_a_view_of_a_channels_last_map():
    level = torch.zeros(2, 18, 4, 5).to(memory_format=torch.channels_last)
    assert per_anchor(level, 2).data_ptr() == level.data_ptr()


def test_a_step_without_objects_gives_every_parameter_a_gradient():
    from retinanet.model.criterion import Criterion
    from retinanet.structures import Targets

    model = small(subnet_norm="group")
    images = torch.randn(2, 3, 64, 64)
    targets = Targets.pad([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2, [(64, 64)] * 2)
    logits, offsets = model(images)
    anchors = model.anchors(images)
    criterion = Criterion()
    sum(criterion(logits, offsets, anchors, criterion.match(anchors, targets)).values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def fill_free_memory_with_nan():
    waste = [torch.full((2**k + 17 * k,), torch.nan) for k in range(6, 20) for _ in range(3)]
    del waste


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (160, 32), (256, 64), (32, 160)])
def test_gradients_of_tiny_tall_and_wide_images_are_finite_in_bf16(height, width):
    """torch's stride-2 convolution leaves memory unwritten where its map is one cell wide."""
    model = small(subnet_norm="group")
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            logits, offsets = model(torch.randn(2, 3, height, width))
        fill_free_memory_with_nan()
        sum(level.float().sum() for level in (*logits, *offsets)).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_narrow_map_has_in_bf16_the_answer_and_gradients_of_float32(memory, width):
    conv = torch.nn.Conv2d(32, 32, 3, stride=2, padding=1).to(memory_format=memory)
    half = copy.deepcopy(conv).to(torch.bfloat16)
    for batch, height in itertools.product((1, 2, 4), (1, 2, 3, 8, 25, 60)):
        level = torch.randn(batch, 32, height, width).contiguous(memory_format=memory).requires_grad_()
        seen = (level, *conv.parameters())
        expected = conv(level)
        weights = torch.randn_like(expected)
        gradients = torch.autograd.grad(expected, seen, weights)
        for _ in range(3):
            fill_free_memory_with_nan()
            with torch.autocast("cpu", torch.bfloat16):
                found = stride2_conv(conv, level)
                with torch.inference_mode():
                    answer = stride2_conv(half, level)
            fill_free_memory_with_nan()
            again = torch.autograd.grad(found, seen, weights.to(found.dtype))
            for one, other in zip((found, answer, *again), (expected, expected, *gradients), strict=True):
                torch.testing.assert_close(
                    one.float(), other, rtol=0, atol=0.03 * float(other.detach().abs().max())
                )


def test_one_image_more_in_the_batch_changes_nothing():
    model = small(subnet_norm="group").eval()
    images = torch.randn(3, 3, 64, 96)
    together, apart = model(images)[0], [model(image[None])[0] for image in images]
    for level, rows in enumerate(together):
        torch.testing.assert_close(rows, torch.cat([one[level] for one in apart]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    ["resnet18", "convnext_atto", "efficientnet_b0", "mobilenetv3_small_050", "regnety_002", "rexnet_100"],
)
def test_timm_backbones_with_the_three_reductions_work(name):
    norm = "frozen" if name != "convnext_atto" else "batch"
    body = backbone.Backbone(name, norm).eval()
    maps = body(torch.randn(1, 3, 64, 96))
    assert [list(level.shape) for level in maps] == [
        [1, c, 64 // r, 96 // r] for c, r in zip(body.channels, (8, 16, 32), strict=True)
    ]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "inception_v4"])
def test_backbones_without_the_three_maps_are_refused(name):
    with pytest.raises(ConfigError, match="no maps"):
        backbone.Backbone(name)


def test_an_unknown_backbone_names_its_neighbours():
    with pytest.raises(ConfigError, match="resnet50"):
        backbone.Backbone("resnet5O")


def test_freezing_stops_the_stem_and_the_first_stage_and_nothing_else():
    body = backbone.Backbone("resnet18", "batch")
    body.freeze()
    frozen = {name.split(".")[1] for name, p in body.named_parameters() if not p.requires_grad}
    trained = {name.split(".")[1] for name, p in body.named_parameters() if p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    assert trained == {"layer2", "layer3", "layer4"}


def test_frozen_batch_norm_has_no_parameters_and_never_moves():
    body = backbone.Backbone("resnet18", "frozen").train()
    before = {name: value.clone() for name, value in body.state_dict().items()}
    body(torch.randn(2, 3, 64, 64))
    assert not any("bn" in name for name, _ in body.named_parameters())
    assert all(torch.equal(before[name], value) for name, value in body.state_dict().items())


def test_group_norm_replaces_every_batch_norm():
    body = backbone.Backbone("resnet18", "group")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    assert any(isinstance(module, nn.GroupNorm) for module in body.modules())


def test_without_a_network_the_weights_fail_in_seconds_and_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr("retinanet.download.reachable", lambda host: "no route")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    with pytest.raises(CheckpointError, match="--init none"):
        backbone.Backbone("resnet18").load_imagenet()


def test_imagenet_weights_and_group_norm_do_not_go_together():
    with pytest.raises(ConfigError, match="belong to batch norm"):
        backbone.Backbone("resnet18", "group").load_imagenet()


def test_the_stride_can_stand_in_the_1x1_of_a_bottleneck():
    usual, caffe = Backbone("resnet50", "frozen"), Backbone("resnet50", "frozen", stride="1x1")
    blocks = [(one.body.layer2[0], two.body.layer2[0]) for one, two in ((usual, caffe),)]
    assert [
        (one.conv1.stride, one.conv2.stride, two.conv1.stride, two.conv2.stride) for one, two in blocks
    ] == [((1, 1), (2, 2), (2, 2), (1, 1))]
    assert usual.state_dict().keys() == caffe.state_dict().keys()
    with pytest.raises(ConfigError, match="no bottlenecks"):
        Backbone("resnet18", "frozen", stride="1x1")


def test_p7_can_do_without_its_relu():
    pyramid, without = Pyramid([8, 8, 8], 8), Pyramid([8, 8, 8], 8, p7_relu=False)
    without.load_state_dict(pyramid.state_dict())
    maps = [torch.randn(1, 8, side, side) for side in (16, 8, 4)]
    one, other = pyramid(maps), without(maps)
    assert all(torch.equal(a, b) for a, b in zip(one[:4], other[:4], strict=True))
    torch.testing.assert_close(one[4], pyramid.p7(one[3].relu()))
    torch.testing.assert_close(other[4], pyramid.p7(one[3]))
