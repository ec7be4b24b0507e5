"""Runs exported decoders, unchanged, on their golden tokens with the execution provider; one JSON line a case and mode."""
import json
import os
import sys

import onnx
import onnxruntime as ort

import ep_harness
import golden_cases
import harness

MODES = ["fuse", "nodes"]


def path(name):
    return os.path.join(harness.DATA, name, "model.onnx")


def attention_nodes(name):
    model = onnx.load(path(name), load_external_data=False)
    return sum(n.op_type in ("Attention", "GroupQueryAttention") for n in model.graph.node)


def result(name, mode):
    sess = ep_harness.session(path(name), mode=mode)
    prefill, decode, tolerance, stats = golden_cases.differences(name, harness.ORT_LIB, session=sess)
    nodes = ep_harness.assigned(sess)
    layers = [n for n in nodes if n[1] in ("Attention", "GroupQueryAttention")]
    return {"worst": max(prefill, decode), "tolerance": tolerance, "ran": stats["ran"], "layers": len(layers),
            "elsewhere": ep_harness.attention_elsewhere(sess), "others": len(nodes) - len(layers),
            "want": attention_nodes(name)}


if __name__ == "__main__":
    for case in golden_cases.NAMES:
        for mode in sys.argv[1:] or MODES:
            about = {"case": case, "mode": mode, "ort": ort.__version__}
            try:
                print(json.dumps({**about, **result(case, mode)}))
            except Exception as e:  # the test names which case failed and how
                print(json.dumps({**about, "error": str(e)[:300]}))
            sys.stdout.flush()
