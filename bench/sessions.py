"""How long it takes to create a session, the model unchanged: python -m bench.sessions [CASE...] [--runs 15]

Sides take turns: ONNX Runtime alone, and with kvshare's provider in each of its modes; off is what ONNX Runtime does for any
provider of a library. Prints each side's median and its ratio to ONNX Runtime alone, and the same of the least processor time,
which other work on the machine disturbs less.
"""
import argparse
import os
import pathlib
import statistics
import time

import onnxruntime as ort

ROOT = pathlib.Path(__file__).resolve().parents[1]
LIBRARY = os.environ.get("KVSHARE_LIBRARY", str(ROOT / "build/lib/libkvshare_ort.so"))
PROVIDER = "KvshareExecutionProvider"
STOCK = "ONNX Runtime"
SIDES = [STOCK, "off", "nodes", "fuse"]


def create(path, side, devices):
    """Seconds, and seconds of processors, that a session takes."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if side != STOCK:
        options.add_provider_for_devices(devices, {"mode": side})
    start, worked = time.perf_counter(), time.process_time()
    ort.InferenceSession(path, options, **({"providers": ["CPUExecutionProvider"]} if side == STOCK else {}))
    return time.perf_counter() - start, time.process_time() - worked


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=["e2b35_mixed_bias_asis", "e2b35_head_shared_gqa"])
    parser.add_argument("--runs", type=int, default=15)
    arguments = parser.parse_args()
    ort.register_execution_provider_library("kvshare", LIBRARY)
    devices = [device for device in ort.get_ep_devices() if device.ep_name == PROVIDER]
    for case in arguments.cases:
        path = ROOT / "tests/data" / case / "model.onnx"
        for side in SIDES:
            create(path, side, devices)
        times = {side: [] for side in SIDES}
        for _ in range(arguments.runs):
            for side in SIDES:
                times[side].append(create(path, side, devices))
        medians = {side: statistics.median(wall for wall, _ in taken) for side, taken in times.items()}
        least = {side: min(worked for _, worked in taken) for side, taken in times.items()}
        print(case)
        for side in SIDES:
            print(f"    {side:14} {medians[side] * 1e3:7.1f} ms {medians[side] / medians[STOCK]:6.2f}"
                  f"    processors {least[side] * 1e3:7.1f} ms {least[side] / least[STOCK]:6.2f}")


if __name__ == "__main__":
    main()
