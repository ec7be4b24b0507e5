#!/usr/bin/env python3
"""The smallest use of the execution provider: an unchanged Gemma4 decoder, its attention layers in kvshare.

    unchanged_decode.py model.onnx build/lib/libkvshare_ort.so
"""
import os
import pathlib
import sys

import onnxruntime

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))  # not needed with the wheel
from kvshare.decoder import Decoder, greedy  # noqa: E402

NAME = "KvshareExecutionProvider"


def load(model, library):
    # ONNX Runtime looks for a relative path in its own folder.
    onnxruntime.register_execution_provider_library("kvshare", os.path.abspath(library))
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    devices = [d for d in onnxruntime.get_ep_devices() if d.ep_name == NAME]
    options.add_provider_for_devices(devices[:1], {"mode": "fuse"})
    return onnxruntime.InferenceSession(model, options)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    session = load(*sys.argv[1:3])
    nodes = [node for part in session.get_provider_graph_assignment_info() if part.ep_name == NAME for node in part.get_nodes()]
    print(sum(node.op_type in ("Attention", "GroupQueryAttention") for node in nodes), "attention layers in kvshare")
    print(*greedy(Decoder(session), prompt=[2, 7, 1, 8, 2, 8], new_tokens=8))
