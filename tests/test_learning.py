"""The whole of it learns: eight scenes, by heart, in under a minute on two cores."""

import json

import retinanet
from retinanet.data.scenes import write_scenes


def test_eight_scenes_are_learned_by_heart(tmp_path):
    data = write_scenes(tmp_path / "data", {"train": 8}, size=(96, 96), seed=2, across=(28, 64))
    settings = {"scale": 96, "train_scale": None, "channels": 64, "num_convs": 1, "jitter": (1.0, 1.0)}
    settings |= {"flip": 0.0, "warmup": 10, "workers": 0, "validations": 1, "held_out": 0}
    run = retinanet.train(
        data, "tiny", out=tmp_path / "run", budget="100it", device="cpu", ema=0.9, **settings
    )
    assert json.loads((run / "metrics.json").read_text())["AP"] > 0.9
