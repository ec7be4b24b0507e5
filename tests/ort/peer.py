"""ONNX Runtime in a process of its own, with or without the library: its crash is an answer, not the test's end."""
import json
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import dataclass, field


@dataclass
class Answer:
    status: str  # "ran", "refused" or "crash"
    outputs: dict = field(default_factory=dict)
    text: str = ""  # ORT's message, or the signal
    here: int = 0  # calls that the library's kernels ran


def release_folder(release):
    """Where `release` is unpacked."""
    folder = os.path.join(os.environ["KVSHARE_ORT_RELEASES"], release)
    if not os.path.isdir(os.path.join(folder, "onnxruntime")):
        raise FileNotFoundError(f"no onnxruntime {release} in {folder}: run scripts/setup.sh test")
    return folder


class Peer:
    """`release`: one of those in KVSHARE_ORT_RELEASES instead of the installed one. `entries`: as harness.session takes them."""

    def __init__(self, lib=None, release=None, **entries):
        self.command = [sys.executable, os.path.abspath(__file__), json.dumps([lib, entries])]
        folders = [release_folder(release)] if release else []
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
        self.child = None

    def run(self, model, inputs):
        if self.child is None:
            self.child = subprocess.Popen(self.command, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                          stderr=subprocess.DEVNULL)
        try:
            pickle.dump((model, inputs), self.child.stdin)
            self.child.stdin.flush()
            return pickle.load(self.child.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            code = self.child.wait()
            self.child = None
            return Answer("crash", text=signal.Signals(-code).name if code < 0 else f"exit {code}")

    def close(self):
        if self.child is not None:
            self.child.communicate()
            self.child = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def serve(lib, entries):
    import harness
    counters = harness.Counters(lib) if lib else None
    while True:
        try:
            model, inputs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            if counters:
                counters.reset()
            outputs = harness.run(harness.session(model, lib, **entries), inputs)
            answer = Answer("ran", outputs, here=counters.read()["ran"] if counters else 0)
        except Exception as e:
            answer = Answer("refused", text=str(e))
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.modules["peer"] = sys.modules["__main__"]  # answers are peer.Answer to who reads them
    Answer.__module__ = "peer"
    serve(*json.loads(sys.argv[1]))
