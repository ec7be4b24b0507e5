"""Which layer reads whose keys is found from the graph: pairs, a single source, groups, and Gemma's own maps at full depth."""

import cases
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

HEADS, KV_HEADS, SIZE, WINDOW = 4, 2, 8, 5


def suffix(layers, shared, period):
    """Gemma 3n and 4: the last layers of each type read the last own layer of their type; every `period`-th is full."""
    full = [(layer + 1) % period == 0 for layer in range(layers)]
    own = layers - shared
    sources = [layer if layer < own else max(i for i in range(own) if full[i] == full[layer]) for layer in range(layers)]
    return sources, full


MAPS = {
    "E2B": suffix(35, 20, 5),
    "E4B": suffix(42, 18, 6),
    "pairs": ([i - i % 2 for i in range(8)], [False] * 8),  # Hunyuan's use_cla
    "single_source": ([0, 1, 2, 2, 2, 2], [True] * 6),  # YOCO, and Apple's num_kv_reuse_layers
    "groups": ([0, 0, 0, 3, 3, 5, 0, 3], [True] * 8),  # as kv_reuse_group, a later layer back to an earlier group
    "shared_before_own": ([0, 0, 2, 0, 2], [False, True, False, True, True]),
}


class Builder:
    """Layers as PyTorch exports them: caches joined by Concat, repeat_kv, masks that compare columns."""

    def __init__(self, sources, full):
        self.nodes, self.weights, rng = [], [], np.random.default_rng(11)
        hidden = HEADS * SIZE
        ints = lambda name, values: self.weight(name, np.array(values, np.int64))
        for name, values in {"nought": 0, "once": 1, "axis1": [1], "axis2": [2], "axis3": [3], "front": [0, 1], "width": WINDOW,
                             "heads": [0, 0, HEADS, SIZE], "kv_heads": [0, 0, KV_HEADS, SIZE], "fold": [0, 0, -1],
                             "group": [HEADS // KV_HEADS], "n": [KV_HEADS], "h": [HEADS], "d": [SIZE]}.items():
            ints(name, values)
        self.weight("embedding", rng.standard_normal((16, hidden)).astype(np.float32))
        self.masks(full)
        x = self.add("Gather", ["embedding", "input_ids"])
        caches, keys = [], {}
        for layer, source in enumerate(sources):
            self.matrix(f"wq{layer}", rng, hidden, hidden)
            self.matrix(f"wo{layer}", rng, hidden, hidden, 0.3)  # there are no norms: 42 layers stay near one
            q = self.project(x, f"wq{layer}", "heads")
            if source == layer:
                for half in "kv":
                    self.matrix(f"w{half}{layer}", rng, hidden, KV_HEADS * SIZE)
                    new = self.project(x, f"w{half}{layer}", "kv_heads")
                    present = f"present.{len(caches) // 2}.{'key' if half == 'k' else 'value'}"
                    self.nodes.append(helper.make_node("Concat", [present.replace("present", "past_key_values"), new], [present], axis=-2))
                    caches.append(present)
                keys[layer] = [self.repeat(caches[-2]), self.repeat(caches[-1])]
            out = self.add("Attention", [q, *keys[source], "full_mask" if full[layer] else "near_mask"], is_causal=0)
            flat = self.add("Reshape", [self.add("Transpose", [out], perm=[0, 2, 1, 3]), "fold"])
            x = self.add("Add", [x, self.add("MatMul", [flat, f"wo{layer}"])])
        self.nodes.append(helper.make_node("Identity", [x], ["logits"]))
        tensor, f32 = helper.make_tensor_value_info, TensorProto.FLOAT
        cache = lambda name, rows: tensor(name, f32, ["batch", KV_HEADS, rows, SIZE])
        self.model = helper.make_model(helper.make_graph(
            self.nodes, "g",
            [tensor("input_ids", TensorProto.INT64, ["batch", "seq"]), tensor("attention_mask", TensorProto.INT64, ["batch", "past + seq"]),
             *[cache(name.replace("present", "past_key_values"), "past") for name in caches]],
            [tensor("logits", f32, ["batch", "seq", hidden]), *[cache(name, "past + seq") for name in caches]],
            self.weights), opset_imports=[helper.make_opsetid("", 24)], ir_version=10)
        self.model = onnx.shape_inference.infer_shapes(self.model)

    def add(self, op, inputs, **attributes):
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def weight(self, name, array):
        self.weights.append(numpy_helper.from_array(array, name))

    def matrix(self, name, rng, rows, columns, size=1.0):
        self.weight(name, (rng.standard_normal((rows, columns)) * size / rows ** 0.5).astype(np.float32))

    def project(self, x, weight, shape):
        return self.add("Transpose", [self.add("Reshape", [self.add("MatMul", [x, weight]), shape])], perm=[0, 2, 1, 3])

    def repeat(self, present):
        rows = self.add("Shape", [present], start=2, end=3)
        batch = self.add("Shape", [present], start=0, end=1)
        wide = self.add("Concat", [batch, "n", "group", rows, "d"], axis=0)
        flat = self.add("Concat", [batch, "h", rows, "d"], axis=0)
        return self.add("Reshape", [self.add("Expand", [self.add("Unsqueeze", [present, "axis2"]), wide]), flat])

    def masks(self, full):
        scalar = lambda value: self.add("Squeeze", [value])
        new = scalar(self.add("Shape", ["input_ids"], start=1, end=2))
        past = scalar(self.add("Shape", ["past_key_values.0.key"], start=2, end=3))
        column = lambda values, axes: self.add("Unsqueeze", [self.add("Unsqueeze", [values, "front"]), axes])
        q = column(self.add("Add", [self.add("Range", ["nought", new, "once"]), past]), "axis3")
        kv = column(self.add("Range", ["nought", self.add("Add", [past, new]), "once"]), "axis2")
        kept = self.add("Unsqueeze", [self.add("Cast", ["attention_mask"], to=TensorProto.BOOL), "middle"])
        self.weight("middle", np.array([1, 2], np.int64))
        causal = self.add("LessOrEqual", [kv, q])
        if any(full):
            self.nodes.append(helper.make_node("And", [causal, kept], ["full_mask"]))
        if not all(full):
            near = self.add("And", [self.add("Greater", [kv, self.add("Sub", [q, "width"])]), causal])
            self.nodes.append(helper.make_node("And", [near, kept], ["near_mask"]))


def steps(model, library):
    """The logits of a prompt and two decode steps."""
    session = cases.session(model, library)
    names = [value.name for value in session.get_outputs()]
    caches = {name.replace("present", "past_key_values"): np.zeros((1, KV_HEADS, 0, SIZE), np.float32) for name in names[1:]}
    logits, total = [], 0
    for ids in np.split(np.random.default_rng(4).integers(0, 16, (1, 13)), [11, 12], 1):
        total += ids.shape[1]
        got = session.run(None, {"input_ids": ids, "attention_mask": np.ones((1, total), np.int64), **caches})
        caches = {name.replace("present", "past_key_values"): value for name, value in zip(names[1:], got[1:], strict=True)}
        logits.append(got[0])
    return logits


@pytest.mark.parametrize("kind", MAPS)
def test_the_map_is_the_graphs_and_every_target_keeps_it(kvshare, library, tmp_path, kind):
    sources, full = MAPS[kind]
    original = tmp_path / "model.onnx"
    onnx.save(Builder(sources, full).model, original)
    want = steps(original, None)
    for path, target in [(original, None), *[(tmp_path / f"{target}.onnx", target) for target in cases.TARGETS]]:
        if target:
            assert "left alone" not in cases.rewrite(kvshare, original, path, "--to", target)
        layers = cases.inspect(kvshare, path)["layers"]
        assert [layer["source"] if layer["kind"] == "shared" else layer["index"] for layer in layers] == sources
        assert [layer["window"] for layer in layers] == [-1 if each else WINDOW for each in full]
        if target:
            for got, truth in zip(steps(path, None if target == "ort" else library), want, strict=True):
                assert np.abs(got - truth).max() <= 1e-4 * max(1, np.abs(truth).max())
