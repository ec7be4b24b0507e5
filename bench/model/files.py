"""Writes a model of given sizes with random int4 weights in the three forms in which exporters write it.

mixed     own layers are GroupQueryAttention, borrowing ones Attention with a mask, over transposed copies of the cache
shared    borrowing layers are GroupQueryAttention with key and value of length 0, their source's present as past
default   all layers are Attention with a mask; a present is a new tensor

Inputs: inputs_embeds [B, S, hidden], per_layer_inputs [B, S, layers, per_layer], attention_mask [B, T], position_ids [B, S],
past_key_values.i.key and .value. Outputs: logits [B, 1, V] of the last token, presents.
"""
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FORMS = ("mixed", "shared", "default")
BLOCK = 32  # weights that share a scale
INLINE_BYTES = 1024
PAGE = 4096
LOWEST = float(np.finfo(np.float32).min)


class Weights:
    """Tensors in one file beside the models, which several models may name."""

    def __init__(self, path):
        self.path, self.tensors = path, {}
        self.random = np.random.default_rng(0)
        self.file = path.open("wb")

    def add(self, name, make):
        """make() -> array; called where no model before has named the tensor."""
        if name not in self.tensors:
            array = make()
            self.tensors[name] = numpy_helper.from_array(array, name) if array.nbytes < INLINE_BYTES else self._place(name, array)
        return self.tensors[name]

    def _place(self, name, array):
        self.file.seek(-self.file.tell() % PAGE, 1)
        tensor = TensorProto(name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
                             data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self.path.name), ("offset", self.file.tell()), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.file.write(array.tobytes())
        return tensor


class Model:
    """One form of the model, node by node; an operator's first output has its node's name."""

    def __init__(self, sizes, form, weights):
        self.sizes, self.form, self.weights = sizes, form, weights
        self.nodes, self.initializers, self.infos, self.inputs, self.outputs = [], {}, [], [], []
        self.made = {}

    def op(self, op, inputs, name, domain="", outputs=(), **attributes):
        self.nodes.append(helper.make_node(op, inputs, [name, *outputs], name=name, domain=domain, **attributes))
        return name

    def once(self, name, make):
        """make(name) at the first call: nodes that several layers read."""
        if name not in self.made:
            self.made[name] = make(name)
        return self.made[name]

    def tensor(self, name, make):
        self.initializers[name] = self.weights.add(name, make)
        return name

    def ints(self, *values):
        return self.tensor("ints_" + "_".join(map(str, values)), lambda: np.array(values, np.int64))

    def number(self, value, dtype=np.float32):
        return self.tensor(f"{np.dtype(dtype).name}_{value}", lambda: np.array(value, dtype))

    def declare(self, name, width):
        """Exporters declare the shapes of all values."""
        self.infos.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", "sequence", width]))

    def linear(self, x, name, inner, outer):
        blocks, random = inner // BLOCK, self.weights.random
        codes = self.tensor(f"{name}.codes", lambda: np.frombuffer(random.bytes(outer * blocks * BLOCK // 2), np.uint8).reshape(
            outer, blocks, BLOCK // 2))
        # Codes are 4.6 from 0 on average: outputs are about as large as inputs.
        mean = np.float32(0.2 / inner**0.5)
        scales = self.tensor(f"{name}.scales", lambda: random.random(outer * blocks, dtype=np.float32) * 2 * mean)
        self.declare(name, outer)
        return self.op("MatMulNBits", [x, codes, scales], name, "com.microsoft", K=inner, N=outer, bits=4, block_size=BLOCK,
                       accuracy_level=self.sizes.accuracy)

    def norm(self, x, name, width, gain=1.0):
        gains = self.tensor(f"gain_{width}_{gain:.4f}", lambda: np.full(width, gain, np.float32))
        return self.op("RMSNormalization", [x, gains], name, epsilon=1e-6, axis=-1)

    def projection(self, layer, x, name, count, gain=1.0):
        """[B, S, count * D], each head normalized."""
        D, name = self.sizes.head(layer), f"layers.{layer}.{name}"
        heads = self.op("Reshape", [self.linear(x, name, self.sizes.hidden, count * D), self.ints(0, 0, count, D)], f"{name}.heads")
        return self.op("Reshape", [self.norm(heads, f"{name}.norm", D, gain), self.ints(0, 0, count * D)], f"{name}.flat")

    def rotary_tables(self, layer):
        """[positions, D/2] of cosines and of sines."""
        D, kind, base = self.sizes.head(layer), *(("full", 1e6) if self.sizes.is_full(layer) else ("sliding", 1e4))

        def angles():
            return np.outer(np.arange(self.sizes.positions), base ** (-np.arange(D // 2) / (D // 2)))
        return [self.tensor(f"{kind}_{of.__name__}", lambda of=of: of(angles()).astype(np.float32)) for of in (np.cos, np.sin)]

    def rotate(self, x, layer, count):
        rows = [self.once(f"{table}.rows", lambda name, table=table: self.op("Gather", [table, "position_ids"], name))
                for table in self.rotary_tables(layer)]
        return self.op("RotaryEmbedding", [x, *rows], f"{x}.rotated", num_heads=count, rotary_embedding_dim=0, interleaved=0)

    def cast(self, x, name, to):
        return self.op("Cast", [x], name, to=to)

    def lengths(self):
        """seqlens_k and total_sequence_length of GroupQueryAttention."""
        one = self.number(1, np.int64)

        def seqlens(name):
            ones = self.op("ReduceSum", ["attention_mask", self.ints(1)], "lengths.ones", keepdims=0)
            return self.cast(self.op("Sub", [ones, one], "lengths.last"), name, TensorProto.INT32)

        def total(name):
            extents = self.op("Shape", ["attention_mask"], "lengths.extents")
            return self.cast(self.op("Gather", [extents, one], "lengths.columns"), name, TensorProto.INT32)
        return [self.once("lengths.seqlens_k", seqlens), self.once("lengths.total", total)]

    def positions(self):
        """Of this step's tokens [B, S, 1], of all keys [B, 1, T], and which keys are no padding [B, 1, T]."""
        counts = self.op("CumSum", ["attention_mask", self.number(1, np.int64)], "mask.counts")
        keys = self.op("Unsqueeze", [counts, self.ints(1)], "mask.keys")
        new = self.op("Shape", ["inputs_embeds"], "mask.new", start=1, end=2)
        total = self.op("Shape", ["attention_mask"], "mask.total", start=1, end=2)
        past = self.op("Sub", [total, new], "mask.past")
        latest = self.op("Slice", [counts, past, total, self.ints(1)], "mask.latest")
        queries = self.op("Unsqueeze", [latest, self.ints(2)], "mask.queries")
        real = self.cast(self.op("Unsqueeze", ["attention_mask", self.ints(1)], "mask.rows"), "mask.real", TensorProto.BOOL)
        return queries, keys, real, self.op("GreaterOrEqual", [queries, keys], "mask.causal")

    def mask(self, layer):
        """[B, 1, S, T]: 0 where a query sees a key, the lowest number elsewhere."""
        queries, keys, real, causal = self.once("mask", lambda name: self.positions())

        def make(name):
            seen = causal
            if not self.sizes.is_full(layer):
                distance = self.op("Sub", [queries, keys], f"{name}.distance")
                near = self.op("Less", [distance, self.number(self.sizes.window, np.int64)], f"{name}.near")
                seen = self.op("And", [causal, near], f"{name}.both")
            seen = self.op("And", [real, seen], f"{name}.seen")
            bias = self.op("Where", [seen, self.number(0.0), self.number(LOWEST)], f"{name}.bias")
            return self.op("Unsqueeze", [bias, self.ints(1)], name)
        return self.once("mask.full" if self.sizes.is_full(layer) else "mask.window", make)

    def cache(self, layer):
        """Names of past key and value, and of present key and value."""
        past, present = ([f"{kind}.{layer}.{side}" for side in ("key", "value")] for kind in ("past_key_values", "present"))
        shape = ["batch", 1, "past", self.sizes.head(layer)]
        self.inputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in past]
        shape[2] = "total"
        self.outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in present]
        return past, present

    def gqa(self, layer, inputs, presents):
        window = -1 if self.sizes.is_full(layer) else self.sizes.window
        return self.op("GroupQueryAttention", [*inputs, *self.lengths(), *self.rotary_tables(layer)], f"layers.{layer}.attention",
                       "com.microsoft", presents, num_heads=self.sizes.heads, kv_num_heads=1, scale=1.0, do_rotary=1,
                       rotary_interleaved=0, local_window_size=window)

    def attention_op(self, layer, inputs, presents, causal):
        return self.op("Attention", inputs, f"layers.{layer}.attention", "", presents, q_num_heads=self.sizes.heads, kv_num_heads=1,
                       scale=1.0, is_causal=causal)

    def own_attention(self, layer, query, normed):
        key, value = (self.projection(layer, normed, name, 1) for name in ("key", "value"))
        past, present = self.cache(layer)
        if self.form != "default":
            return self.gqa(layer, [query, key, value, *past], present)
        inputs = [self.rotate(query, layer, self.sizes.heads), self.rotate(key, layer, 1), value, self.mask(layer), *past]
        return self.attention_op(layer, inputs, present, 1)

    def borrowing_attention(self, layer, query):
        D = self.sizes.head(layer)
        present = [f"present.{self.sizes.source(layer)}.{side}" for side in ("key", "value")]
        if self.form == "shared":
            def nothing(name):
                batch = self.op("Shape", ["inputs_embeds"], f"{name}.batch", start=0, end=1)
                return self.op("ConstantOfShape", [self.op("Concat", [batch, self.ints(0, D)], f"{name}.shape", axis=0)], name)
            empty = self.once(f"nothing_{D}", nothing)
            return self.gqa(layer, [query, empty, empty, *present], ())

        def copy(name, source):
            turned = self.op("Transpose", [source], f"{name}.turned", perm=[0, 2, 1, 3])
            return self.op("Reshape", [turned, self.ints(0, 0, D)], name)
        # Mixed exports copy in every layer, default ones once for all.
        reader = layer if self.form == "mixed" else "all"
        copies = [self.once(f"copy.{reader}.{name}", lambda copied, source=name: copy(copied, source)) for name in present]
        return self.attention_op(layer, [self.rotate(query, layer, self.sizes.heads), *copies, self.mask(layer)], (), 0)

    def attention(self, layer, normed):
        sizes, D = self.sizes, self.sizes.head(layer)
        # The gain keeps scores near 1, as their scale is 1.
        query = self.projection(layer, normed, "query", sizes.heads, D**-0.5)
        made = self.own_attention(layer, query, normed) if sizes.is_own(layer) else self.borrowing_attention(layer, query)
        return self.linear(made, f"layers.{layer}.output", sizes.heads * D, sizes.hidden)

    def gate(self, x, name, inner, outer):
        return self.op("Gelu", [self.linear(x, f"{name}.gate", inner, outer)], f"{name}.gelu", approximate="tanh")

    def layer(self, layer, x):
        sizes, name, hidden, inner = self.sizes, f"layers.{layer}", self.sizes.hidden, self.sizes.inner_of(layer)
        attended = self.attention(layer, self.norm(x, f"{name}.norm", hidden))
        x = self.op("Add", [x, self.norm(attended, f"{name}.after_attention", hidden)], f"{name}.attended")
        normed = self.norm(x, f"{name}.before_feed_forward", hidden)
        up = self.linear(normed, f"{name}.up", hidden, inner)
        wide = self.op("Mul", [self.gate(normed, name, hidden, inner), up], f"{name}.wide")
        fed = self.norm(self.linear(wide, f"{name}.down", inner, hidden), f"{name}.after_feed_forward", hidden)
        x = self.op("Add", [x, fed], f"{name}.fed")
        given = self.op("Gather", ["per_layer_inputs", self.number(layer, np.int64)], f"{name}.given", axis=2)
        mixed = self.op("Mul", [self.gate(x, f"{name}.per_layer", hidden, sizes.per_layer), given], f"{name}.mixed")
        added = self.norm(self.linear(mixed, f"{name}.per_layer", sizes.per_layer, hidden), f"{name}.after_per_layer", hidden)
        self.declare(f"{name}.out", hidden)
        return self.op("Add", [x, added], f"{name}.out")

    def proto(self):
        sizes, value = self.sizes, helper.make_tensor_value_info
        self.inputs = [value("inputs_embeds", TensorProto.FLOAT, ["batch", "sequence", sizes.hidden]),
                       value("per_layer_inputs", TensorProto.FLOAT, ["batch", "sequence", sizes.layers, sizes.per_layer]),
                       value("attention_mask", TensorProto.INT64, ["batch", "total"]),
                       value("position_ids", TensorProto.INT64, ["batch", "sequence"])]
        x = "inputs_embeds"
        for layer in range(sizes.layers):
            x = self.layer(layer, x)
        last = self.op("Slice", [x, self.ints(-1), self.ints(np.iinfo(np.int64).max), self.ints(1)], "last")
        self.linear(self.norm(last, "last.norm", sizes.hidden), "logits", sizes.hidden, sizes.vocabulary)
        self.infos.pop()  # logits are an output
        self.outputs.insert(0, value("logits", TensorProto.FLOAT, ["batch", 1, sizes.vocabulary]))
        graph = helper.make_graph(self.nodes, "model", self.inputs, self.outputs, list(self.initializers.values()),
                                  value_info=self.infos)
        opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, ir_version=11, opset_imports=opsets)


def write(sizes, folder):
    """{form: path}; the three files name the same weights."""
    weights = Weights(folder / "weights.data")
    paths = {}
    for form in FORMS:
        paths[form] = folder / f"{form}.onnx"
        paths[form].write_bytes(Model(sizes, form, weights).proto().SerializeToString())
    weights.file.close()
    return paths
