"""PyTorch's scaled_dot_product_attention: with a mask, causal where its triangle fits, and on a hand-made slice of the
window."""
import torch
import torch.nn.functional as F

from bench.attention import mask


def version():
    return torch.__version__


def _side(row, data, choose, **arguments):
    """choose: what a call sees of a [1, Hkv, T, D] cache."""
    query = torch.from_numpy(data.query)[None].transpose(1, 2)
    pairs = [(choose(torch.from_numpy(k)), choose(torch.from_numpy(v))) for k, v in data.pairs()]
    result = []

    def call(i):
        key, value = pairs[i]
        result[:] = [F.scaled_dot_product_attention(query, key, value, enable_gqa=row.shape.group > 1, **arguments)]

    return call, lambda: result[0].transpose(1, 2).reshape(row.S, -1).float().numpy()


def sides(row, data):
    torch.set_num_threads(row.threads)
    window = row.shape.window

    def whole(cache):
        return cache

    found = {"torch masked": lambda: _side(row, data, whole, attn_mask=torch.from_numpy(mask(row))[None, None])}
    if not window and row.S in (1, row.T):
        found["torch causal"] = lambda: _side(row, data, whole, is_causal=row.S > 1)
    if window and row.S == 1:
        found["torch slice"] = lambda: _side(row, data, lambda cache: cache[:, :, row.T - window:])
    return found
