#!/usr/bin/env python3
"""The smallest use of kvshare from Python: register the library, run a rewritten Gemma4 decoder greedily.

    kvshare rewrite model.onnx -o shared.onnx --to kvshare
    gemma4_decode.py shared.onnx build/lib/libkvshare_ort.so
"""
import sys

import numpy as np
import onnxruntime


def load(model, library):
    options = onnxruntime.SessionOptions()
    # Entries such as options.add_session_config_entry("kvshare.drop_in", "1") go here, before the registration.
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def generate(session, prompt, new_tokens):
    inputs, outputs = session.get_inputs(), [o.name for o in session.get_outputs()]
    half_or_single = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    past = {i.name: np.zeros((1, i.shape[1], 0, i.shape[3]), half_or_single[i.type])
            for i in inputs if i.name.startswith("past_key_values")}
    tokens, ids = list(prompt), np.array([prompt], np.int64)
    for _ in range(new_tokens):
        feeds = {"input_ids": ids, "attention_mask": np.ones((1, len(tokens)), np.int64),
                 "position_ids": np.arange(len(tokens) - ids.shape[1], len(tokens))[None], **past}
        names = [i.name for i in inputs]
        results = dict(zip(outputs, session.run(None, {name: feeds[name] for name in names})))
        past = {name: results[name.replace("past_key_values", "present")] for name in past}
        tokens.append(int(results["logits"][0, -1].argmax()))
        ids = np.array([[tokens[-1]]], np.int64)
    return tokens[len(prompt):]


if __name__ == "__main__":
    print(*generate(load(*sys.argv[1:3]), prompt=[2, 7, 1, 8, 2, 8], new_tokens=8))
