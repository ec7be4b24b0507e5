"""Runs exported decoders on their golden tokens with the library; as a program, prints one JSON line a case.

golden_cases.py dropin: unchanged graphs. golden_cases.py kvshare: rewritten ones, which need no drop-in.
"""
import json
import os
import sys

import numpy as np
import onnxruntime as ort

import harness

NAMES = sorted(d for d in os.listdir(harness.DATA) if os.path.isdir(os.path.join(harness.DATA, d)))
TOLERANCE = {"float32": 1e-4, "float16": 0.1}


def differences(name, lib, session=None, **entries):
    """(worst prefill, worst decode) logit difference, and the counters of the run; in `session`, or one that drops `lib` in."""
    case = os.path.join(harness.DATA, name)
    golden = np.load(os.path.join(case, "golden.npz"))
    counters = harness.Counters(lib)
    counters.reset()
    sess = session or harness.session(os.path.join(case, "model.onnx"), lib, **entries)
    names = {i.name: i for i in sess.get_inputs()}
    outs = [o.name for o in sess.get_outputs()]
    batch = golden["input_ids"].shape[0]
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    past = {n: np.zeros((batch, i.shape[1], 0, i.shape[3]), dtype[i.type]) for n, i in names.items() if n.startswith("past")}

    def step(ids, mask, position):
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": position, **past}
        got = dict(zip(outs, sess.run(None, {k: v for k, v in feed.items() if k in names})))
        past.update({n: got[n.replace("past_key_values", "present")] for n in past})
        return got["logits"].astype(np.float32)

    logits = step(golden["input_ids"], golden["attention_mask"], golden["position_ids"])
    real = np.arange(logits.shape[1])[None, :] < golden["lens"][:, None]
    prefill = float(np.abs(logits - golden["prefill_logits"])[real].max())
    decode = max(float(np.abs(step(golden["decode_input_ids"][t][:, None], golden[f"decode_attention_mask_{t}"],
                                   golden["decode_position_ids"][t][:, None])[:, 0] - golden["decode_logits"][t]).max())
                 for t in range(len(golden["decode_input_ids"])))
    half = any(i.type == "tensor(float16)" for i in names.values())
    return prefill, decode, TOLERANCE["float16" if half else "float32"], counters.read()


def alignment(name):
    """The graphs exported for the alignment of ORT <= 1.27 say so in their names."""
    return "lower_right" if name.endswith("asis") else "spec"


if __name__ == "__main__":
    drop_in = sys.argv[1] == "dropin"
    for case_name in NAMES:
        try:
            entries = {"causal_alignment": alignment(case_name)} if drop_in else {}
            prefill, decode, tolerance, stats = differences(
                case_name, harness.DROPIN_LIB if drop_in else harness.ORT_LIB, **entries)
            print(json.dumps({"case": case_name, "ort": ort.__version__, "worst": max(prefill, decode),
                              "tolerance": tolerance, "ran": stats["ran"]}))
        except Exception as e:  # the test names which case failed and how
            print(json.dumps({"case": case_name, "ort": ort.__version__, "error": str(e)[:300]}))
        sys.stdout.flush()
