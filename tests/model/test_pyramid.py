"""The designs of the pyramid: their maps, the anchors that belong to them, what each map is made of."""

import pytest
import torch

from retinanet.errors import ConfigError
from retinanet.model.criterion import Criterion
from retinanet.model.postprocess import Postprocess
from retinanet.model.retinanet import NECKS, RetinaNet
from retinanet.structures import Targets

DESIGNS = list(NECKS)
FIVE = ["P3", "P4", "P5", "P6", "P7"]
LEVELS = {"fpn": FIVE, "single": ["P5"], "hierarchy": FIVE, "finest": ["P3"]}


def small(**settings):
    torch.manual_seed(0)
    return RetinaNet(
        3, **{"backbone": "resnet18", "backbone_norm": "batch", "channels": 32, "num_convs": 1} | settings
    )


def features():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, width, *shape, generator=generator)
        for width, shape in ((8, (9, 13)), (12, (5, 7)), (16, (3, 4)))
    ]


def pyramid(design, **settings):
    torch.manual_seed(0)
    return NECKS[design]([8, 12, 16], 4, **settings)


def sides(anchors):
    """The different (width, height) among anchors, to a tenth of a pixel."""
    return {(round(w, 1), round(h, 1)) for w, h in (anchors[:, 2:] - anchors[:, :2]).tolist()}


@pytest.mark.parametrize("size", [(65, 97), (200, 131), (33, 320)])
@pytest.mark.parametrize("design", DESIGNS)
def test_every_anchor_of_every_design_has_logits_and_offsets_at_odd_sizes(design, size):
    model = small(pyramid=design).eval()
    images = torch.zeros(2, 3, *size)
    with torch.no_grad():
        logits, offsets = model(images)
    anchors = model.anchors(images)
    assert model.levels == LEVELS[design]
    assert len(anchors) == len(LEVELS[design])
    assert [level.shape for level in logits] == [(2, len(level), 3) for level in anchors]
    assert [level.shape for level in offsets] == [(2, len(level), 4) for level in anchors]
    found = Postprocess(score_threshold=0.001)(
        logits, offsets, anchors, torch.tensor([size, size], dtype=torch.float32)
    )
    assert all(len(boxes) > 0 for boxes, _, _ in found)


@pytest.mark.parametrize(("design", "stride"), [("single", 32), ("finest", 8)])
def test_one_map_has_the_anchors_of_all_levels_in_each_cell(design, stride):
    settings = {"anchor_size": 3.0, "anchor_scales": (1.0, 1.5), "anchor_ratios": (0.5, 1.0, 2.0)}
    images = torch.empty(0, 3, 96, 160)
    (anchors,) = small(pyramid=design, **settings).anchors(images)
    expected = sides(torch.cat(small(**settings).anchors(images)))
    cells = 96 * 160 // stride**2
    assert len(anchors) == cells * 5 * 2 * 3
    for cell in anchors.reshape(cells, 30, 4)[[0, cells // 2, -1]]:
        assert sides(cell) == expected
        torch.testing.assert_close(
            cell[:, :2] + cell[:, 2:], (cell[:1, :2] + cell[:1, 2:]).expand(30, 2), atol=1e-3, rtol=0
        )
    assert ((anchors[0, :2] + anchors[0, 2:]) / 2).tolist() == pytest.approx([stride / 2] * 2, abs=1e-3)


def test_finest_has_three_and_three_quarter_times_the_anchors_of_fpn_and_single_a_quarter():
    images = torch.empty(0, 3, 640, 896)
    counts = {design: sum(map(len, small(pyramid=design).anchors(images))) for design in DESIGNS}
    assert counts["hierarchy"] == counts["fpn"]
    assert counts["finest"] / counts["fpn"] == pytest.approx(3.75, abs=0.01)
    assert counts["single"] / counts["fpn"] == pytest.approx(0.234, abs=0.001)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_step_without_objects_gives_every_parameter_a_gradient(design):
    model, criterion = small(pyramid=design, subnet_norm="group"), Criterion()
    images = torch.randn(2, 3, 64, 64)
    targets = Targets.pad([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.long)] * 2, [(64, 64)] * 2)
    logits, offsets = model(images)
    anchors = model.anchors(images)
    sum(criterion(logits, offsets, anchors, criterion.match(anchors, targets)).values()).backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()
    ] == []


def test_the_weights_of_fpn_have_the_names_that_files_know():
    names = [f"{part}.{level}" for part in ("lateral", "output") for level in range(3)] + ["p6", "p7"]
    assert list(pyramid("fpn").state_dict()) == [
        f"{name}.{kind}" for name in names for kind in ("weight", "bias")
    ]
    assert pyramid("hierarchy").state_dict().keys() == pyramid("fpn").state_dict().keys()


def test_finest_is_the_p3_of_fpn():
    fpn, finest = pyramid("fpn"), pyramid("finest")
    own = finest.state_dict().keys()
    finest.load_state_dict({name: value for name, value in fpn.state_dict().items() if name in own})
    (found,) = finest(features())
    assert torch.equal(found, fpn(features())[0])


def test_in_a_hierarchy_every_map_is_its_own():
    hierarchy = pyramid("hierarchy")
    maps = hierarchy(features())
    for level, feature in enumerate(features()):
        torch.testing.assert_close(maps[level], hierarchy.output[level](hierarchy.lateral[level](feature)))
    torch.testing.assert_close(maps[3], hierarchy.p6(features()[2]))
    torch.testing.assert_close(maps[4], hierarchy.p7(maps[3].relu()))
    fpn = pyramid("fpn")
    fpn.load_state_dict(hierarchy.state_dict())
    top_down = fpn(features())
    assert [torch.equal(one, other) for one, other in zip(maps, top_down, strict=True)] == [
        False,
        False,
        True,
        True,
        True,
    ]


def test_a_single_map_sees_c5_alone():
    single = pyramid("single")
    c3, c4, c5 = features()
    (found,) = single([c3, c4, c5])
    torch.testing.assert_close(found, single.output[0](single.lateral[0](c5)))
    assert torch.equal(single([c3 + 1, c4 + 1, c5])[0], found)


def test_an_unknown_design_names_the_known():
    with pytest.raises(ConfigError, match="hierarchy"):
        small(pyramid="hierarchie")
