"""The names under which weights are stored: files of today must be read tomorrow."""

import hashlib

import pytest
import torch

from retinanet.model.retinanet import RetinaNet

PYRAMIDS = ("fpn", "single", "hierarchy", "finest")
DIGESTS = {
    "resnet18 none": "4da0bf1d667779d1 93da26e1268ebb2d 4da0bf1d667779d1 3a03c01c833889a5",
    "resnet18 group": "341c2eb73ad3efce 3bd81263cf1beaf7 341c2eb73ad3efce 0d02ec0619e345a9",
    "resnet50 none": "42b2f35fcad3c8f6 0ad4464ac6b7355c 42b2f35fcad3c8f6 40f0c0e612da74ed",
    "resnet50 group": "dba9df6ccbaa86f3 cfd4f8733ee44496 dba9df6ccbaa86f3 013309446e36a60f",
    "convnext_tiny none": "5a91d96411137907 f07cfca5c4b08056 5a91d96411137907 9052e098fd8924f1",
    "convnext_tiny group": "e2b3fce7d200db0d 054d60502a247b8e e2b3fce7d200db0d 0ab27b4ded05adc8",
}
"""Backbone and norm of the subnets -> a digest for each design of the pyramid."""


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "convnext_tiny"])
@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_the_keys_of_the_state_dict_are_those_of_every_file_so_far(backbone, norm, pyramid):
    with torch.device("meta"):
        model = RetinaNet(3, backbone, "batch", subnet_norm=norm, pyramid=pyramid)
    expected = DIGESTS[f"{backbone} {norm}"].split()[PYRAMIDS.index(pyramid)]
    keys = "\n".join(f"{name} {list(value.shape)}" for name, value in sorted(model.state_dict().items()))
    assert hashlib.sha256(keys.encode()).hexdigest()[:16] == expected
