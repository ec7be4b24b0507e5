"""python -m bench.hot_loops [--check] OBJECT...: what the innermost loops of the tile kernels cost on aarch64, counted.

For machines that nobody has timed: the cross-compiled objects of `make arm` are enough. For each kernel the loop with the
fewest instructions a product, and in it, for 8 products: all instructions, and loads of vector registers. Spills are moves of
vector registers from and to the stack, in that loop and in every other with as many multiplications (the same with a
prefetch). --check: each kernel of LIMITS is there, without spills, and within its limits.
"""
import os
import re
import subprocess
import sys

OBJDUMP = os.environ.get("OBJDUMP", "aarch64-linux-gnu-objdump")
# Products of an instruction. sdot multiplies 16 bytes, but three digits make one number (docs/decisions/0014).
PRODUCTS = {"fmla": 4, "bfdot": 8, "sdot": 16 / 3}
FEWEST_MULTIPLICATIONS = 8  # of a hot loop; remainders have fewer

# Instructions and vector loads for 8 products: what g++ 12.2 makes of them, and a tenth more. Other rows of a kernel, and fp8,
# are left out: with few rows a load, converting takes more than multiplying.
LIMITS = {
    "ScoreTile f32 1": (4.5, 2.75), "ScoreTile f32 2": (3.7, 1.66), "ScoreTile f32 4": (3.6, 1.10),
    "ScoreTile f32 8": (3.4, 1.38), "ScoreTile f16 1": (7.3, 2.75), "ScoreTile f16 2": (5.3, 1.66),
    "ScoreTile f16 4": (4.1, 1.10), "ScoreTile f16 8": (3.9, 1.38), "ScoreTile bf16 1": (9.6, 2.75),
    "ScoreTile bf16 2": (5.8, 1.66), "ScoreTile bf16 4": (4.7, 1.10), "ScoreTile bf16 8": (4.1, 1.38),
    "ScoreTile int8 1": (13.5, 2.75), "ScoreTile int8 2": (7.9, 1.66), "ScoreTile int8 4": (5.8, 1.10),
    "ScoreTile int8 8": (4.7, 1.38), "WeightTile f32 1": (4.3, 2.48), "WeightTile f32 2": (4.0, 1.38),
    "WeightTile f32 4": (3.2, 0.69), "WeightTile f32 8": (3.0, 0.56), "WeightTile f16 1": (6.5, 2.48),
    "WeightTile f16 2": (5.4, 1.66), "WeightTile f16 4": (3.8, 0.69), "WeightTile f16 8": (3.3, 0.56),
    "WeightTile bf16 1": (8.7, 2.48), "WeightTile bf16 2": (6.2, 1.66), "WeightTile bf16 4": (4.3, 0.69),
    "WeightTile bf16 8": (3.6, 0.56), "WeightTile int8 1": (13.1, 2.48), "WeightTile int8 2": (8.4, 1.66),
    "WeightTile int8 4": (5.4, 0.69), "WeightTile int8 8": (4.1, 0.56), "ScoreTile int4 8": (5.8, 1.38),
    "WeightTile int4 8": (5.4, 0.56), "ScoreDigits int8 4": (2.3, 0.56), "ScoreDigits int8 8": (2.3, 0.56),
    "ScoreDigits int4 4": (2.3, 0.56), "ScoreDigits int4 8": (2.3, 0.56), "WeightDigits 4": (2.2, 0.35),
    "WeightDigits 8": (2.2, 0.35), "ScoreWide f32 48": (2.7, 0.56), "ScoreWide f16 48": (2.7, 0.56),
    "ScoreWide bf16 48": (2.7, 0.56), "ScoreWide int8 48": (2.7, 0.56), "WeightWide f32 48": (3.1, 0.83),
    "WeightWide f16 48": (3.1, 0.83), "WeightWide bf16 48": (3.1, 0.83), "WeightWide int8 48": (3.1, 0.83),
}

FUNCTION = re.compile(r"[0-9a-f]+ <(.*)>:$")
INSTRUCTION = re.compile(r"\s+([0-9a-f]+):\s+(\S+)\s*(.*)")
KERNEL = re.compile(r"void (ScoreTile|WeightTile|ScoreDigits|ScoreWide|WeightWide)<(?:(?:Fma|Dots)<(.*?)>|([^<]*?)), (\d+)")
DIGIT_WEIGHTS = re.compile(r"void WeightStripOfQuads<(\d+)>")
TYPES = {"float": "f32", "hwy::float16_t": "f16", "hwy::bfloat16_t": "bf16", "signed char": "int8", "I4": "int4", "F8E4M3": "fp8"}
VECTOR = re.compile(r"\{?[bhsdqv]\d")


def kernel(name):
    """'ScoreTile f32 8' for the demangled name of a function; nothing for others, and for bf16 pairs without bfdot."""
    bfdot = "N_NEON_BF16::Dots<" in name
    if "Dots<" in name and not bfdot:
        return None
    target = " NEON_BF16" if "::N_NEON_BF16::" in name else ""
    name = re.sub(r"kvshare::N_\w+::", "", name)
    if found := DIGIT_WEIGHTS.match(name):
        return f"WeightDigits {found[1]}{target}"
    if not (found := KERNEL.match(name)):
        return None
    function, element, code, rows = found.groups()
    return f"{function} {TYPES[element or code]} {rows}{target}" + (" bfdot" if bfdot else "")


def functions(text):
    """(demangled name, [(address, operation, operands)])"""
    name, body = None, []
    for line in text.splitlines():
        if begins := FUNCTION.match(line):
            if name:
                yield name, body
            name, body = begins[1], []
        elif found := INSTRUCTION.match(line):
            body.append((int(found[1], 16), found[2], found[3]))
    if name:
        yield name, body


def innermost_loops(body):
    """The instructions of each stretch that a branch back spans and that spans no other."""
    at = {address: i for i, (address, _, _) in enumerate(body)}
    spans = []
    for i, (_, operation, operands) in enumerate(body):
        target = re.search(r"\b([0-9a-f]+) <", operands)
        if target and operation[:2] in ("b.", "cb", "tb") and at.get(int(target[1], 16), len(body)) <= i:
            spans.append((at[int(target[1], 16)], i))
    for begin, end in spans:
        if not any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in spans):
            yield body[begin:end + 1]


class Loop:
    def __init__(self, body):
        vectors = [(operation, operands) for _, operation, operands in body if VECTOR.match(operands)]
        self.multiplications = sum(operation in PRODUCTS for operation, _ in vectors)
        self.products = sum(PRODUCTS.get(operation, 0) for operation, _ in vectors)
        eighths = self.products / 8 or float("inf")
        self.instructions = len(body) / eighths
        self.loads = sum((2 if operation == "ldp" else 1) for operation, _ in vectors if operation.startswith("ld")) / eighths
        self.spills = sum("[sp" in operands for _, operands in vectors)


def hot_loop(body):
    """The cheapest loop, with the spills of those like it; nothing where there is none."""
    loops = [Loop(b) for b in innermost_loops(body)]
    loops = [loop for loop in loops if loop.multiplications >= FEWEST_MULTIPLICATIONS]
    if not loops:
        return None
    best = min(loops, key=lambda loop: loop.instructions)
    best.spills = max(loop.spills for loop in loops if loop.multiplications == best.multiplications)
    return best


def count(objects):
    loops = {}
    for path in objects:
        text = subprocess.run([OBJDUMP, "-d", "-C", "--no-show-raw-insn", path], capture_output=True, text=True, check=True).stdout
        for name, body in functions(text):
            if (key := kernel(name)) and (loop := hot_loop(body)):
                loops[key] = loop
    return loops


def faults(loops):
    for name, (instructions, loads) in LIMITS.items():
        if name not in loops:
            yield f"{name} is not there"
            continue
        loop = loops[name]
        if loop.spills:
            yield f"{name} spills {loop.spills} times"
        if loop.instructions > instructions or loop.loads > loads:
            yield f"{name} takes {loop.instructions:.2f} instructions and {loop.loads:.2f} loads; at most {instructions} and {loads}"


def main(arguments):
    check = arguments[:1] == ["--check"]
    loops = count(arguments[check:])
    print("| kernel, type, rows | instructions | vector loads | spills in the loop |\n|---|---|---|---|")
    for name, loop in sorted(loops.items()):
        print(f"| {name} | {loop.instructions:.2f} | {loop.loads:.2f} | {loop.spills} |")
    found = list(faults(loops)) if check else []
    for fault in found:
        print(f"hot_loops: {fault}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
