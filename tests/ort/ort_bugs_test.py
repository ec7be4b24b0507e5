"""Where ONNX Runtime 1.32's CPU kernels are wrong or die, the kernels here are right. What ONNX Runtime does is recorded.

The numbers are those of docs/compatibility.md."""
import os

import numpy as np
import pytest

import harness
import specs
from peer import Peer

F16 = np.float16


def narrow_bias(rng):
    spec = specs.gqa(rng, lens=[9], past=20)
    spec.inputs["total_sequence_length"] = np.array(5, np.int32)
    spec.inputs["attention_bias"] = rng.standard_normal((1, 1, 1, 5)).astype(np.float32)
    return spec


# number -> (what, the call, what must be in our refusal where the call is wrong, releases of ORT beside the installed one)
BUGS = {
    1: ("presents un-named: past is ignored, memory behind the new keys read",
        lambda rng: specs.gqa(rng, lens=[30000], D=128, presents=False), None, ()),
    2: ("shared form, presents un-named, seqlens_k + 1 > total_sequence_length: writes past its scores",
        lambda rng: specs.gqa(rng, form="shared", lens=[60000], past=60000, total=8, Hq=8, Hkv=1, D=8, presents=False, smooth=1),
        None, ()),
    3: ("attention_bias is checked by total_sequence_length, read by seqlens_k", narrow_bias,
        "input 'seqlens_k' has seqlens_k[0] = 8; needs 0 to 4, the last column of 'attention_bias'", ()),
    4: ("a batch of 0: division by zero", lambda rng: specs.gqa(rng, lens=[], total=5), None, ()),
    5: ("a row of attention_bias that is all -inf: NaN with softcap or fp16",
        lambda rng: specs.gqa(rng, lens=[6, 6], dtype=F16, softcap=2.0, bias=(True, False), hide=1.0), None, ()),
    6: ("Attention-25, 3-D, empty K and V with a past: fails",
        lambda rng: specs.attention(rng, S=2, new=0, past=5, rank=3, opset=25), None, ()),
    7: ("shared form, presents un-named: dies in 1.27 to 1.30",
        lambda rng: specs.gqa(rng, form="shared", lens=[9], past=12, presents=False), None, ("1.27.0", "1.30.0")),
}


def verdict(spec, answer):
    """ok, wrong, refused or crash, and why."""
    if answer.status != "ran":
        return answer.status, answer.text
    fault = spec.fault(answer.outputs) if spec else None
    return ("wrong", fault) if fault else ("ok", "")


@pytest.mark.parametrize("number", BUGS)
def test_the_kernels_here_are_right(number, record_property):
    what, make, refusal, releases = BUGS[number]
    spec = make(np.random.default_rng(number))
    for release in (None, *releases):
        with Peer(release=release) as ort, Peer(harness.ORT_LIB, release=release, drop_in="1") as ours:
            theirs = verdict(None if refusal else spec, ort.run(spec.model(), spec.inputs))
            record_property(f"onnxruntime {release or harness.ort.__version__}", theirs)
            print(number, release, what, theirs)
            answer = ours.run(spec.model(), spec.inputs)
            if refusal:
                assert answer.status == "refused" and refusal in answer.text
            else:
                assert verdict(spec, answer) == ("ok", "") and answer.here == 1
