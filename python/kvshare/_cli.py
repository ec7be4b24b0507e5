"""The command `kvshare`: the C++ tool of this package, with this interpreter's onnxruntime for verify and doctor."""
import importlib.util
import os
import sys
from typing import NoReturn

TOOL = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bin", "kvshare")


def main() -> NoReturn:
    environment = dict(os.environ)
    onnxruntime = importlib.util.find_spec("onnxruntime")
    if "KVSHARE_ORT" not in environment and onnxruntime is not None and onnxruntime.origin is not None:
        environment["KVSHARE_ORT"] = os.path.dirname(onnxruntime.origin)
    os.execve(TOOL, ["kvshare", *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
