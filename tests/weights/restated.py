"""Detectron2's and MMDetection's RetinaNet, restated from their rules: the names of their weights, and
picture -> boxes.

Neither can be installed here. Each function says which file of theirs it restates; none shares a line with
what it tests. Weights are plain dicts under their names, in float64; a picture is [H, W, 3] uint8 RGB;
answers are boxes [N, 4] in its pixels, scores [N], labels [N].
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.ops import nms

STAGES = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def blocks(depth, groups=1, width=64):
    """(stage, block, input, middle, output channels): Table 1 of He et al. (2016), Xie et al. (2017)."""
    before = 64
    for stage, count in enumerate(STAGES[depth], 1):
        middle, after = groups * width * 2 ** (stage - 1), 64 * 2 ** (stage - 1) * (1 if depth < 50 else 4)
        for block in range(count):
            yield stage, block, before, middle, after
            before = after


def norm(name, channels):
    return {f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")}


def biased(name, *shape):
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def random_weights(layout, seed=0):
    """Values as of a trained network: variances of all magnitudes, convolutions that keep the scale."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for key, shape in layout.items():
        if len(shape) == 4:
            value = torch.randn(shape, generator=generator, dtype=torch.float64) * math.sqrt(
                2 / math.prod(shape[1:])
            )
        elif key.endswith("running_var"):
            value = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5
            value[0] = 1e-8
        elif key.endswith("weight"):
            value = torch.rand(shape, generator=generator, dtype=torch.float64) * 0.3 + 0.2
            value[0] = 1e-5
        else:
            value = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.1
        weights[key] = value.float().double()  # what a float32 file holds
    return weights


def spread(weights, name, seen, deviation, mean):
    """Scale a last convolution so that each channel varies over the maps `seen`, as a trained one's does."""
    maps = torch.cat(
        [F.conv2d(level, weights[f"{name}.weight"], padding=1)[0].flatten(1) for level in seen], dim=1
    )
    factor = deviation / maps.std(dim=1)
    weights[f"{name}.weight"] = (weights[f"{name}.weight"] * factor[:, None, None, None]).float().double()
    weights[f"{name}.bias"] = (mean - maps.mean(dim=1) * factor).float().double()


def normalised(weights, name, x):
    mean, variance, scale, shift = (
        weights[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, variance, scale, shift, eps=1e-5)


def by_class(boxes, scores, labels, threshold):
    """Greedy NMS within each class; the survivors, best first."""
    kept = torch.cat(
        [
            (labels == k).nonzero()[:, 0][nms(boxes[labels == k], scores[labels == k], threshold)]
            for k in labels.unique()
        ]
    )
    return kept[scores[kept].argsort(descending=True)]


class Detectron2:
    """detectron2, configs/COCO-Detection/retinanet_R_50_FPN_3x.yaml."""

    def layout(depth, classes=80):
        """modeling/backbone/resnet.py (BottleneckBlock), backbone/fpn.py, meta_arch/retinanet.py."""
        body = "backbone.bottom_up"
        keys = {f"{body}.stem.conv1.weight": (64, 3, 7, 7), **norm(f"{body}.stem.conv1.norm", 64)}
        for stage, block, before, middle, after in blocks(depth):
            name = f"{body}.res{stage + 1}.{block}"
            if block == 0:
                keys |= {
                    f"{name}.shortcut.weight": (after, before, 1, 1),
                    **norm(f"{name}.shortcut.norm", after),
                }
            for conv, shape in (
                ("conv1", (middle, before, 1, 1)),
                ("conv2", (middle, middle, 3, 3)),
                ("conv3", (after, middle, 1, 1)),
            ):
                keys |= {f"{name}.{conv}.weight": shape, **norm(f"{name}.{conv}.norm", shape[0])}
        for level in (3, 4, 5):
            keys |= biased(f"backbone.fpn_lateral{level}", 256, 64 * 2**level, 1, 1)
            keys |= biased(f"backbone.fpn_output{level}", 256, 256, 3, 3)
        keys |= biased("backbone.top_block.p6", 256, 2048, 3, 3) | biased(
            "backbone.top_block.p7", 256, 256, 3, 3
        )
        for subnet in ("cls", "bbox"):
            for layer in (0, 2, 4, 6):
                keys |= biased(f"head.{subnet}_subnet.{layer}", 256, 256, 3, 3)
        return (
            keys | biased("head.cls_score", 9 * classes, 256, 3, 3) | biased("head.bbox_pred", 36, 256, 3, 3)
        )

    def pyramid(w, x, caffe=True):
        """resnet.py: stride_in_1x1 (cfg.MODEL.RESNETS.STRIDE_IN_1X1); fpn.py: FPN.forward, LastLevelP6P7."""

        def conv(name, x, stride=1, padding=0):
            return normalised(
                w, f"{name}.norm", F.conv2d(x, w[f"{name}.weight"], stride=stride, padding=padding)
            )

        x = F.max_pool2d(F.relu(conv("backbone.bottom_up.stem.conv1", x, 2, 3)), 3, 2, 1)
        found = []
        for stage in (2, 3, 4, 5):
            block = 0
            while f"backbone.bottom_up.res{stage}.{block}.conv1.weight" in w:
                name = f"backbone.bottom_up.res{stage}.{block}"
                stride = 2 if block == 0 and stage > 2 else 1
                inner = F.relu(conv(f"{name}.conv1", x, stride if caffe else 1))
                inner = conv(f"{name}.conv3", F.relu(conv(f"{name}.conv2", inner, 1 if caffe else stride, 1)))
                x = F.relu(inner + (conv(f"{name}.shortcut", x, stride) if block == 0 else x))
                block += 1
            found.append(x)

        def plain(name, x, **how):
            return F.conv2d(x, w[f"backbone.{name}.weight"], w[f"backbone.{name}.bias"], **how)

        above, levels = None, []
        for level, feature in zip((5, 4, 3), found[:0:-1], strict=True):
            merged = plain(f"fpn_lateral{level}", feature)
            if above is not None:
                merged = merged + F.interpolate(above, scale_factor=2, mode="nearest")
            above = merged
            levels.insert(0, plain(f"fpn_output{level}", merged, padding=1))
        six = plain("top_block.p6", found[-1], stride=2, padding=1)
        return [*levels, six, plain("top_block.p7", F.relu(six), stride=2, padding=1)]

    def towers(w, levels, subnet):
        """meta_arch/retinanet.py: RetinaNetHead.forward, without the last convolution."""
        for layer in (0, 2, 4, 6):
            name = f"head.{subnet}_subnet.{layer}"
            levels = [F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)) for x in levels]
        return levels

    def raw(w, x, **how):
        """Logits and deltas per level [HWA, K]: permute_to_N_HWA_K."""
        levels = Detectron2.pyramid(w, x, **how)
        outputs = []
        for subnet, last in (("cls", "cls_score"), ("bbox", "bbox_pred")):
            maps = [
                F.conv2d(x, w[f"head.{last}.weight"], w[f"head.{last}.bias"], padding=1)
                for x in Detectron2.towers(w, levels, subnet)
            ]
            width = maps[0].shape[1] // 9
            outputs.append(
                [m[0].unflatten(0, (9, width)).permute(2, 3, 0, 1).reshape(-1, width) for m in maps]
            )
        return outputs

    def anchors(height, width):
        """anchor_generator.py: generate_cell_anchors for sizes outermost, _grid_anchors with offset 0."""
        levels = []
        for stride in (8, 16, 32, 64, 128):
            cell = []
            for size in (4 * stride * 2 ** (k / 3) for k in range(3)):
                for ratio in (0.5, 1.0, 2.0):
                    w = math.sqrt(size * size / ratio)
                    cell.append([-w / 2, -ratio * w / 2, w / 2, ratio * w / 2])
            y, x = torch.meshgrid(
                *(torch.arange(math.ceil(side / stride)) * stride for side in (height, width)), indexing="ij"
            )
            shift = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
            levels.append((shift + torch.tensor(cell)).reshape(-1, 4))
        return levels

    def size(height, width, short, limit):
        """data/transforms/augmentation_impl.py: ResizeShortestEdge.get_output_shape."""
        scale = short / min(height, width)
        new = (short, scale * width) if height < width else (scale * height, short)
        if max(new) > limit:
            new = tuple(side * (limit / max(new)) for side in new)
        return int(new[0] + 0.5), int(new[1] + 0.5)

    def prepared(picture, short, limit):
        """data/transforms/transform.py: ResizeTransform; retinanet.py: preprocess_image; [1, 3, H, W]."""
        height, width = Detectron2.size(*picture.shape[:2], short, limit)
        small = np.asarray(
            Image.fromarray(picture[:, :, ::-1].copy()).resize((width, height), Image.Resampling.BILINEAR)
        )
        x = (
            torch.tensor(small.transpose(2, 0, 1)).double()
            - torch.tensor([103.53, 116.28, 123.675])[:, None, None].double()
        )
        return (height, width), F.pad(x, (0, -width % 32, 0, -height % 32))[None]

    def answers(w, picture, short, limit, most=100):
        """retinanet.py: inference_single_image; box_regression.py: apply_deltas; postprocessing.py."""
        (height, width), x = Detectron2.prepared(picture, short, limit)
        boxes, scores, labels = [], [], []
        for logits, deltas, anchors in zip(
            *Detectron2.raw(w, x), Detectron2.anchors(*x.shape[-2:]), strict=True
        ):
            flat = logits.sigmoid().flatten()
            order = flat.argsort(descending=True)[: min(1000, int((flat > 0.05).sum()))]
            anchor, label = order // logits.shape[1], order % logits.shape[1]
            a, d = anchors[anchor].double(), deltas[anchor]
            sides, centers = a[:, 2:] - a[:, :2], (a[:, 2:] + a[:, :2]) / 2
            centers = centers + d[:, :2] * sides
            half = sides * d[:, 2:].clamp(max=math.log(1000 / 16)).exp() / 2
            boxes.append(torch.cat([centers - half, centers + half], dim=1))
            scores.append(flat[order])
            labels.append(label)
        boxes, scores, labels = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
        kept = by_class(boxes, scores, labels, 0.5)[:most]
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        sides = torch.tensor([picture.shape[1], picture.shape[0]] * 2).double()
        boxes = boxes * sides / torch.tensor([width, height] * 2)
        boxes = torch.minimum(boxes.clamp(min=0), sides)
        solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        return boxes[solid], scores[solid], labels[solid]


class MMDetection:
    """mmdet 3, configs/retinanet/retinanet_r50_fpn_1x_coco.py and its caffe variant."""

    def layout(depth, classes=80, groups=1, width=64):
        """models/backbones/resnet.py, resnext.py; necks/fpn.py ('on_input'); dense_heads/retina_head.py."""
        keys = {"backbone.conv1.weight": (64, 3, 7, 7), **norm("backbone.bn1", 64)}
        for stage, block, before, middle, after in blocks(depth, groups, width):
            name = f"backbone.layer{stage}.{block}"
            inner = middle // groups
            convs = [(1, (middle, before, 1, 1)), (2, (middle, inner, 3, 3)), (3, (after, middle, 1, 1))]
            if depth < 50:
                convs = [(1, (after, before, 3, 3)), (2, (after, after, 3, 3))]
            for conv, shape in convs:
                keys |= {f"{name}.conv{conv}.weight": shape, **norm(f"{name}.bn{conv}", shape[0])}
            if block == 0 and before != after:
                keys |= {
                    f"{name}.downsample.0.weight": (after, before, 1, 1),
                    **norm(f"{name}.downsample.1", after),
                }
        top = 512 if depth < 50 else 2048
        for level in range(3):
            keys |= biased(f"neck.lateral_convs.{level}.conv", 256, top // 4 * 2**level, 1, 1)
            keys |= biased(f"neck.fpn_convs.{level}.conv", 256, 256, 3, 3)
        keys |= biased("neck.fpn_convs.3.conv", 256, top, 3, 3) | biased(
            "neck.fpn_convs.4.conv", 256, 256, 3, 3
        )
        for subnet in ("cls", "reg"):
            for layer in range(4):
                keys |= biased(f"bbox_head.{subnet}_convs.{layer}.conv", 256, 256, 3, 3)
        return (
            keys
            | biased("bbox_head.retina_cls", 9 * classes, 256, 3, 3)
            | biased("bbox_head.retina_reg", 36, 256, 3, 3)
        )

    def pyramid(w, x, caffe=False):
        """backbones/resnet.py: Bottleneck ('caffe'), BasicBlock; necks/fpn.py: no ReLU before P7."""

        def conv(name, bn, x, stride=1):
            weight = w[f"{name}.weight"]
            groups = x.shape[1] // weight.shape[1]
            return normalised(
                w, bn, F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, groups=groups)
            )

        x = F.max_pool2d(F.relu(conv("backbone.conv1", "backbone.bn1", x, 2)), 3, 2, 1)
        found = []
        for stage in (1, 2, 3, 4):
            block = 0
            while f"backbone.layer{stage}.{block}.conv1.weight" in w:
                name = f"backbone.layer{stage}.{block}"
                stride = 2 if block == 0 and stage > 1 else 1
                bottleneck = f"{name}.conv3.weight" in w
                first, second = (stride, 1) if caffe or not bottleneck else (1, stride)
                inner = conv(
                    f"{name}.conv2",
                    f"{name}.bn2",
                    F.relu(conv(f"{name}.conv1", f"{name}.bn1", x, first)),
                    second,
                )
                if bottleneck:
                    inner = conv(f"{name}.conv3", f"{name}.bn3", F.relu(inner))
                if f"{name}.downsample.0.weight" in w:
                    x = conv(f"{name}.downsample.0", f"{name}.downsample.1", x, stride)
                x = F.relu(inner + x)
                block += 1
            found.append(x)

        def plain(name, x, **how):
            return F.conv2d(x, w[f"neck.{name}.conv.weight"], w[f"neck.{name}.conv.bias"], **how)

        laterals = [plain(f"lateral_convs.{i}", feature) for i, feature in enumerate(found[1:])]
        for i in (2, 1):
            laterals[i - 1] = laterals[i - 1] + F.interpolate(
                laterals[i], size=laterals[i - 1].shape[2:], mode="nearest"
            )
        levels = [plain(f"fpn_convs.{i}", lateral, padding=1) for i, lateral in enumerate(laterals)]
        levels.append(plain("fpn_convs.3", found[-1], stride=2, padding=1))
        return [*levels, plain("fpn_convs.4", levels[-1], stride=2, padding=1)]

    def towers(w, levels, subnet):
        """dense_heads/retina_head.py: RetinaHead.forward_single, without the last convolution."""
        for layer in range(4):
            name = f"bbox_head.{subnet}_convs.{layer}.conv"
            levels = [F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)) for x in levels]
        return levels

    def raw(w, x, **how):
        """Logits and deltas per level [HWA, K], in their order: cls_score.permute(1, 2, 0).reshape(-1, K)."""
        levels = MMDetection.pyramid(w, x, **how)
        outputs = []
        for subnet in ("cls", "reg"):
            name = f"bbox_head.retina_{subnet}"
            maps = [
                F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=1)
                for x in MMDetection.towers(w, levels, subnet)
            ]
            outputs.append([m[0].permute(1, 2, 0).reshape(-1, m.shape[1] // 9) for m in maps])
        return outputs

    def anchors(height, width):
        """prior_generators/anchor_generator.py: scale_major, center_offset 0, octave_base_scale 4."""
        levels = []
        for stride in (8, 16, 32, 64, 128):
            scales = torch.tensor([4 * 2 ** (k / 3) for k in range(3)])
            ratios = torch.tensor([0.5, 1.0, 2.0]).sqrt()
            w = (stride * (1 / ratios)[:, None] * scales).flatten()
            h = (stride * ratios[:, None] * scales).flatten()
            cell = torch.stack([-0.5 * w, -0.5 * h, 0.5 * w, 0.5 * h], dim=1)
            y, x = torch.meshgrid(
                *(torch.arange(math.ceil(side / stride)) * stride for side in (height, width)), indexing="ij"
            )
            levels.append((torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4) + cell).reshape(-1, 4))
        return levels

    def prepared(picture, short, limit, caffe=False):
        """mmcv/image/geometric.py: rescale_size, imresize; DetDataPreprocessor: pad_size_divisor 32."""
        import cv2

        scale = min(limit / max(picture.shape[:2]), short / min(picture.shape[:2]))
        height, width = (int(side * scale + 0.5) for side in picture.shape[:2])
        small = cv2.resize(picture[:, :, ::-1].copy(), (width, height), interpolation=cv2.INTER_LINEAR)
        mean, std = (
            ([103.53, 116.28, 123.675], [1.0, 1, 1])
            if caffe
            else ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
        )
        x = torch.tensor((small if caffe else small[:, :, ::-1].copy()).transpose(2, 0, 1)).double()
        x = (x - torch.tensor(mean)[:, None, None].double()) / torch.tensor(std)[:, None, None].double()
        return (height, width), F.pad(x, (0, -width % 32, 0, -height % 32))[None]

    def answers(w, picture, short, limit, most=100, caffe=False):
        """base_dense_head.py: _predict_by_feat_single, _bbox_post_process; delta_xywh_bbox_coder.py."""
        (height, width), x = MMDetection.prepared(picture, short, limit, caffe)
        boxes, scores, labels, priors = [], [], [], []
        for logits, deltas, anchors in zip(
            *MMDetection.raw(w, x, caffe=caffe), MMDetection.anchors(*x.shape[-2:]), strict=True
        ):
            pairs = (logits.sigmoid() > 0.05).nonzero()
            found = logits.sigmoid()[pairs[:, 0], pairs[:, 1]]
            order = found.argsort(descending=True)[:1000]
            pairs = pairs[order]
            scores.append(found[order])
            labels.append(pairs[:, 1])
            boxes.append(deltas[pairs[:, 0]])
            priors.append(anchors[pairs[:, 0]].double())
        deltas, scores, labels, priors = (
            torch.cat(boxes),
            torch.cat(scores),
            torch.cat(labels),
            torch.cat(priors),
        )
        sides, centers = priors[:, 2:] - priors[:, :2], (priors[:, 2:] + priors[:, :2]) * 0.5
        limit = abs(math.log(16 / 1000))
        centers = centers + sides * deltas[:, :2]
        sides = sides * deltas[:, 2:].clamp(-limit, limit).exp()
        boxes = torch.cat([centers - sides * 0.5, centers + sides * 0.5], dim=1)
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height)
        boxes = boxes / torch.tensor([width / picture.shape[1], height / picture.shape[0]] * 2).double()
        solid = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, scores, labels = boxes[solid], scores[solid], labels[solid]
        kept = by_class(boxes, scores, labels, 0.5)[:most]
        return boxes[kept], scores[kept], labels[kept]
