"""Runs exported decoders on their golden tokens with the library; as a program, prints one JSON line a case.

golden_cases.py dropin: unchanged graphs. golden_cases.py kvshare: rewritten ones, which need no drop-in.
"""
import json
import os
import sys

import numpy as np
import onnx
import onnxruntime as ort

import harness

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "python"), os.path.join(ROOT, "tests", "support")]
import logits  # noqa: E402
from served_cases import served  # noqa: E402
from kvshare.decoder import Decoder, golden_steps  # noqa: E402

NAMES = served(harness.DATA)


def differences(name, lib, session=None, **entries):
    """(worst prefill, worst decode) error of the logits, their tolerance, and the counters of the run.

    In `session`, or in one that drops `lib` in.
    """
    case = os.path.join(harness.DATA, name)
    golden = np.load(os.path.join(case, "golden.npz"))
    counters = harness.Counters(lib)
    counters.reset()
    sess = session or harness.session(os.path.join(case, "model.onnx"), lib, **entries)
    decoder = Decoder(sess, golden["input_ids"].shape[0])
    element = "float16" if any(i.type == "tensor(float16)" for i in decoder.inputs.values()) else "float32"
    prefill, *decode = (logits.error(got, want, element) for got, want in golden_steps(decoder, golden))
    return prefill, max(decode), logits.TOLERANCE[element], counters.read()


def replaced(name):
    """The entry kvshare.drop_in that a case needs: "1" adds to com.microsoft, which the model must import."""
    model = onnx.load(os.path.join(harness.DATA, name, "model.onnx"), load_external_data=False)
    return "1" if any(i.domain == "com.microsoft" for i in model.opset_import) else "attention"


def alignment(name):
    """The graphs exported for the alignment of ORT <= 1.27 say so in their names."""
    return "lower_right" if name.endswith("asis") else "spec"


if __name__ == "__main__":
    drop_in = sys.argv[1] == "dropin"
    for case_name in NAMES:
        try:
            entries = {"causal_alignment": alignment(case_name), "drop_in": replaced(case_name)} if drop_in else {}
            prefill, decode, tolerance, stats = differences(
                case_name, harness.DROPIN_LIB if drop_in else harness.ORT_LIB, **entries)
            print(json.dumps({"case": case_name, "ort": ort.__version__, "worst": max(prefill, decode),
                              "tolerance": tolerance, "ran": stats["ran"]}))
        except Exception as e:  # the test names which case failed and how
            print(json.dumps({"case": case_name, "ort": ort.__version__, "error": str(e)[:300]}))
        sys.stdout.flush()
