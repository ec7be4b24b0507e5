"""Exports a folder of models.py by a real exporter: export.py FOLDER NAME FORM; writes FOLDER/NAME/FORM/model.onnx

torch   torch.onnx.export (dynamo) at opset 24: ai.onnx Attention or its parts, a growing cache, a mask tensor
genai   onnxruntime-genai's builder, cpu, fp32: GroupQueryAttention
mobius  mobius-onnx, cpu, f32: GroupQueryAttention with windows
"""
import pathlib
import subprocess
import sys

import torch
import transformers


class WithPlainCache(torch.nn.Module):
    """The decoder with past and present as tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, past):
        cache = transformers.DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        out = self.model(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache,
                         use_cache=True)
        return out.logits, *(tensor for layer in out.past_key_values.layers for tensor in (layer.keys, layer.values))


def by_torch(source, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa").eval()
    config, batch, new, past = model.config, 2, 5, 7
    caches = [torch.randn(batch, config.num_key_value_heads, past, config.head_dim) for _ in range(2 * config.num_hidden_layers)]
    arguments = (torch.randint(3, 1000, (batch, new)), torch.ones(batch, past + new, dtype=torch.int64),
                 torch.arange(past, past + new)[None].repeat(batch, 1), caches)
    shapes = ({0: "batch", 1: "seq"}, {0: "batch", 1: "total"}, {0: "batch", 1: "seq"}, [{0: "batch", 2: "past"}] * len(caches))
    names = [f"{i // 2}.{'value' if i % 2 else 'key'}" for i in range(len(caches))]
    torch.onnx.export(WithPlainCache(model), arguments, folder / "model.onnx", dynamo=True, opset_version=24,
                      dynamic_shapes=shapes, external_data=True, optimize=True, verbose=False,
                      input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{n}" for n in names)],
                      output_names=["logits", *(f"present.{n}" for n in names)])


def by_genai(source, folder):
    subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", folder, "-p", "fp32", "-e", "cpu",
                    "-c", folder.parent / "builder-cache", "--extra_options", "hf_token=false"], check=True)


def by_mobius(source, folder):
    import mobius
    mobius.build(str(source), execution_provider="cpu", dtype="f32", load_weights=True).save(folder, progress_bar=False)


FORMS = {"torch": by_torch, "genai": by_genai, "mobius": by_mobius}


def main():
    root, name, form = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    folder = root / name / form
    if not (folder / "exported").exists():  # an export that was cut short is made anew
        folder.mkdir(parents=True, exist_ok=True)
        FORMS[form](root / name / "hf", folder)
        (folder / "exported").touch()
    print(f"{name} {form}: {folder / 'model.onnx'}")


if __name__ == "__main__":
    main()
