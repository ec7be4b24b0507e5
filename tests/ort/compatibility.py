"""Writes docs/compatibility.md, what ONNX Runtime's own kernels and kvshare's do with each feature: compatibility.py [--check]

Every cell is a call that was run and compared with float64 (specs.py), ONNX Runtime in a process of its own. --check fails
when the page is stale, and when kvshare is anything but right."""
import pathlib
import sys

import numpy as np

import harness
import specs
from ort_bugs_test import BUGS, verdict
from peer import Peer, release_folder

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs/compatibility.md"
F16, F64, BF16 = np.float16, np.float64, specs.BF16
WORST = ("crash", "wrong", "refused", "ok")

# Feature -> choices of specs.gqa for an own layer; "shared": other choices in the form of a layer that borrows, None: has none.
GQA = {
    "decode": {},
    "decode, ragged batch": dict(lens=[9, 4]),
    "first prompt": dict(S=7, lens=[7]),
    "first prompt, ragged, padded on the right": dict(S=7, lens=[7, 3]),
    "chunk (S > 1 after a past)": dict(S=3, lens=[9]),
    "chunk, batch of 2": dict(S=3, lens=[9, 6]),
    "cache longer than total_sequence_length": dict(past=20),
    "batch of 0": dict(lens=[], total=9),
    "packed QKV": dict(form="packed", shared=None),
    "presents un-named": dict(presents=False, lens=[30000], D=128),
    "external_key, external_value": dict(form="external", presents=False, shared=None),
    "fp16": dict(dtype=F16),
    "bf16": dict(dtype=BF16),
    "fp32 query, fp16 cache": dict(cache=F16),
    "fp16 query, bf16 cache": dict(dtype=F16, cache=BF16),
    "head size not a multiple of 8": dict(D=20),
    "scale": dict(scale=0.5),
    "local_window_size": dict(window=4),
    "local_window_size on a chunk": dict(S=3, lens=[9], window=4),
    "softcap": dict(softcap=2.0),
    "causal = 0": dict(S=7, lens=[7, 3], causal=0),
    "smooth_softmax": dict(smooth=1),
    "head_sink": dict(sink=True),
    "attention_bias": dict(lens=[9, 4], bias=(True, True)),
    "attention_bias, broadcast": dict(lens=[9, 4], bias=(False, False)),
    "attention_bias, a row of −∞": dict(bias=(False, False), hide=1.0),
    "attention_bias, a row of −∞, fp16": dict(bias=(False, False), hide=1.0, dtype=F16),
    "rotary embedding": dict(rotary=(16, False)),
    "rotary embedding, interleaved": dict(rotary=(16, True)),
    "rotary embedding of a part of the head": dict(rotary=(8, False)),
    "position_ids": dict(rotary=(16, False), position_ids=True),
    "q_norm_weight, k_norm_weight": dict(norms=True, rotary=(16, False)),
    "query_seqlens": dict(S=3, lens=[9, 7], counts=[3, 1], total=12, past=12),
    "int8 cache": dict(quant=("int8", False)),
    "int8 cache, a scale a channel": dict(quant=("int8", True)),
    "int4 cache": dict(quant=("int4", False)),
    "int4 cache, a scale a channel": dict(quant=("int4", True)),
    "float8 cache": dict(quant=("fp8", False)),
    "int8 cache, presents un-named": dict(quant=("int8", False), presents=False),
    "sliding_window_cache": dict(lens=[30], window=4, capacity=7),
    "sliding_window_cache, a chunk longer than it": dict(S=12, lens=[30], window=4, capacity=7, shared=None),
    "sliding_window_cache of int8": dict(lens=[30], window=4, capacity=7, quant=("int8", False)),
    "output_qk before the softmax": dict(qk_output=1),
    "output_qk after the softmax": dict(qk_output=2),
}

# Feature -> choices of specs.attention; "since" is the opset that has it.
ATTENTION = {
    "plain": {},
    "is_causal": dict(S=6, new=6, causal=1),
    "is_causal, more keys than queries": dict(S=2, new=6, causal=1),
    "3-D": dict(rank=3),
    "3-D Q with 4-D K and V": dict(rank=3, kv_rank=4),
    "past and present": dict(past=5, presents=True, causal=1),
    "past without present": dict(past=5, causal=1),
    "present without past": dict(presents=True),
    "3-D, empty K and V with a past": dict(rank=3, S=2, new=0, past=5, presents=True),
    "no keys at all": dict(new=0),
    "batch of 0": dict(B=0),
    "bool mask [S, T]": dict(new=6, mask="S"),
    "bool mask [T]": dict(new=6, mask=""),
    "bool mask [1, T]": dict(new=6, mask="1"),
    "bool mask [B, 1, 1, T]": dict(new=6, mask="B11"),
    "bool mask [1, Hq, S, T]": dict(new=6, mask="1HS"),
    "float mask [B, Hq, S, T]": dict(new=6, mask="BHS", mask_dtype=np.float32),
    "float mask [B, 1, 1, T]": dict(new=6, mask="B11", mask_dtype=np.float32),
    "mask and is_causal": dict(S=6, new=6, mask="S", causal=1),
    "mask that hides a whole row": dict(new=6, mask="S", hide=1.0),
    "mask shorter than T": dict(new=6, mask="BHS", short=2, since=24),
    "nonpad_kv_seqlen": dict(new=6, nonpad=[6, 4], since=24),
    "nonpad_kv_seqlen and is_causal": dict(new=6, nonpad=[6, 2], causal=1, since=24),
    "left_window_size": dict(S=6, new=6, causal=1, left=2, since=25),
    "left and right_window_size": dict(S=6, new=6, left=2, right=1, since=25),
    "local_window_size (kvshare's attribute)": dict(S=6, new=6, causal=1, window=3),
    "softcap": dict(softcap=2.0),
    "softcap and a mask": dict(new=6, softcap=2.0, mask="S"),
    "scale": dict(scale=0.5),
    "V's head size differs": dict(Dv=24),
    "fp16": dict(dtype=F16, causal=1),
    "bf16": dict(dtype=BF16, causal=1),
    "fp64": dict(dtype=F64, causal=1),
    "V of another type than Q and K": dict(v_dtype=F16),
    "qk_matmul_output_mode 0": dict(mode=0),
    "qk_matmul_output_mode 1": dict(mode=1, softcap=2.0),
    "qk_matmul_output_mode 2": dict(mode=2, S=6, new=6, causal=1),
    "qk_matmul_output_mode 3": dict(mode=3, S=6, new=6, causal=1),
}

HEAD = """# Compatibility

Generated by `tests/ort/compatibility.py` (`make compatibility`) with ONNX Runtime {version} on CPU; a test fails when this page
is stale. Each cell is a call that was run and compared with a float64 reference: ok, wrong (by more than rounding), refused (an
error), crash (the process died), – (there is no such form). kvshare's column is its own kernels, in place of ONNX Runtime's.
"""


class Judges:
    def __init__(self):
        self.ort, self.ours = Peer(), Peer(harness.ORT_LIB, drop_in="1")

    def ask_ort(self, spec):
        model = spec.model()
        answers = [verdict(spec, self.ort.run(model, spec.inputs))[0] for _ in range(3)]
        status = min(answers, key=WORST.index)
        reads_beyond = spec.op == "GroupQueryAttention" and "present_key" not in spec.outputs  # bugs 1 and 2: chance says which
        return "wrong or crash" if reads_beyond and status in ("wrong", "crash") else status

    def ask_ours(self, spec):
        answer = self.ours.run(spec.model(), spec.inputs)
        status, _ = verdict(spec, answer)
        return "elsewhere" if status == "ok" and answer.here != 1 else status


def shared_of(choices):
    """The borrower's choices, or None: its cache holds the step's own tokens."""
    if choices.get("shared", choices) is None:
        return None
    lens = choices.get("lens", [9])
    if "capacity" in choices:
        return {**choices, "form": "shared"}
    return {"past": max([choices.get("past", 0), choices.get("total", 0), *lens]), **choices, "form": "shared"}


def gqa_rows(judges):
    for i, (feature, choices) in enumerate(GQA.items()):
        own = specs.gqa(np.random.default_rng(i), **{k: v for k, v in choices.items() if k != "shared"})
        cells, ours = [judges.ask_ort(own)], [judges.ask_ours(own)]
        if (borrowed := shared_of(choices)) is not None:
            spec = specs.gqa(np.random.default_rng(i), **borrowed)
            cells.append(judges.ask_ort(spec))
            ours.append(judges.ask_ours(spec))
        else:
            cells.append("–")
        yield feature, *cells, next((status for status in ours if status != "ok"), "ok")


def attention_rows(judges):
    for i, (feature, choices) in enumerate(ATTENTION.items()):
        since = choices.get("since", 23)
        cells, ours = [], []
        for opset in (23, 24, 25):
            if opset < since:
                cells.append("–")
                continue
            spec = specs.attention(np.random.default_rng(i), opset=opset, **{k: v for k, v in choices.items() if k != "since"})
            cells.append(judges.ask_ort(spec))
            ours.append(judges.ask_ours(spec))
        yield feature, *cells, next((status for status in ours if status != "ok"), "ok")


def bug_rows(judges):
    for number, (what, make, refusal, releases) in BUGS.items():
        spec = make(np.random.default_rng(number))
        cells = [f"{harness.ort.__version__}: " + ("not refused" if refusal else judges.ask_ort(spec))]
        for release in releases:
            with Peer(release=release) as peer:
                cells.append(f"{release}: {verdict(spec, peer.run(spec.model(), spec.inputs))[0]}")
        yield str(number), what, ", ".join(cells), "refused, as it must" if refusal else judges.ask_ours(spec)


def table(titles, rows):
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    return "\n".join(lines + ["| " + " | ".join(r).replace("-inf", "−∞") + " |" for r in rows]) + "\n"


def page():
    judges = Judges()
    return "\n".join([
        HEAD.replace("{version}", harness.ort.__version__),
        "## GroupQueryAttention\n\nNormal: a layer with its own keys. Shared: ONNX Runtime's form of a layer that borrows (key and value"
        " of length 0).\n",
        table(("feature", "ONNX Runtime, normal", "ONNX Runtime, shared", "kvshare, both"), gqa_rows(judges)),
        "## Attention\n",
        table(("feature", "ONNX Runtime, opset 23", "24", "25", "kvshare, all"), attention_rows(judges)),
        "## Bugs of ONNX Runtime that kvshare has a test against\n",
        table(("no.", "what", "ONNX Runtime", "kvshare"), bug_rows(judges)),
    ])


def main():
    try:
        for release in sorted({release for *_, releases in BUGS.values() for release in releases}):
            release_folder(release)
    except FileNotFoundError as e:
        print(e)
        return 1
    text = page()
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(text)
        return 0
    bad = [line for line in text.splitlines() if line.startswith("| ") and not line.endswith((" ok |", " as it must |", "kvshare |", "both |", "all |"))]
    if bad:
        print("kvshare is not right:", *bad, sep="\n")
    if PAGE.read_text() != text:
        print("docs/compatibility.md is stale: make compatibility")
    return 1 if bad or PAGE.read_text() != text else 0


if __name__ == "__main__":
    sys.exit(main())
