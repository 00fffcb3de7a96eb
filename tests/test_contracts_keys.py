"""The names under which weights are stored: files of today must be read tomorrow."""

import hashlib

import pytest
import torch

from retinanet.model.retinanet import RetinaNet

DIGESTS = {
    "resnet18 none fpn": "4da0bf1d667779d1",
    "resnet18 none single": "93da26e1268ebb2d",
    "resnet18 none hierarchy": "4da0bf1d667779d1",
    "resnet18 none finest": "3a03c01c833889a5",
    "resnet18 group fpn": "341c2eb73ad3efce",
    "resnet18 group single": "3bd81263cf1beaf7",
    "resnet18 group hierarchy": "341c2eb73ad3efce",
    "resnet18 group finest": "0d02ec0619e345a9",
    "resnet50 none fpn": "42b2f35fcad3c8f6",
    "resnet50 none single": "0ad4464ac6b7355c",
    "resnet50 none hierarchy": "42b2f35fcad3c8f6",
    "resnet50 none finest": "40f0c0e612da74ed",
    "resnet50 group fpn": "dba9df6ccbaa86f3",
    "resnet50 group single": "cfd4f8733ee44496",
    "resnet50 group hierarchy": "dba9df6ccbaa86f3",
    "resnet50 group finest": "013309446e36a60f",
    "convnext_tiny none fpn": "5a91d96411137907",
    "convnext_tiny none single": "f07cfca5c4b08056",
    "convnext_tiny none hierarchy": "5a91d96411137907",
    "convnext_tiny none finest": "9052e098fd8924f1",
    "convnext_tiny group fpn": "e2b3fce7d200db0d",
    "convnext_tiny group single": "054d60502a247b8e",
    "convnext_tiny group hierarchy": "e2b3fce7d200db0d",
    "convnext_tiny group finest": "0ab27b4ded05adc8",
}


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50", "convnext_tiny"])
@pytest.mark.parametrize("norm", ["none", "group"])
@pytest.mark.parametrize("pyramid", ["fpn", "single", "hierarchy", "finest"])
def test_the_keys_of_the_state_dict_are_those_of_every_file_so_far(backbone, norm, pyramid):
    with torch.device("meta"):
        model = RetinaNet(3, backbone, "batch", subnet_norm=norm, pyramid=pyramid)
    keys = "\n".join(f"{name} {list(value.shape)}" for name, value in sorted(model.state_dict().items()))
    assert hashlib.sha256(keys.encode()).hexdigest()[:16] == DIGESTS[f"{backbone} {norm} {pyramid}"]
