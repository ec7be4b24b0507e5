"""Folders of onnxruntime-genai around the cases of tests/data, and a case whose greedy tokens differ."""
import json
import os
import pathlib
import shutil

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper

from kvshare.decoder import Decoder, greedy

DATA = pathlib.Path(os.environ["KVSHARE_TEST_DATA"])


def config(model, about, share_buffer):
    """What genai has to know of a decoder; each cache counts as a layer, head sizes are read from the graph."""
    inputs = {i.name for i in model.graph.input}
    names = {name: name for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
    return {
        "model": {
            "type": "gemma4_text", "bos_token_id": 1, "eos_token_id": [0], "pad_token_id": 0,
            "context_length": about["max_position_embeddings"], "vocab_size": about["vocab_size"],
            "decoder": {
                "filename": "model.onnx", "head_size": about["head_dim"], "hidden_size": about["hidden_size"],
                "num_attention_heads": about["num_attention_heads"], "num_key_value_heads": about["num_key_value_heads"],
                "num_hidden_layers": sum(name.startswith("past_key_values") for name in inputs) // 2,
                "inputs": {**names, "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
                "outputs": {"logits": "logits", "present_key_names": "present.%d.key", "present_value_names": "present.%d.value"},
            },
        },
        "search": {"max_length": about["max_position_embeddings"], "past_present_share_buffer": share_buffer},
    }


def make(path, case, model=None, share_buffer=False):
    """A folder for `model`, by default the case's own file."""
    path.mkdir()
    shutil.copy(model or DATA / case / "model.onnx", path / "model.onnx")
    shutil.copy(DATA / case / "model.onnx.data", path / "model.onnx.data")
    about = json.loads((DATA / case / "case.json").read_text())["config"]
    graph = onnx.load(path / "model.onnx", load_external_data=False)
    (path / "genai_config.json").write_text(json.dumps(config(graph, about, share_buffer)))
    return path


def permute_logits(path):
    """Token i's logit becomes token i + 1's. A random model repeats its last token; this one counts on from it."""
    model = onnx.load(path, load_external_data=False)
    [producer] = [node for node in model.graph.node if "logits" in node.output]
    producer.output[list(producer.output).index("logits")] = "logits_before"
    vocabulary = model.graph.output[0].type.tensor_type.shape.dim[2].dim_value
    model.graph.initializer.append(numpy_helper.from_array(np.roll(np.arange(vocabulary), 1), "one_on"))
    model.graph.node.append(onnx.helper.make_node("Gather", ["logits_before", "one_on"], ["logits"], axis=2))
    path.write_bytes(model.SerializeToString())


def greedy_run(path, prompt, steps):
    """(tokens, the logits that chose them) by ONNX Runtime alone."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    decoder = Decoder(ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]))
    tokens = greedy(decoder, prompt, steps)
    ids = np.array([[*prompt, *tokens[:-1]]])
    logits = Decoder(decoder.session).step(ids, np.ones_like(ids), np.arange(ids.shape[1])[None])
    return tokens, logits[0, len(prompt) - 1:]
