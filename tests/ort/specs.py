"""One call of a drop-in op, drawn from choices, with what it must give in float64. Reads neither op's code."""
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

import harness
from harness import folded, rope

BF16 = np.dtype(ml_dtypes.bfloat16)
SPREAD = {np.dtype(np.float64): 1e-12, np.dtype(np.float32): 2e-5, np.dtype(np.float16): 4e-3, BF16: 3e-2,
          np.dtype(np.int8): harness.CODES, np.dtype(np.uint8): harness.CODES}


@dataclass
class Spec:
    op: str
    inputs: dict
    attributes: dict
    outputs: tuple
    want: dict = field(default_factory=dict)  # output -> float64; NaN where nothing is promised
    opset: int = 24
    domain: str = "com.microsoft"
    types: dict = field(default_factory=dict)  # of presents that the caller cannot infer from past
    sharpness: float = 1.0  # times the usual scale, 1 / sqrt(D), if above 1: what rounded queries are off by grows with it

    def model(self):
        gqa = self.op == "GroupQueryAttention"
        return harness.model(self.op, self.domain, harness.GQA_INPUTS if gqa else harness.ATTENTION_INPUTS[:7],
                             harness.GQA_OUTPUTS if gqa else harness.ATTENTION_OUTPUTS, self.inputs, self.outputs,
                             self.attributes, opset=self.opset, output_types=self.types)

    def fault(self, got, least=0.0):
        """What is wrong with these outputs, or None. The tolerance is the coarsest type's that a number passes, or `least`."""
        types = {a.dtype for a in self.inputs.values()} & SPREAD.keys()
        tolerance = max([least, *(SPREAD[t] * (self.sharpness if t.kind in "iu" else 1) for t in types)])
        for name, want in self.want.items():
            a = np.asarray(got[name], np.float64)
            if a.shape != want.shape:
                return f"{name} has shape {a.shape}, not {want.shape}"
            told = ~np.isnan(want)
            a, b = a[told], want[told]
            if not (np.isneginf(a) == np.isneginf(b)).all():
                return f"{name} has -inf in other places"
            a, b = a[~np.isneginf(b)], b[~np.isneginf(b)]
            if not np.isfinite(a).all():
                return f"{name} is not finite"
            # 1 of head room: sums of terms of that size are rounded, whatever is left of them
            worst = np.abs(a - b).max(initial=0) / max(1.0, np.abs(b).max(initial=0))
            if worst > tolerance:
                return f"{name} is off by {worst:.1e}"
        return None


def softmax(x, sink=None):
    """Over the last axis, -inf hides; sink [Hq] is one more score without a value."""
    top = x.max(-1, keepdims=True, initial=-np.inf)
    if sink is not None:
        top = np.maximum(top, sink[:, None, None])
    top = np.where(np.isneginf(top), 0, top)
    p = np.exp(x - top)
    total = p.sum(-1, keepdims=True) + (0 if sink is None else np.exp(sink[:, None, None] - top))
    return p / np.where(total == 0, 1, total)


def weigh(p, v):
    """p [B, Hq, S, T] over v [B, Hkv, T, Dv]; what has no weight is not looked at."""
    v = np.asarray(v, np.float64).repeat(p.shape[1] // v.shape[1], 1)
    return np.einsum("bhst,bhtd->bhsd", p, np.where(np.isfinite(v), v, 0))


def dots(q, k, scale):
    k = np.asarray(k, np.float64).repeat(q.shape[1] // k.shape[1], 1)
    return np.einsum("bhsd,bhtd->bhst", np.asarray(q, np.float64), k) * scale


def cap(x, softcap):
    return softcap * np.tanh(x / softcap) if softcap else x


def rms(x, weight, epsilon=1e-6):
    x = np.asarray(x, np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight.astype(np.float64)


def resident(T, C, W):
    """Rows of a window-sized cache after T tokens, by ORT's contract."""
    freed = C - W + 1
    return int(T if T <= C else T - freed * -(-(T - C) // freed))


class Plain:
    """A cache of floats."""
    inputs, attributes = {}, {}

    def __init__(self, dtype):
        self.dtype = dtype

    def store(self, x):
        return np.asarray(x).astype(self.dtype)

    def meaning(self, stored):
        return stored.astype(np.float64)


class Codec:
    """A quantized cache: numbers to what is stored of them, and back."""

    def __init__(self, rng, kind, per_channel, Hkv, D):
        self.kind, self.D = kind, D
        scale = (rng.uniform(0.5, 1, Hkv * D if per_channel else 1) * {"int8": 0.03, "int4": 0.5, "fp8": 1}[kind]).astype(np.float32)
        self.scale = scale.astype(np.float64).reshape((1, Hkv, 1, D) if per_channel else 1)
        self.inputs = {"k_scale": scale, "v_scale": scale}
        name = "PER_CHANNEL" if per_channel else "PER_TENSOR"
        self.attributes = {"k_quant_type": name, "v_quant_type": name, "kv_cache_bit_width": 4 if kind == "int4" else 8}

    def store(self, x):
        x = np.asarray(x, np.float64) / self.scale
        if self.kind == "fp8":
            return x.astype(ml_dtypes.float8_e4m3fn)
        limit = 128 if self.kind == "int8" else 8
        codes = np.clip(np.rint(x), -limit, limit - 1).astype(np.int64)
        if self.kind == "int8":
            return codes.astype(np.int8)
        codes = np.concatenate([codes, np.full_like(codes[..., :self.D % 2], -8)], -1) + 8
        return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)

    def meaning(self, stored):
        if self.kind == "int4":
            both = np.stack([stored & 15, stored >> 4], -1).reshape(*stored.shape[:-1], 2 * stored.shape[-1])
            stored = both[..., :self.D].astype(np.int64) - 8
        return stored.astype(np.float64) * self.scale


@dataclass
class GqaChoices:
    """What a call of GroupQueryAttention is like."""
    form: str = "own"  # own, packed, shared (key and value of length 0) or external (borrowed)
    lens: list = (9,)  # tokens of each sequence, after the step
    S: int = 1
    past: int = None  # rows of past, or of the borrowed cache; None: as few as do
    past_given: bool = True
    total: int = None  # total_sequence_length; None: that of the longest sequence
    Hq: int = 4
    Hkv: int = 2
    D: int = 32
    dtype: type = np.float32
    cache: type = None  # None: dtype
    presents: bool = True
    scale: float = 0.0
    softcap: float = 0.0
    causal: int = 1
    window: int = -1
    bias: tuple = None  # whether (per batch, per head)
    hide: float = 0.0  # the share of -inf in bias
    sink: bool = False
    smooth: int = 0
    rotary: tuple = None  # (half, interleaved)
    position_ids: bool = False
    qk_output: int = 0
    counts: list = None  # query_seqlens
    norms: bool = False
    quant: tuple = None  # (int8, int4 or fp8; whether per channel)
    capacity: int = None  # of a window-sized cache (sliding_window_cache)


class GqaCall:
    """A call with those choices, drawn step by step, and what it must give."""

    def __init__(self, rng, choices):
        self.rng, self.choices = rng, choices
        c = choices
        self.dtype = np.dtype(c.dtype)
        self.codec = Codec(rng, *c.quant, c.Hkv, c.D) if c.quant else Plain(np.dtype(c.cache or c.dtype))
        self.lens = np.array(c.lens, np.int64)
        self.B, self.appends, self.windowed = len(self.lens), c.form in ("own", "packed"), c.capacity is not None
        self.total = int(c.total if c.total is not None else self.lens.max(initial=c.S))
        self.first = c.S == self.total and c.counts is None
        self.count = np.full(self.B, c.S) if c.counts is None else np.array(c.counts)
        self.start = np.zeros(self.B, np.int64) if self.first else self.lens - self.count
        self.rows = self.start[:, None] + np.arange(c.S)  # positions of the queries
        # What the cache holds of each sequence, and how many before the step; all of it unless it is window-sized.
        self.held, self.held_before = ([resident(n, c.capacity, c.window) if self.windowed else n for n in part]
                                       for part in (self.lens, self.start))
        self.past = c.past
        if self.past is None:
            self.past = c.capacity if self.windowed else (0 if self.first else self.total - c.S) if self.appends else self.total
        self.cache_rows = self.past if self.windowed or not self.appends else max(self.total, self.past)
        self.T = int(max(self.total, self.cache_rows, self.lens.max(initial=0)))
        self.inputs, self.attributes = {}, {}

    def draw(self, *shape, dtype=None):
        return self.rng.standard_normal(shape).astype(dtype or self.dtype)

    def give_tensors(self):
        c, codec = self.choices, self.codec
        q, k, v = (self.draw(self.B, heads, c.S, c.D) for heads in (c.Hq, c.Hkv, c.Hkv))
        self.q, self.k, self.v = q, k, v
        self.old_k, self.old_v = (codec.meaning(codec.store(self.draw(self.B, c.Hkv, self.T, c.D, dtype=np.float32)))
                                  for _ in range(2))
        self.inputs = {"query": folded(q), "seqlens_k": self.lens.astype(np.int32) - 1,
                       "total_sequence_length": np.array(self.total, np.int32)}
        if c.form == "packed":
            self.inputs["query"] = np.concatenate([folded(q), folded(k), folded(v)], 2)
        elif c.form != "external":
            self.inputs["key"], self.inputs["value"] = (folded(x if self.appends else x[:, :, :0]) for x in (k, v))
        where = "external" if c.form == "external" else "past" if c.past_given else None
        if where:
            past_k, past_v = self.pasts()
            self.inputs[f"{where}_key"], self.inputs[f"{where}_value"] = codec.store(past_k), codec.store(past_v)
        self.inputs |= codec.inputs

    def pasts(self):
        """The latest of the old tokens; a borrower's past has the step's own too."""
        past_k, past_v = np.zeros((2, self.B, self.choices.Hkv, self.past, self.choices.D))
        for b in range(self.B):
            n, end = (self.held_before[b], self.start[b]) if self.appends else (self.held[b], self.lens[b])
            n = min(n, self.past)
            past_k[b, :, :n], past_v[b, :, :n] = self.old_k[b, :, end - n:end], self.old_v[b, :, end - n:end]
        return past_k, past_v

    def give_attributes(self):
        c = self.choices
        self.attributes = {"num_heads": c.Hq, "kv_num_heads": c.Hkv} | self.codec.attributes
        optional = {"scale": c.scale, "softcap": c.softcap, "smooth_softmax": c.smooth, "qk_output": c.qk_output,
                    "sliding_window_cache": int(self.windowed)}
        self.attributes |= {name: value for name, value in optional.items() if value}
        if c.causal != 1:
            self.attributes["causal"] = c.causal
        if c.window >= 0:
            self.attributes["local_window_size"] = c.window

    def normalize_and_rotate(self):
        c = self.choices
        if c.counts is not None:
            self.inputs["query_seqlens"] = self.count.astype(np.int32)
        if c.norms:
            self.inputs["q_norm_weight"], self.inputs["k_norm_weight"] = self.draw(c.D), self.draw(c.D)
            self.q, self.k = rms(self.q, self.inputs["q_norm_weight"]), rms(self.k, self.inputs["k_norm_weight"])
        if not c.rotary:
            return
        half, interleaved = c.rotary
        ids = self.rows
        if c.position_ids:
            ids = self.rng.integers(0, 40, (self.B, c.S))
            self.inputs["position_ids"] = ids.astype(np.int64)
            if self.first:  # ORT's rule: the first number counts, for all sequences
                ids = (ids.reshape(-1)[0] if self.B else 0) + np.arange(c.S)[None].repeat(self.B, 0)
        tables = harness.tables(self.rng, self.T + 40, half, self.dtype)
        self.inputs["cos_cache"], self.inputs["sin_cache"] = tables
        self.attributes |= {"do_rotary": 1} | ({"rotary_interleaved": 1} if interleaved else {})
        self.q, self.k = rope(self.q, *tables, ids, interleaved), rope(self.k, *tables, ids, interleaved)

    def caches(self):
        """All tokens at their positions, as the cache would hold them; and the present, which has the latest `held`."""
        shape, codec = (self.B, self.choices.Hkv), self.codec
        keys, values, present_k, present_v = (np.zeros((*shape, n, self.choices.D))
                                              for n in (self.T, self.T, self.cache_rows, self.cache_rows))
        for b in range(self.B):
            before, length = self.start[b] if self.appends else self.lens[b], self.lens[b]
            keys[b, :, :before], values[b, :, :before] = self.old_k[b, :, :before], self.old_v[b, :, :before]
            for whole, new in ((keys, self.k), (values, self.v)):
                whole[b, :, before:length] = codec.meaning(codec.store(new[b:b + 1, :, :length - before]))[0]
            for present, whole in ((present_k, keys), (present_v, values)):
                present[b, :, :self.held[b]] = whole[b, :, length - self.held[b]:length]
        return keys, values, present_k, present_v

    def scores(self, keys):
        """[B, Hq, S, T] as the softmax takes them, and which of them a query sees."""
        c = self.choices
        x = cap(dots(self.q, keys, c.scale or 1 / np.sqrt(c.D)), c.softcap)
        if c.bias is not None:
            given = self.draw(self.B if c.bias[0] else 1, c.Hq if c.bias[1] else 1, c.S, self.total)
            given[self.rng.random(given.shape) < c.hide] = -np.inf
            self.inputs["attention_bias"] = given
            x[..., :self.total] += given.astype(np.float64)
        j, p = np.arange(self.T), self.rows[:, None, :, None]
        visible = (j < self.lens[:, None, None, None]) & ((j <= p) | (not c.causal))
        return x, visible & (p - j < c.window) if c.window >= 0 else visible

    def spec(self):
        c = self.choices
        self.give_tensors()
        self.give_attributes()
        self.normalize_and_rotate()
        keys, values, present_k, present_v = self.caches()
        x, visible = self.scores(keys)
        if c.sink:
            self.inputs["head_sink"] = self.draw(c.Hq)
        one_more = self.inputs["head_sink"].astype(np.float64) if c.sink else np.zeros(c.Hq) if c.smooth else None
        weights = softmax(np.where(visible, x, -np.inf), one_more)
        token = (self.rows < self.lens[:, None]) & (np.arange(c.S) < self.count[:, None])  # the others are padding
        spec = Spec("GroupQueryAttention", self.inputs, self.attributes, ("output",), sharpness=max(1.0, c.scale * c.D**0.5))
        spec.want["output"] = np.where(token[..., None], folded(weigh(weights, values)), np.nan)
        if c.presents:
            spec.outputs += ("present_key", "present_value")
            kept = (np.arange(self.cache_rows) < np.array(self.held).reshape(self.B, 1))[:, None, :, None]
            spec.want |= {f"present_{name}": np.where(kept, self.codec.store(present).astype(np.float64), np.nan)
                          for name, present in (("key", present_k), ("value", present_v))}
        if c.qk_output:
            spec.outputs += ("output_qk",)
            shown = np.where(visible, x, 0) if c.qk_output == 1 else weights
            told = token[:, None, :, None] & (np.arange(self.T) < self.lens[:, None, None, None])
            spec.want["output_qk"] = np.where(told, shown, np.nan)[..., :self.total]
        return spec


def gqa(rng, **choices):
    """A call of GroupQueryAttention: GqaChoices."""
    return GqaCall(rng, GqaChoices(**choices)).spec()


def attention(rng, S=3, new=3, past=None, B=2, Hq=4, Hkv=2, D=16, Dv=None, rank=4, kv_rank=None, dtype=np.float32, v_dtype=None,
              mask=None, mask_dtype=bool, short=0, hide=0.3, nonpad=None, causal=0, window=-1, left=-1, right=-1, scale=None,
              softcap=0.0, mode=None, presents=False, opset=24):
    """ai.onnx's Attention. past: rows, or None for no past inputs. mask: None or which of (B, Hq, S) it has extents of, from
    the right on ("" is [T], "S" is [S, T], "1S" is [1, S, T], "BH1" ...), its last extent `short` of T. mode: of qk_matmul_output."""
    dtype, v_dtype, Dv = np.dtype(dtype), np.dtype(v_dtype or dtype), Dv or D
    kv_rank = kv_rank or rank
    T = new + (past or 0)

    def draw(*shape, dtype=dtype):
        return rng.standard_normal(shape).astype(dtype)

    q, k, v = draw(B, Hq, S, D), draw(B, Hkv, new, D), draw(B, Hkv, new, Dv, dtype=v_dtype)
    inputs = {"Q": q if rank == 4 else folded(q), "K": k if kv_rank == 4 else folded(k), "V": v if kv_rank == 4 else folded(v)}
    attributes = {}
    if rank == 3:
        attributes["q_num_heads"] = Hq
    if 3 in (rank, kv_rank):
        attributes |= {"q_num_heads": Hq, "kv_num_heads": Hkv}
    if past is not None:
        inputs["past_key"], inputs["past_value"] = draw(B, Hkv, past, D), draw(B, Hkv, past, Dv, dtype=v_dtype)
        k, v = np.concatenate([inputs["past_key"], k], 2), np.concatenate([inputs["past_value"], v], 2)
    given = {"is_causal": (causal, 0), "local_window_size": (window, -1), "left_window_size": (left, -1),
             "right_window_size": (right, -1), "softcap": (softcap, 0), "qk_matmul_output_mode": (mode, None), "scale": (scale, None)}
    attributes |= {n: a for n, (a, absent) in given.items() if a != absent}

    lens = np.full(B, T)
    if nonpad is not None:
        lens = np.array(nonpad, np.int64)
        inputs["nonpad_kv_seqlen"] = lens
    offset = lens - S if nonpad is not None else np.full(B, past or 0)
    p = (np.arange(S) + offset[:, None])[:, None, :, None]
    j = np.arange(T)
    visible = j < lens[:, None, None, None]
    for on, seen in ((causal, j <= p), (window > 0, p - j < window), (left >= 0, p - j <= left), (right >= 0, j - p <= right)):
        if on:
            visible = visible & seen
    bias = np.zeros(1)
    if mask is not None:
        extents = dict(zip("BHS1", (B, Hq, S, 1)))
        shape = [*(extents[c] for c in mask), T - short]
        keep = rng.random(shape) >= hide
        given = keep if mask_dtype == bool else np.where(keep, rng.standard_normal(shape), -np.inf).astype(mask_dtype)
        inputs["attn_mask"] = given
        bias = np.where(given, 0, -np.inf) if mask_dtype == bool else given.astype(np.float64)
        bias = np.pad(bias, [(0, 0)] * (bias.ndim - 1) + [(0, short)], constant_values=-np.inf)
    raw = dots(q, k, 1 / np.sqrt(D) if scale is None else scale)
    capped = cap(raw, softcap)
    masked = np.where(visible, capped + bias, -np.inf)
    weights = softmax(masked)
    y = weigh(weights, v)
    spec = Spec("Attention", inputs, attributes, ("Y",), {"Y": y if rank == 4 else folded(y)}, opset, "",
                {"present_key": dtype, "present_value": v_dtype})
    if presents:
        spec.outputs += ("present_key", "present_value")
        spec.want |= {"present_key": np.asarray(k, np.float64), "present_value": np.asarray(v, np.float64)}
    if mode is not None:
        spec.outputs += ("qk_matmul_output",)
        spec.want["qk_matmul_output"] = (raw, capped, masked, weights)[mode]
    return spec
