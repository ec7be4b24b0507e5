"""Exports a Hugging Face decoder with its caches as inputs and outputs, by torch.onnx.export."""
import torch
import transformers


class WithPast(torch.nn.Module):
    """The model with its caches as inputs and outputs; all layers keep all keys, as optimum and transformers.js do.

    `cuts`: layers with windows keep the last window - 1 keys, as DynamicCache(config=...) does."""

    def __init__(self, model, cuts=False):
        super().__init__()
        self.model, self.cuts = model, cuts

    def forward(self, input_ids, attention_mask, position_ids, past):
        cache = transformers.DynamicCache(config=self.model.config if self.cuts else None)
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
                         past_key_values=cache, use_cache=True)
        return (out.logits, *caches(cache))


def caches(cache):
    filled = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    return [tensor for layer in filled for tensor in (layer.keys, layer.values)]


def export(model, path, opset, external_data, cuts=False):
    """Inputs input_ids, attention_mask [B, T], position_ids, past_key_values.*; outputs logits, present.*."""
    batch, past, new = 2, 3 if cuts else 7, 5  # a cut cache has fewer rows than the window
    vocabulary = model.config.get_text_config().vocab_size
    names = ["input_ids", "attention_mask", "position_ids"]
    axes = [{0: "batch", 1: "seq"}, {0: "batch", 1: "total"}, {0: "batch", 1: "seq"}]
    # Of each cache, for its shape only.
    cache = model(input_ids=torch.randint(3, vocabulary, (batch, past)), use_cache=True).past_key_values
    filled = caches(cache)
    shapes = [(batch, tensor.shape[1], past, tensor.shape[3]) for tensor in filled]
    rows = ["kept" if cuts and cache.is_sliding[i // 2] else "past" for i in range(len(shapes))]
    pasts = [f"past_key_values.{i // 2}.{('key', 'value')[i % 2]}" for i in range(len(shapes))]
    arguments = (torch.randint(3, vocabulary, (batch, new)), torch.ones(batch, past + new, dtype=torch.int64),
                 torch.arange(past, past + new)[None].repeat(batch, 1), [torch.randn(shape) for shape in shapes])
    torch.onnx.export(WithPast(model, cuts), arguments, str(path), dynamo=True, opset_version=opset, external_data=external_data,
                      dynamic_shapes=(*axes, [{0: "batch", 2: name} for name in rows]), input_names=names + pasts,
                      output_names=["logits"] + [name.replace("past_key_values", "present") for name in pasts],
                      optimize=True, verbose=False)
