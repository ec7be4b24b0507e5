"""Real trained decoders through kvshare, against PyTorch: compare.py FOLDER [NAME...] [--modes MODE...] [--steps N] [--bound B]

Each model (models.py) is exported (export.py); 200 tokens are decoded greedily by PyTorch after a prompt of 700, and each
export is fed the same tokens. It passes where every argmax is PyTorch's and every logit is within B = 2e-4.
"""
import argparse
import functools
import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "python"), str(ROOT / "tests/realmodel")]
from kvshare.decoder import Decoder  # noqa: E402

LIBRARY = str(ROOT / "build/lib/libkvshare_ort.so")
PROMPT = 700
TEXT = ROOT / "LICENSE"  # English of enough length, which stays as it is
FORMS = {"smollm2": ("genai", "torch"), "gemma3": ("mobius", "torch")}  # genai's builder reads Gemma 3 by an older transformers


def run_script(name, *arguments):
    subprocess.run([sys.executable, ROOT / "tests/realmodel" / name, *map(str, arguments)], check=True)


def reference(folder, steps):
    """PyTorch's prompt, greedy tokens and the logits that chose them; kept in `folder`."""
    path = folder / f"reference-{PROMPT}-{steps}.npz"
    if not path.exists():
        import torch
        import transformers
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32).eval()
        prompt = transformers.AutoTokenizer.from_pretrained(folder / "hf")(TEXT.read_text()).input_ids[:PROMPT]
        ids, past, tokens, logits = torch.tensor([prompt]), None, [], []
        with torch.no_grad():
            for _ in range(steps):
                out = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
                past = out.past_key_values
                logits.append(out.logits[0, -1].numpy())
                tokens.append(int(logits[-1].argmax()))
                ids = torch.tensor([tokens[-1:]])
        np.savez(path, prompt=prompt, tokens=tokens, logits=np.array(logits))
    return np.load(path)


def domains(path):
    return {o.domain for o in onnx.load(path, load_external_data=False).opset_import}


# What a mode runs: (model, session options before the library is registered), or None where it has nothing to run.
def unchanged(path, options):
    # Without an import of com.microsoft, ONNX Runtime's own optimizers may use that domain: docs/ops.md, the import condition.
    options.add_session_config_entry("kvshare.drop_in", "1" if "com.microsoft" in domains(path) else "attention")
    return path


def rewritten(path, options):
    out = path.with_name("rewritten.onnx")
    subprocess.run([ROOT / "build/bin/kvshare", "rewrite", path, "-o", out, "--to", "kvshare"], check=True, stdout=subprocess.DEVNULL)
    return out if "kvshare" in domains(out) else None


MODES = {"unchanged": unchanged, "rewritten": rewritten}


def kernel_calls(library):
    import ctypes
    library = ctypes.CDLL(library)
    size = library.kvshare_stats_json(None, 0)
    buffer = ctypes.create_string_buffer(size)
    library.kvshare_stats_json(buffer, size)
    library.kvshare_stats_reset()
    return json.loads(buffer.value)["ran"]


def in_onnxruntime(path, mode, wanted):
    """A function that gives the logits after the next ids; None where a mode has nothing to run."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # cores that other work shares
    model = MODES[mode](path, options)
    if model is None:
        return None
    options.register_custom_ops_library(LIBRARY)
    grouped = any(n.op_type == "GroupQueryAttention" for n in onnx.load(model, load_external_data=False).graph.node)
    decoder = Decoder(ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"]),
                      capacity=PROMPT + len(wanted["tokens"]) if grouped else 0,
                      head_size=json.loads((path.parents[1] / "hf/config.json").read_text())["head_dim"])

    tokens = 0

    def step(ids):
        nonlocal tokens
        tokens += len(ids)
        return decoder.step(ids[None], np.ones((1, tokens), np.int64), np.arange(tokens - len(ids), tokens)[None])[0, -1]

    return step


@functools.cache
def register_with_genai():
    import onnxruntime_genai
    onnxruntime_genai.register_execution_provider_library("kvshare", LIBRARY)
    return onnxruntime_genai


def in_genai(path, wanted):
    """The same by onnxruntime-genai, whose attention is in the execution provider; the model is unchanged."""
    genai = register_with_genai()
    config = genai.Config(str(path.parent))
    config.append_provider("KvshareExecutionProvider")
    model = genai.Model(config)
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=PROMPT + len(wanted["tokens"]))
    generator = genai.Generator(model, params)

    def step(ids):
        generator.append_tokens(ids[None].astype(np.int32))
        return generator.get_logits()[0, -1]

    return step


def compare(path, mode, wanted, bound):
    """(whether it passed, what to say)."""
    step = in_genai(path, wanted) if mode == "genai" else in_onnxruntime(path, mode, wanted)
    if step is None:
        return True, "no rule applies"
    kernel_calls(LIBRARY)  # from here on
    ids, off, same = wanted["prompt"], [], 0
    for token, want in zip(wanted["tokens"], wanted["logits"], strict=True):
        logits = step(ids)
        off.append(float(np.abs(logits - want).max()))
        same += int(logits.argmax()) == token
        ids = np.array([token])
    calls = kernel_calls(LIBRARY)
    return (same == len(off) and max(off) <= bound and calls > 0,
            f"argmax {same} of {len(off)}, logits off by {off[0]:.1e} (prompt), {max(off[1:]):.1e} (decode), {calls} calls of kernels here")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("names", nargs="*", default=["smollm2"])
    parser.add_argument("--modes", nargs="+", default=[*MODES, "genai"], choices=[*MODES, "genai"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--bound", type=float, default=2e-4)
    given = parser.parse_args()
    failed = False
    for name in given.names:
        run_script("models.py", given.folder, name)
        wanted = reference(given.folder / name, given.steps)
        top = np.sort(wanted["logits"])[:, -2:]
        print(f"{name}: PyTorch's logits up to {np.abs(wanted['logits']).max():.1f}, smallest margin of a token {np.diff(top).min():.1e}")
        for form in FORMS[name]:
            run_script("export.py", given.folder, name, form)
            for mode in given.modes:
                if mode == "genai" and form != "genai":  # the only form that has genai_config.json
                    continue
                passed, text = compare(given.folder / name / form / "model.onnx", mode, wanted, given.bound)
                print(f"{name} {form} {mode}: {'ok' if passed else 'FAILED'}: {text}", flush=True)
                failed |= not passed
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
