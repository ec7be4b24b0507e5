#!/usr/bin/env python3
"""ort_cuda_kernels.py REPOSITORY: writes src/graph/placement/ort_cuda_kernels.inc, which ops ONNX Runtime's CUDA provider has.

REPOSITORY is a git directory of ONNX Runtime's public sources. From each commit of RELEASES come docs/OperatorKernels.md
(operators, versions, types) and the kernels' registrations (what stays in the host's memory). Rows that several releases
share are written once.
"""

import argparse
import io
import pathlib
import re
import subprocess

# The last commit of the main branch before it went on to the next release. What a release branch got later is missing.
RELEASES = {
    23: "bb7c295a73^", 24: "62e8ba9338^", 25: "edd9f5864b^", 26: "b81e0c65e6^", 27: "3ddbdfba78^", 28: "b0651dd586^",
    29: "5dd1462b9e^", 30: "89b01b406c",
}
# Of these it is an earlier commit, the newest that a public copy had; and its date.
UNFINISHED = {30: "22 August 2026"}
TYPES = {"float": "f32", "float16": "f16", "bfloat16": "bf16", "double": "f64", "bool": "b", "string": "s",
         **{f"{sign}int{bits}": f"{sign[:1] or 'i'}{bits}" for sign in ("", "u") for bits in (2, 4, 8, 16, 32, 64)},
         "float8e4m3fn": "f8e4m3fn", "float8e4m3fnuz": "f8e4m3fnuz", "float8e5m2": "f8e5m2",
         "float8e5m2fnuz": "f8e5m2fnuz", "float4e2m1": "f4e2m1"}
SOURCES = ["onnxruntime/core/providers/cuda", "onnxruntime/contrib_ops/cuda"]
DOMAINS = {"kOnnxDomain": "", "kMSDomain": "com.microsoft", "kMSInternalNHWCDomain": "com.ms.internal.nhwc"}
OUT = pathlib.Path(__file__).resolve().parents[1] / "src" / "graph" / "placement" / "ort_cuda_kernels.inc"
HEADER = """\
// clang-format off
// What ONNX Runtime has kernels for, by release 1.N; scripts/ort_cuda_kernels.py writes it.
//
//   KVSHARE_ORT_KERNEL(provider, domain, op, first opset, last opset or 0, inputs>outputs, types, host, since N, until N)
//
//   KVSHARE_ORT_UNFINISHED(N, date of its sources), of a release whose sources are older than the release
//
// A type variable, or a type, for each input and output; the last input repeats. `host`: inputs and outputs in the host's
// memory. Of operators on the CPU there is a row where CUDA has none of that opset, without the variables of many types.
"""


def git(repository, *arguments):
    return subprocess.run(["git", f"--git-dir={repository}", *arguments], capture_output=True, text=True, check=True).stdout


def type_name(text):
    """tensor(float) as f32; sequences, optionals and sparse tensors keep their names."""
    inner = re.fullmatch(r"tensor\((\w+)\)", text)
    return TYPES.get(inner[1], inner[1]) if inner else text


def constraints(text):
    """{variable: types} of "**T** = tensor(float), tensor(double)<br/> **M** = tensor(int32)"."""
    found = re.findall(r"\*\*([\w.]+)\*\* = (.*?)(?=<br/>|$)", text)
    return {name: [type_name(one) for one in types.split(", ")] for name, types in found}


def signature(alternatives, variables):
    """"T,i64>T" by the first of the alternatives that asks for no other type variables than the row has."""
    slots = [re.findall(r"\*(in|out)\* [\w.]+:\*\*([^*]+)\*\*", text) for text in alternatives]
    fits = lambda found: all("(" in kind or kind in variables for _, kind in found)
    chosen = next(filter(fits, slots), slots[0])
    return ">".join(",".join(type_name(kind) for way, kind in chosen if way == side) for side in ("in", "out"))


def opsets(text):
    first = re.match(r"\[?(\d+)", text)[1]
    return int(first), 0 if text.endswith("+") else int(re.search(r"(\d+)\]?$", text)[1])


def kernels(document, provider):
    """{(domain, op, first, last): (signature, {variable: types})} of one provider's section."""
    section = document.split(f"## Operators implemented by {provider}", 1)[1].split("\n## ", 1)[0]
    rows, domain, op, alternatives = {}, None, None, None
    for line in section.splitlines():
        if named := re.match(r"\|\*\*Operator Domain:\*\* \*([\w.]+)\*", line):
            domain = "" if named[1] == "ai.onnx" else named[1]
        columns = line.strip("|").split("|") if line.startswith("|||") else line[1:-1].split("|")
        if line.startswith("|||"):
            columns = ["", "", *columns]
        if domain is None or len(columns) != 4 or not re.match(r"\[?\d", columns[2]):
            continue
        if columns[0]:
            op, alternatives = columns[0], columns[1].split("<br><br>or<br><br>")
        variables = constraints(columns[3])
        rows[domain, op, *opsets(columns[2])] = (signature(alternatives, variables), variables)
    return rows


def calls(text, pattern):
    """(match, arguments) of each call of a name that `pattern` fits, to its closing bracket."""
    for match in re.finditer(pattern, text):
        end, depth = match.end(), 1
        while depth and end < len(text):
            depth += {"(": 1, ")": -1}.get(text[end], 0)
            end += 1
        yield match, text[match.end():end - 1]


def registered_names(text, before, name):
    """The operators that a registration is for: `name`, or what a macro that holds it is called with."""
    macro = list(re.finditer(r"#define (\w+)\(([^)]*)\)", text[:before]))
    if not macro or name not in re.split(r"\W+", macro[-1][2]):
        return {name}
    place = [one.strip() for one in macro[-1][2].split(",")].index(name)
    users = re.finditer(rf"^\s*{macro[-1][1]}\(([^)]*)\)", text, re.MULTILINE)
    nested = {one[1].split(",")[place].strip() for one in users}
    return {op for user in nested for op in registered_names(text, text.find(f"{macro[-1][1]}({user}"), user)
            if user != name}


def registering(repository, commit):
    """The sources that register a kernel with something in the host's memory: {path: text}."""
    paths = git(repository, "grep", "-l", "OrtMemTypeCPU", commit, "--", *SOURCES).split()
    paths = [path for path in paths if "/plugin/" not in path and "/collective/" not in path]
    batch = io.BytesIO(subprocess.run(["git", f"--git-dir={repository}", "cat-file", "--batch"], capture_output=True,
                                      input="\n".join(paths).encode(), check=True).stdout)
    found = {}
    for path in paths:
        size = int(batch.readline().split()[2])
        found[path] = batch.read(size + 1).decode()
    return found


def registration(path, arguments):
    """(operator or macro parameter, domain, first opset or 0 for any) of a registration's arguments."""
    name, domain, first = (one.replace("\\", "").strip() for one in arguments.split(",")[:3])
    of_folder = "com.microsoft" if "contrib_ops" in path else ""
    return name, DOMAINS.get(domain, of_folder), int(first) if first.isdigit() else 0


def host_slots(repository, commit):
    """{(domain, op, first opset or 0 for any): {"i1", "o0"}}: what kernels for CUDA take or leave in the host's memory."""
    slots = {}
    for path, text in registering(repository, commit).items():
        for match, body in calls(text, r"ONNX_OPERATOR\w*KERNEL_EX\s*\("):
            found = {side[0].lower() + index for side, index in
                     re.findall(r"(In|Out)putMemoryType\(OrtMemTypeCPU\w+,\s*(\d+)\)", body)}
            if not found:
                continue
            name, domain, first = registration(path, body)
            for op in registered_names(text, match.start(), name):
                slots.setdefault((domain, op, first), set()).update(found)
    return slots


def release(repository, commit):
    """The rows of one release, without its number."""
    document = git(repository, "show", f"{commit}:docs/OperatorKernels.md")
    cuda, cpu = kernels(document, "CUDAExecutionProvider"), kernels(document, "CPUExecutionProvider")
    host = host_slots(repository, commit)
    known = {key[:3] for key in cuda}
    single = {key: (slots, {name: types for name, types in variables.items() if len(types) == 1})
              for key, (slots, variables) in cpu.items() if key[:3] not in known}
    for provider, found in (("kCuda", cuda), ("kCpu", single)):
        for (domain, op, first, last), (slots, variables) in found.items():
            types = ";".join(f"{name}={','.join(kinds)}" for name, kinds in variables.items())
            here = host.get((domain, op, first), set()) | host.get((domain, op, 0), set())
            memory = " ".join(sorted(here)) if provider == "kCuda" else ""
            yield provider, domain, op, first, last, slots, types, memory


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository")
    repository = parser.parse_args().repository
    spans = {}  # row: [since, until], one after another
    for number, commit in RELEASES.items():
        for row in release(repository, commit):
            known = spans.setdefault(row, [])
            if known and known[-1][1] == number - 1:
                known[-1][1] = number
            else:
                known.append([number, number])
    lines = []
    for (provider, domain, op, first, last, *texts), known in spans.items():
        quoted = ", ".join(f'"{text}"' for text in texts)
        lines += [f'KVSHARE_ORT_KERNEL({provider}, "{domain}", "{op}", {first}, {last}, {quoted}, {since}, {until})'
                  for since, until in known]
    lines += [f'KVSHARE_ORT_UNFINISHED({number}, "{date}")' for number, date in UNFINISHED.items()]
    OUT.write_text(HEADER + "\n".join(sorted(lines)) + "\n")


if __name__ == "__main__":
    main()
