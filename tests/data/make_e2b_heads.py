"""Makes the case e2b_heads: attention at Gemma 4 E2B's true sizes in a model of random weights: make_e2b_heads.py [FOLDER]

Head sizes 256 and 512, window 512, 8 query heads on one key-value head, a prompt longer than two windows; the rest is small.
Needs torch 2.13.0, transformers 5.6.2 and mobius-onnx 0.1.0; the tests read what is committed.
"""
import json
import pathlib
import sys
import tempfile
import types

import numpy as np
import onnx
import torch
import transformers

SLIDING, FULL = "sliding_attention", "full_attention"
SEED, PROMPT, STEPS = 26, 1040, 8
CALM = 0.08  # random heads of 512 would make scores of +-60: one key for each query, and float32 angles that decide which
CONFIG = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 1,
    "head_dim": 256, "global_head_dim": 512, "sliding_window": 512, "max_position_embeddings": 1056, "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0, "vocab_size_per_layer_input": 64, "hidden_size_per_layer_input": 16,
    "use_double_wide_mlp": True, "tie_word_embeddings": True, "attention_k_eq_v": False, "num_hidden_layers": 4,
    "layer_types": [SLIDING, FULL, SLIDING, FULL], "num_kv_shared_layers": 2,
    "rope_parameters": {
        SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
        FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}},
    "hidden_activation": "gelu_pytorch_tanh", "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "attention_bias": False,
}


def make_model():
    """Weights that fp16 holds: half of their bits compress to nothing."""
    config = transformers.Gemma4TextConfig(**CONFIG)
    config._attn_implementation = "eager"
    model = transformers.Gemma4ForCausalLM(config).eval().float()
    random = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:  # of a norm
                value = torch.rand(weight.shape, generator=random) * 0.8 + 0.6
                if name.endswith("q_norm.weight"):
                    value *= CALM
            else:
                spread = 1.5 if "embed" in name else 1.2
                value = torch.randn(weight.shape, generator=random) * spread / weight.shape[1] ** 0.5
            weight.copy_(value.half().float())
        for name, buffer in model.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.copy_((torch.rand(buffer.shape, generator=random) * 0.4 + 0.8).half().float())
    model.tie_weights()
    return model


def golden(model):
    """Logits of the prompt and of each greedy step, as tests/data/README.md has them; nothing is padded."""
    prompt = np.random.default_rng(SEED).integers(3, CONFIG["vocab_size"], size=PROMPT)
    with torch.no_grad():
        out = model(input_ids=torch.tensor(prompt)[None], use_cache=True)
        prefill, tokens, logits = out.logits.numpy(), [], []
        for _ in range(STEPS):
            tokens.append(int((out.logits[0, -1]).argmax()))
            out = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[:, -1].numpy())
        whole = model(input_ids=torch.tensor([*prompt, *tokens])[None], use_cache=False).logits[0].numpy()
        model.config.sliding_window = 4 * PROMPT
        unwindowed = model(input_ids=torch.tensor([*prompt, *tokens])[None], use_cache=False).logits[0].numpy()
    cached = np.concatenate([prefill[0], *logits])
    print(f"cached against uncached {np.abs(whole - cached).max():.1e}, logits up to {np.abs(cached).max():.1f}, "
          f"tokens {tokens}, without the window off by {np.abs(unwindowed - whole).max():.1f}")
    arrays = {"input_ids": prompt[None], "attention_mask": np.ones((1, PROMPT), np.int64),
              "position_ids": np.arange(PROMPT)[None], "lens": np.array([PROMPT]), "prefill_logits": prefill,
              "decode_input_ids": np.array(tokens)[:, None], "decode_position_ids": np.arange(PROMPT, PROMPT + STEPS)[:, None],
              "decode_logits": np.array(logits)}
    return arrays | {f"decode_attention_mask_{t}": np.ones((1, PROMPT + t + 1), np.int64) for t in range(STEPS)}


def export(model, folder):
    import mobius
    from mobius._configs import Gemma4Config
    from mobius.models.gemma4 import Gemma4CausalLMModel
    source = types.SimpleNamespace(**CONFIG, model_type="gemma4_text", rope_theta=None, rope_scaling=None, dtype="float32",
                                   torch_dtype="float32", num_global_key_value_heads=None)
    source.to_dict = lambda: {**CONFIG, "num_global_key_value_heads": None}
    config = Gemma4Config.from_transformers(source)
    module = Gemma4CausalLMModel(config)
    package = mobius.build_from_module(module, config, "gemma4-text-generation", execution_provider="cpu")
    package.apply_weights(module.preprocess_weights(dict(model.state_dict())))
    with tempfile.TemporaryDirectory() as raw:
        package.save(raw, progress_bar=False)
        [path] = pathlib.Path(raw).rglob("*.onnx")
        onnx.save(onnx.load(path), folder / "model.onnx", save_as_external_data=True, all_tensors_to_one_file=True,
                  location="model.onnx.data", size_threshold=256)


def main():
    folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parent / "e2b_heads")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model.onnx", "model.onnx.data"):  # onnx.save appends
        (folder / name).unlink(missing_ok=True)
    torch.set_num_threads(1)
    model = make_model()
    np.savez(folder / "golden.npz", **golden(model))
    export(model, folder)
    case = {"name": folder.name, "config": CONFIG, "layer_types": CONFIG["layer_types"], "first_shared_layer": 2,
            "borrows": {"2": 0, "3": 1}, "sliding_window": CONFIG["sliding_window"], "mobius": "mobius-onnx 0.1.0", "ep": "cpu",
            "dtype": "f32"}
    (folder / "case.json").write_text(json.dumps(case, indent=1) + "\n")


if __name__ == "__main__":
    main()
