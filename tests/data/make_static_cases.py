"""Makes the static_* cases: decoders whose caches have a fixed number of rows, into which the graph writes new keys.

    python make_static_cases.py FOLDER

static_mobius: mobius-onnx 0.1.0's Gemma 4 of random weights, CausalLMTask(static_cache=True): TensorScatter into caches
[B, C, Hkv * D] at write_indices, Attention with nonpad_kv_seqlen, a float mask on every layer; two layers borrow.
static_mobius_llama: the same task of a Llama, whose Attention has no mask and is_causal. static_torch: a Llama with
transformers' StaticCache by torch.onnx.export, opset 24: ScatterND into turned caches [B, Hkv, C, D], masks that compare columns.
Truth is the original's own answer; static_torch has PyTorch's logits too.
"""
import dataclasses
import json
import pathlib
import sys
from types import SimpleNamespace

import mobius
import numpy as np
import onnx_ir as ir
import torch
import transformers
from make_drafter_cases import F, S, TEXT, weights
from make_torch_cases import HEADS, VOCABULARY, strip
from mobius._configs import Gemma4Config
from mobius.models.gemma4 import Gemma4CausalLMModel
from mobius.tasks import CausalLMTask

ROWS = 32


def save(model, folder, name):
    weights(model, np.random.default_rng(8))
    case = pathlib.Path(folder) / name
    case.mkdir(parents=True, exist_ok=True)
    ir.save(model, case / "model.onnx")


def mobius_gemma(folder):
    layers = dict(num_hidden_layers=4, num_kv_shared_layers=2, layer_types=[S, F, S, F], architectures=["Gemma4ForCausalLM"])
    config = dataclasses.replace(Gemma4Config.from_transformers(SimpleNamespace(**{**TEXT, **layers})), dtype=ir.DataType.FLOAT)
    package = mobius.build_from_module(Gemma4CausalLMModel(config), config, CausalLMTask(static_cache=True, max_seq_len=ROWS),
                                       execution_provider="default")
    save(next(iter(package.values())), folder, "static_mobius")


def mobius_llama(folder):
    from mobius._configs import ArchitectureConfig
    from mobius.models.base import CausalLMModel
    config = ArchitectureConfig.from_transformers(transformers.LlamaConfig(**HEADS))
    config = dataclasses.replace(config, dtype=ir.DataType.FLOAT)
    package = mobius.build_from_module(CausalLMModel(config), config, CausalLMTask(static_cache=True, max_seq_len=ROWS),
                                       execution_provider="default")
    save(next(iter(package.values())), folder, "static_mobius_llama")


class WithStaticCache(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, position_ids, past):
        cache = transformers.StaticCache(config=self.model.config, max_cache_len=ROWS)
        for i, layer in enumerate(cache.layers):
            layer.keys, layer.values, layer.is_initialized = past[2 * i], past[2 * i + 1], True
            layer.dtype, layer.device = past[0].dtype, past[0].device
            layer.cumulative_length = position_ids[0, :1].clone()  # as many tokens as came before
        out = self.model(input_ids=input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True)
        return (out.logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values)))


def torch_llama(folder):
    torch.manual_seed(7)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**HEADS)).eval().float()
    model.set_attn_implementation("sdpa")
    for parameter in model.parameters():
        parameter.data.mul_(1 if parameter.dim() < 2 else 6)
    case = pathlib.Path(folder) / "static_torch"
    case.mkdir(parents=True, exist_ok=True)
    shape = (1, HEADS["num_key_value_heads"], ROWS, HEADS["head_dim"])
    past = [torch.zeros(shape) for _ in range(2 * HEADS["num_hidden_layers"])]
    names = [f"past_key_values.{i // 2}.{('key', 'value')[i % 2]}" for i in range(len(past))]
    arguments = (torch.randint(3, VOCABULARY, (1, 5)), torch.arange(7, 12)[None], past)
    with torch.no_grad():
        torch.onnx.export(WithStaticCache(model), arguments, str(case / "model.onnx"), dynamo=True, opset_version=24,
                          external_data=False, dynamic_shapes=({1: "seq"}, {1: "seq"}, [None] * len(past)),
                          input_names=["input_ids", "position_ids", *names],
                          output_names=["logits", *(name.replace("past_key_values", "present") for name in names)],
                          optimize=True, verbose=False)
        ids = torch.randint(3, VOCABULARY, (1, 18))
        np.savez_compressed(case / "logits.npz", input_ids=ids.numpy(), logits=model(input_ids=ids).logits.numpy())
    strip(str(case / "model.onnx"))
    (case / "case.json").write_text(json.dumps({
        "model": "llama", "producer": f"torch.onnx.export {torch.__version__}, transformers {transformers.__version__}",
        "opset": 24, "dtype": "f32", "rows": ROWS}, indent=1) + "\n")


if __name__ == "__main__":
    mobius_gemma(sys.argv[1])
    mobius_llama(sys.argv[1])
    torch_llama(sys.argv[1])
