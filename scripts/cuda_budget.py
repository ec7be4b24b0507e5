"""Do the CUDA kernels fit? cuda_budget.py PTXAS_LOG: registers and spills of each kernel and architecture, from ptxas -v.

A spill fails: a kernel that spills has lost what it was shaped for. So does a decode kernel that is in
src/cuda/cuda_kernels.inc and not in the log. Without a log of today's sources (`cmake --build build --target
kvshare_cuda_device` makes it, where nvcc is) nothing is checked, and this says so.
"""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
ARCHITECTURES = ("sm_80", "sm_89", "sm_90")
ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\w+)'")
SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


def entries(log):
    """[(kernel, architecture, registers, bytes spilled)] of a log of ptxas -v."""
    found, kernel, spilled = [], None, 0
    for line in log.splitlines():
        if match := ENTRY.search(line):
            kernel = match.groups()
        elif match := SPILLS.search(line):
            spilled = int(match[1]) + int(match[2])
        elif (match := REGISTERS.search(line)) and kernel:
            found.append((*kernel, int(match[1]), spilled))
            kernel, spilled = None, 0
    return found


def readable(names):
    """Demangled, without namespaces and parameters."""
    full = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout.splitlines()
    return [re.sub(r"\w+::|\(.*|^void ", "", re.sub(r"\((?:int|bool)\)", "", name)) for name in full]


def trouble(log):
    """Why the log says nothing of today's sources, or None."""
    if not log.exists():
        return f"there is no {log}"
    newer = [f.name for f in sorted((ROOT / "src/cuda").iterdir()) if f.is_file() and f.stat().st_mtime > log.stat().st_mtime]
    return f"{log} is older than {newer[0]}" if newer else None


def main():
    log = pathlib.Path(sys.argv[1])
    if why := trouble(log):
        print(f"not checked: {why}; `cmake --build build --target kvshare_cuda_device` makes it where nvcc is")
        return 0
    found = entries(log.read_text())
    names = readable([kernel for kernel, *_ in found])
    wrong = []
    for name, (_, architecture, registers, spilled) in sorted(zip(names, found)):
        print(f"{architecture}  {registers:3} registers  {spilled:4} bytes spilled  {name}")
        if spilled:
            wrong.append(f"{name} spills {spilled} bytes on {architecture}")
    rows = len(re.findall(r"^KVSHARE_CUDA_\w+\(", (ROOT / "src/cuda/cuda_kernels.inc").read_text(), re.M))
    for architecture in ARCHITECTURES:
        # Two rows of the table may be one kernel, but for its tag.
        compiled = sum(a == architecture and "Shape<" in name for name, (_, a, *_) in zip(names, found))
        if compiled != rows:
            wrong.append(f"{architecture} has {compiled} shaped kernels; needs the {rows} of cuda_kernels.inc")
    print("\n".join(wrong) or f"{len(found)} kernels fit")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
