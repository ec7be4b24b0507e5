#!/usr/bin/env python3
"""The smallest use of kvshare from Python: register the library, run a rewritten Gemma4 decoder greedily.

    kvshare rewrite model.onnx -o shared.onnx --to kvshare
    gemma4_decode.py shared.onnx build/lib/libkvshare_ort.so
"""
import pathlib
import sys

import onnxruntime

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))  # not needed with the wheel
from kvshare.decoder import Decoder, greedy  # noqa: E402


def load(model, library):
    options = onnxruntime.SessionOptions()
    # Entries such as options.add_session_config_entry("kvshare.drop_in", "1") go here, before the registration.
    options.register_custom_ops_library(library)
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    # Each step feeds the tokens and the past keys and values; its present ones are the next step's past.
    print(*greedy(Decoder(load(*sys.argv[1:3])), prompt=[2, 7, 1, 8, 2, 8], new_tokens=8))
