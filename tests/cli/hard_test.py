"""verify --hard: prompts that are harder than random ones."""
import json

import onnx
import pytest

from conftest import BAD_INPUT, DIFFERS, EQUAL

STEPS = ["extremes prefill", "long prefill", "chunks prefill", "ragged prefill"]


def hard(kvshare, model, other, *options):
    done = kvshare("verify", model, "--against", other, "--hard", "--steps", "3", "--json", *options)
    assert done.returncode in (EQUAL, DIFFERS), done.stdout + done.stderr
    answer = json.loads(done.stdout)
    return done.returncode, {step["step"]: step["difference"] for step in answer["steps"]}, answer["notes"]


@pytest.mark.parametrize("name,target", [("mixed_bias_causal0", "kvshare"), ("mixed_bias_causal0", "ort"), ("torch_gemma4", "kvshare"),
                                         ("default_attention", "kvshare"), ("default_attention", "kvshare-attention"),
                                         ("torch_mistral", "kvshare-attention"), ("torch_gemma3", "onnx25")])
def test_a_rewritten_model_answers_what_the_original_does(kvshare, case, tmp_path, name, target):
    """Where a rewrite places new tokens of a padded sequence elsewhere, each sequence alone is the truth."""
    out = tmp_path / "model.onnx"
    assert kvshare("rewrite", case.model(name), "-o", out, "--to", target).returncode == EQUAL
    code, steps, notes = hard(kvshare, out, case.model(name))
    assert code == EQUAL and not notes, (steps, notes)
    assert [step for step in steps if step.endswith(" prefill")] == STEPS
    assert "chunks step 6" in steps and "long step 3" in steps and "ragged step 3" in steps


def test_of_a_padded_prompt_only_each_sequences_last_logits_are_compared(kvshare, case, tmp_path):
    """With --fast-prefill the rewritten model answers for no other token; each sequence alone is the truth."""
    out = tmp_path / "model.onnx"
    assert kvshare("rewrite", case.model("torch_gemma4"), "-o", out, "--to", "kvshare", "--fast-prefill").returncode == EQUAL
    code, steps, _ = hard(kvshare, out, case.model("torch_gemma4"))
    assert code == EQUAL and "ragged prefill" in steps, steps


def test_a_window_one_key_too_wide_shows_in_a_long_prompt(kvshare, case, tmp_path):
    """24 random tokens may hide it; more than two windows do not."""
    out = tmp_path / "model.onnx"
    assert kvshare("rewrite", case.model("mixed_bias_causal0"), "-o", out, "--to", "kvshare").returncode == EQUAL
    model = onnx.load(out)
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "local_window_size":
                attribute.i += 1
    onnx.save(model, out)
    code, steps, _ = hard(kvshare, out, case.model("mixed_bias_causal0"), "--prompt", "6")
    assert code == DIFFERS
    assert steps["prefill"] < 1e-4 < steps["long prefill"]


def test_what_the_original_does_not_take_is_told(kvshare, case, tmp_path):
    """Its empty key is a constant of one sequence; the rewritten model takes two."""
    out = tmp_path / "model.onnx"
    assert kvshare("rewrite", case.model("webgpu_constant_empty"), "-o", out, "--to", "kvshare").returncode == EQUAL
    code, steps, notes = hard(kvshare, out, case.model("webgpu_constant_empty"))
    assert code == EQUAL and "ragged prefill" not in steps
    assert any(note.startswith("ragged: not compared, as the other model does not take it") for note in notes)


def test_it_is_for_two_models(kvshare, case):
    done = kvshare("verify", case.model("head_shared_gqa"), "--golden", case.folder("head_shared_gqa"), "--hard")
    assert done.returncode == BAD_INPUT and "is for two models; needs" in done.stderr
