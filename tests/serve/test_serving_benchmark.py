"""The load test runs, on sizes that say nothing about speed; with it the verb itself, in a process of its own."""

import importlib
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "benchmarks"


def test_a_server_answers_everybody_rightly_under_load_and_ends_well(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(FOLDER)
    words = f"--minutes 0.03 --clients 40 --side 64 --scale 64 --device cpu --out {tmp_path / 'serving.json'}"
    monkeypatch.setattr(sys, "argv", [str(FOLDER / "serving.py"), *words.split()])
    importlib.import_module("serving").main()
    found = json.loads((tmp_path / "serving.json").read_text())
    assert found["script"] == "benchmarks/serving.py"
    assert set(found["statuses"]) <= {"200", "503"} and found["statuses"]["200"] > 40
    assert (found["wrong"], found["exit_status"]) == (0, 0)
    assert found["ratio"] > 0 and found["half_load"]["requests"] > 1
