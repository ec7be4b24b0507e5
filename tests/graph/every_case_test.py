"""Every case under every combination of options: a dry run tells what a run does, and a second run changes nothing."""

import json

import cases
import pytest

ALL = sorted(path.parent.name for path in cases.DATA.glob("*/model.onnx"))
COMBINATIONS = [["--to", target, *options] for target, choices in {
    "kvshare": ["", "--own keep", "--rope keep", "--window-caches", "--fast-prefill",
                "--window-caches=0 --fast-prefill --prune-inputs", "--own keep --rope keep --prune-inputs"],
    "kvshare-attention": ["", "--own keep", "--fast-prefill --prune-inputs"],
    "onnx25": ["", "--own keep", "--fast-prefill --prune-inputs"],
    "ort": ["", "--own keep --rope keep", "--min-ort 1.27", "--fast-prefill --prune-inputs"]}.items()
    for choice in choices for options in [choice.split()]]


def report(kvshare, *arguments):
    result = cases.run(kvshare, "rewrite", *arguments, "--json")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("case", ALL)
def test_a_dry_run_tells_all_and_a_second_run_changes_nothing(kvshare, case):
    folder = cases.DATA / case  # beside the weights, which are not copied then
    first, second = folder / "first.onnx", folder / "second.onnx"
    for options in COMBINATIONS:
        told = report(kvshare, folder / "model.onnx", "--dry-run", *options)
        done = report(kvshare, folder / "model.onnx", "-o", first, *options)
        assert told == done, options
        again = report(kvshare, first, "-o", second, *options)
        applied = [outcome for outcome in again["outcomes"] if outcome["applied"]]
        assert not again["changed"] and not applied, (options, applied)
        assert first.read_bytes() == second.read_bytes(), options
        assert all(outcome["code"] and outcome["reason"] for outcome in done["outcomes"] if not outcome["applied"])
        assert again["before"]["layers"] == done["after"]["layers"]


@pytest.mark.parametrize("case", ALL)
def test_each_layer_says_its_form_and_each_file_its_producer(kvshare, case):
    found = cases.inspect(kvshare, cases.DATA / case / "model.onnx")
    producers = {"torch": "torch.onnx.export (dynamo), PyTorch 2.13.0+cpu",
                 "qefficient": "QEfficient, by torch.onnx.export (TorchScript), PyTorch 2.13.0"}
    [producer] = [text for word, text in producers.items() if word in case] or ["mobius 0.1.0"]
    assert found["producer"] == producer
    assert found["opsets"]["ai.onnx"] >= (17 if "qefficient" in case else 23)
    assert all(layer["written"] and layer["written"] != layer["node"] for layer in found["layers"])
