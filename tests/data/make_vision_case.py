"""Makes the case mobius_vision: Gemma 4's decoder with image blocks, whose tokens see each other beside causality and a window.

    python make_vision_case.py FOLDER

Made with mobius-onnx 0.1.0, of random weights: two layers with caches of their own, two that borrow them. A run of image
tokens (id IMAGE) is a block. Truth is the original's own answer.
"""
import dataclasses
import pathlib
import sys
from types import SimpleNamespace

import mobius
import onnx_ir as ir
from make_drafter_cases import F, S, TEXT, weights
from mobius._configs import Gemma4Config
from mobius.models.gemma4 import Gemma4CausalLMModel
from numpy.random import default_rng

IMAGE = 31
LAYERS = dict(num_hidden_layers=4, num_kv_shared_layers=2, layer_types=[S, F, S, F], use_bidirectional_attention="vision",
              architectures=["Gemma4ForCausalLM"])


def make(folder):
    config = Gemma4Config.from_transformers(SimpleNamespace(**{**TEXT, **LAYERS}))
    config = dataclasses.replace(config, dtype=ir.DataType.FLOAT, image_token_id=IMAGE)
    package = mobius.build_from_module(Gemma4CausalLMModel(config), config, "gemma4-text-generation",
                                       execution_provider="default")
    model = next(iter(package.values()))
    weights(model, default_rng(6))
    case = pathlib.Path(folder) / "mobius_vision"
    case.mkdir(parents=True, exist_ok=True)
    ir.save(model, case / "model.onnx")


if __name__ == "__main__":
    make(sys.argv[1])
