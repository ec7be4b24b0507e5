"""What is said of calls on a device alone: refusals where no kernel serves, and lengths that nobody judges."""
import harness
import numpy as np
import pytest
from harness import assert_close, attention, gqa

pytestmark = pytest.mark.skipif(not harness.ON_DEVICE, reason="the libraries hold no CUDA kernels")


def draw(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def message(call):
    with pytest.raises(Exception) as error:
        call()
    return str(error.value)


def tensors(dtype):
    rng = np.random.default_rng(1)
    return {name: draw(rng, 1, 2, 5, 16).astype(dtype) for name in "QKV"}


def test_f64_is_refused_and_not_computed_elsewhere():
    inputs = tensors(np.float64)
    assert "Attention 'node': no CUDA kernel for f64; have f32, f16 and bf16" in message(
        lambda: attention(inputs, {}, drop_in="attention"))


@pytest.mark.parametrize("type,name", [(np.int8, "int8"), (np.int64, "int64"), (np.float64, "f64")])
def test_masks_that_no_kernel_reads_are_refused(type, name):
    inputs = tensors(np.float32) | {"attn_mask": np.zeros((5, 5), type)}
    assert (f"Attention 'node': input 'attn_mask' has type {name}; needs bool, f32, f16 or bf16: no kernel of this provider "
            "converts it") in message(lambda: attention(inputs, {}, drop_in="attention"))


@pytest.mark.parametrize("seqlens_k", [[-5, 900], [2**31 - 1, -2**31]])
def test_wild_lengths_write_nothing_outside(seqlens_k):
    """No host reads them: the kernels clamp. A sequence of a sound length beside them keeps its result."""
    rng = np.random.default_rng(2)
    inputs = {"query": draw(rng, 3, 1, 4 * 16), "key": draw(rng, 3, 1, 2 * 16), "value": draw(rng, 3, 1, 2 * 16),
              "past_key": draw(rng, 3, 2, 9, 16), "past_value": draw(rng, 3, 2, 9, 16),
              "total_sequence_length": np.array([9], np.int32)}
    attributes = {"num_heads": 4, "kv_num_heads": 2}
    def run(lengths):
        return gqa(inputs | {"seqlens_k": np.array(lengths, np.int32)}, attributes, drop_in="gqa")
    assert_close(run([*seqlens_k, 6])["output"][2], run([3, 4, 6])["output"][2], np.float32)


def test_a_cache_of_the_latest_rows_is_refused():
    rng = np.random.default_rng(3)
    inputs = {"query": draw(rng, 1, 1, 4 * 16), "key": draw(rng, 1, 1, 2 * 16), "value": draw(rng, 1, 1, 2 * 16),
              "past_key": draw(rng, 1, 2, 7, 16), "past_value": draw(rng, 1, 2, 7, 16),
              "seqlens_k": np.array([3], np.int32), "total_sequence_length": np.array([4], np.int32)}
    attributes = {"num_heads": 4, "kv_num_heads": 2, "local_window_size": 4, "window_cache_rows": 7}
    assert ("GroupQueryAttention 'node': attribute 'window_cache_rows' is 7; needs 0: only the CPU's kernels have such a cache"
            in message(lambda: gqa(inputs, attributes, domain="kvshare")))
