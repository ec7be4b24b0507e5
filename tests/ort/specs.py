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


def gqa(rng, form="own", lens=(9,), S=1, past=None, past_given=True, total=None, Hq=4, Hkv=2, D=32, dtype=np.float32, cache=None,
        presents=True, scale=0.0, softcap=0.0, causal=1, window=-1, bias=None, hide=0.0, sink=False, smooth=0, rotary=None,
        position_ids=False, qk_output=0, counts=None, norms=False, quant=None, capacity=None):
    """GroupQueryAttention. form: own, packed, shared (key and value of length 0) or external (borrowed).
    bias: None or (per batch, per head), with a share `hide` of -inf. rotary: None, or (half, interleaved). counts: query_seqlens.
    quant: None, or (int8, int4 or fp8; whether per channel). capacity: of a window-sized cache (sliding_window_cache)."""
    dtype, cache = np.dtype(dtype), np.dtype(cache or dtype)
    codec = Codec(rng, *quant, Hkv, D) if quant else Plain(cache)
    lens = np.array(lens, np.int64)
    B, appends = len(lens), form in ("own", "packed")
    total = int(total if total is not None else lens.max(initial=S))
    first = S == total and counts is None
    count = np.full(B, S) if counts is None else np.array(counts)
    start = np.zeros(B, np.int64) if first else lens - count
    # What the cache holds of each sequence, and how many before the step; all of it unless it is window-sized.
    windowed = capacity is not None
    held, held_before = ([resident(n, capacity, window) if windowed else n for n in part] for part in (lens, start))
    if past is None:
        past = capacity if windowed else (0 if first else total - S) if appends else total
    rows_of_cache = past if windowed or not appends else max(total, past)
    T = int(max(total, rows_of_cache, lens.max(initial=0)))

    def draw(*shape, dtype=dtype):
        return rng.standard_normal(shape).astype(dtype)

    q, k, v = draw(B, Hq, S, D), draw(B, Hkv, S, D), draw(B, Hkv, S, D)
    old_k, old_v = (codec.meaning(codec.store(draw(B, Hkv, T, D, dtype=np.float32))) for _ in range(2))
    past_k, past_v = np.zeros((2, B, Hkv, past, D))
    for b in range(B):  # the latest of the old tokens; a borrower's past has the step's own too
        n, end = (held_before[b], start[b]) if appends else (held[b], lens[b])
        n = min(n, past)
        past_k[b, :, :n], past_v[b, :, :n] = old_k[b, :, end - n:end], old_v[b, :, end - n:end]
    inputs = {"query": folded(q), "seqlens_k": lens.astype(np.int32) - 1, "total_sequence_length": np.array(total, np.int32)}
    if form == "packed":
        inputs["query"] = np.concatenate([folded(q), folded(k), folded(v)], 2)
    elif form != "external":
        inputs["key"], inputs["value"] = (folded(x if appends else x[:, :, :0]) for x in (k, v))
    if form == "external":
        inputs["external_key"], inputs["external_value"] = codec.store(past_k), codec.store(past_v)
    elif past_given:
        inputs["past_key"], inputs["past_value"] = codec.store(past_k), codec.store(past_v)
    attributes = {"num_heads": Hq, "kv_num_heads": Hkv} | codec.attributes
    inputs |= codec.inputs
    if windowed:
        attributes["sliding_window_cache"] = 1
    if counts is not None:
        inputs["query_seqlens"] = count.astype(np.int32)
    if norms:
        inputs["q_norm_weight"], inputs["k_norm_weight"] = draw(D), draw(D)
        q, k = rms(q, inputs["q_norm_weight"]), rms(k, inputs["k_norm_weight"])
    given = {"scale": scale, "softcap": softcap, "smooth_softmax": smooth, "qk_output": qk_output}
    attributes |= {n: a for n, a in given.items() if a}
    if causal != 1:
        attributes["causal"] = causal
    if window >= 0:
        attributes["local_window_size"] = window

    rows = start[:, None] + np.arange(S)  # positions of the queries
    if rotary:
        half, interleaved = rotary
        ids = rows
        if position_ids:
            ids = rng.integers(0, 40, (B, S))
            inputs["position_ids"] = ids.astype(np.int64)
            if first:  # ORT's rule: the first number counts, for all sequences
                ids = (ids.reshape(-1)[0] if B else 0) + np.arange(S)[None].repeat(B, 0)
        tables = harness.tables(rng, 128, half, dtype)
        inputs["cos_cache"], inputs["sin_cache"] = tables
        attributes |= {"do_rotary": 1} | ({"rotary_interleaved": 1} if interleaved else {})
        q, k = rope(q, *tables, ids, interleaved), rope(k, *tables, ids, interleaved)

    # All tokens at their positions, as the cache would hold them; the present has the latest `held`.
    keys, values, present_k, present_v = (np.zeros((B, Hkv, n, D)) for n in (T, T, rows_of_cache, rows_of_cache))
    for b in range(B):
        n = lens[b] - start[b] if appends else 0
        before = start[b] if appends else lens[b]
        keys[b, :, :before], values[b, :, :before] = old_k[b, :, :before], old_v[b, :, :before]
        keys[b, :, before:before + n] = codec.meaning(codec.store(k[b:b + 1, :, :n]))[0]
        values[b, :, before:before + n] = codec.meaning(codec.store(v[b:b + 1, :, :n]))[0]
        present_k[b, :, :held[b]] = keys[b, :, lens[b] - held[b]:lens[b]]
        present_v[b, :, :held[b]] = values[b, :, lens[b] - held[b]:lens[b]]

    x = cap(dots(q, keys, scale or 1 / np.sqrt(D)), softcap)
    if bias is not None:
        given = draw(B if bias[0] else 1, Hq if bias[1] else 1, S, total)
        given[rng.random(given.shape) < hide] = -np.inf
        inputs["attention_bias"] = given
        x[..., :total] += given.astype(np.float64)
    j, p = np.arange(T), rows[:, None, :, None]
    visible = (j < lens[:, None, None, None]) & ((j <= p) | (not causal))
    if window >= 0:
        visible = visible & (p - j < window)
    if sink:
        inputs["head_sink"] = draw(Hq)
    one_more = inputs["head_sink"].astype(np.float64) if sink else np.zeros(Hq) if smooth else None
    weights = softmax(np.where(visible, x, -np.inf), one_more)
    token = (rows < lens[:, None]) & (np.arange(S) < count[:, None])  # the others are padding
    spec = Spec("GroupQueryAttention", inputs, attributes, ("output",), sharpness=max(1.0, scale * D**0.5))
    spec.want["output"] = np.where(token[..., None], folded(weigh(weights, values)), np.nan)
    if presents:
        spec.outputs += ("present_key", "present_value")
        kept = (np.arange(rows_of_cache) < np.array(held).reshape(B, 1))[:, None, :, None]
        spec.want |= {f"present_{name}": np.where(kept, codec.store(present).astype(np.float64), np.nan)
                      for name, present in (("key", present_k), ("value", present_v))}
    if qk_output:
        spec.outputs += ("output_qk",)
        shown = np.where(visible, x, 0) if qk_output == 1 else weights
        told = token[:, None, :, None] & (j < lens[:, None, None, None])
        spec.want["output_qk"] = np.where(told, shown, np.nan)[..., :total]
    return spec


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
