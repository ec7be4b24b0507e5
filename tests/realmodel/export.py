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

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "support"))
from torch_export import export  # noqa: E402


def by_torch(source, folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="sdpa").eval()
    with torch.no_grad():
        export(model, folder / "model.onnx", 24, external_data=True)


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
