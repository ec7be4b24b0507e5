"""The machine and its load, in one line each; and its roof, measured by build/bin/kvshare_roof."""
import os
import pathlib
import platform
import statistics
import subprocess

from bench.common import llc_bytes

SAMPLES = 4  # of each rate, in a round
BUSY = 0.5  # load average above which figures are not to be published


def describe():
    cpu = pathlib.Path("/proc/cpuinfo").read_text()
    # Arm's kernels give no name but the part's number.
    name = next(line.split(":")[1].strip() for key in ("model name", "CPU part", "Features")
                for line in cpu.splitlines() if line.startswith(key))
    simd = "NEON" if platform.machine() == "aarch64" else "AVX-512" if " avx512f" in cpu else "AVX2"
    return f"{name}, {os.cpu_count()} CPUs, {llc_bytes() >> 20} MB last-level cache, {simd}, Linux {platform.release()}"


def load():
    return os.getloadavg()[0]


class Roof:
    """GB/s and GFLOP/s in the very rounds of the row."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.samples = []

    def start(self):
        self.samples = []

    def slot(self, threads):
        for _ in range(SAMPLES):
            print(threads, file=self.process.stdin, flush=True)
            numbers = [float(n) for n in self.process.stdout.readline().split()]
            self.samples.append(list(zip(numbers[::2], numbers[1::2])))  # (rate, involuntary switches) three times

    def summary(self):
        """Medians over the undisturbed samples, over all where none was. The bandwidth of a floor is the better one."""
        rates, dropped = [], 0
        for measured in zip(*self.samples):
            clean = [rate for rate, switches in measured if not switches]
            rates.append(statistics.median(clean or [rate for rate, _ in measured]))
            dropped += len(measured) - len(clean)
        read, prefetched, flops = rates
        return {"read_gbs": read, "prefetched_gbs": prefetched, "gbs": max(read, prefetched), "gflops": flops,
                "samples": 3 * len(self.samples), "dropped": dropped}

    def close(self):
        self.process.stdin.close()
        self.process.wait()
