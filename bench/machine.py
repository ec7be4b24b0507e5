"""The machine and its load, in one line each; and its roof, measured by build/bin/kvshare_roof."""
import os
import pathlib
import platform
import statistics
import subprocess

from bench.common import llc_bytes

BUSY = 0.5  # load average above which figures are not to be published


def describe():
    names = [line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines()
             if line.startswith("model name")]
    flags = pathlib.Path("/proc/cpuinfo").read_text()
    simd = "AVX-512" if " avx512f" in flags else "AVX2"
    return f"{names[0]}, {os.cpu_count()} CPUs, {llc_bytes() >> 20} MB last-level cache, {simd}, Linux {platform.release()}"


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
        print(threads, file=self.process.stdin, flush=True)
        read, prefetched, flops, switches = map(float, self.process.stdout.readline().split())
        self.samples.append((read, prefetched, flops, switches))

    def summary(self):
        """Medians over the undisturbed rounds, or over all where none was. The bandwidth of a floor is the better one."""
        clean = [s for s in self.samples if not s[3]] or self.samples
        read, prefetched, flops = (statistics.median(s[i] for s in clean) for i in range(3))
        return {"read_gbs": read, "prefetched_gbs": prefetched, "gbs": max(read, prefetched), "gflops": flops,
                "rounds": len(clean), "dropped": sum(1 for s in self.samples if s[3])}

    def close(self):
        self.process.stdin.close()
        self.process.wait()
