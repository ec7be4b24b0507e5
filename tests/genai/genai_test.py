"""onnxruntime-genai runs decoders on the execution provider: logits of each step, and where its attention ran."""
import os
import subprocess
import sys

import numpy as np
import pytest

import folders
import harness

NAME = "KvshareExecutionProvider"
TOLERANCE = 1e-4
MIXED, SHARED = "e2b35_mixed_bias_asis", "e2b35_head_shared_gqa"  # one model, exported in two forms
LAYERS = 35
STEPS = 32  # of the run whose tokens differ

# name: (case, form that `kvshare rewrite` makes of it; None: unchanged)
MODELS = {"mixed": (MIXED, None), "shared": (SHARED, None), "mixed_to_kvshare": (MIXED, "kvshare"),
          "mixed_to_attention": (MIXED, "kvshare-attention"), "shared_to_kvshare": (SHARED, "kvshare")}

@pytest.fixture
def folder(kvshare, tmp_path):
    """Makes the genai folder of a model of MODELS."""

    def make(model, share_buffer=False, edit=None, name="model"):
        case, form = MODELS[model]
        if form is None:
            made = folders.make(tmp_path / name, case, share_buffer=share_buffer)
        else:
            (tmp_path / "rewritten").mkdir()
            kvshare("rewrite", folders.DATA / case / "model.onnx", "-o", tmp_path / "rewritten/model.onnx", "--to", form)
            made = folders.make(tmp_path / name, case, tmp_path / "rewritten/model.onnx", share_buffer)
        if edit:
            edit(made / "model.onnx")
        return made

    return make


@pytest.fixture(scope="session")
def counting_on(tmp_path_factory):
    """(prompt, tokens, logits) of a run of many different tokens: ONNX Runtime's, in the form that it computes right."""
    path = folders.make(tmp_path_factory.mktemp("wanted") / "model", SHARED) / "model.onnx"
    folders.permute_logits(path)
    prompt = np.load(folders.DATA / SHARED / "golden.npz")["input_ids"][0]
    tokens, logits = folders.greedy_run(path, prompt.tolist(), STEPS)
    assert len(set(tokens)) >= 20
    return prompt, tokens, logits


def by_config(genai, kvshare, path, **options):
    kvshare("genai", path, *(part for key, value in options.items() for part in ("--option", f"{key}={value}")))
    return genai.Config(str(path))


def by_append(genai, kvshare, path, **options):
    config = genai.Config(str(path))
    config.append_provider(NAME)
    for key, value in options.items():
        config.set_provider_option(NAME, key, value)
    return config


def generator(genai, config, room=STEPS):
    model = genai.Model(config)
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=41 + room)
    return genai.Generator(model, params)


def golden_differences(genai, config, case):
    """How far the logits of the prompt and of each golden token are from golden."""
    golden = np.load(folders.DATA / case / "golden.npz")
    run = generator(genai, config)
    run.append_tokens(golden["input_ids"].astype(np.int32))
    yield float(np.abs(run.get_output("logits") - golden["prefill_logits"]).max())
    for token, want in zip(golden["decode_input_ids"], golden["decode_logits"], strict=True):
        run.append_tokens(token[:, None].astype(np.int32))
        yield float(np.abs(run.get_logits()[:, 0] - want).max())


def steps(run, wanted):
    """The tokens of a run, and how far the logits that chose them are from `wanted`."""
    found, off = [], []
    for want in wanted:
        off.append(float(np.abs(run.get_logits()[0, -1] - want).max()))
        run.generate_next_token()
        found.append(int(run.get_next_tokens()[0]))
    return found, off


def counters():
    counted = harness.Counters()
    counted.reset()
    return counted


@pytest.mark.parametrize("mode", ["fuse", "nodes"])
@pytest.mark.parametrize("ask", [by_config, by_append])
@pytest.mark.parametrize("name", MODELS)
def test_every_step_has_golden_logits_and_every_layer_ran_here(genai, kvshare, folder, name, ask, mode):
    config, counted = ask(genai, kvshare, folder(name), mode=mode), counters()
    off = list(golden_differences(genai, config, MODELS[name][0]))
    assert (len(off), max(off) <= TOLERANCE) == (9, True), off
    assert counted.read()["ran"] == LAYERS * len(off)


@pytest.mark.parametrize("share_buffer", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_run_of_many_tokens_is_onnxruntimes(genai, kvshare, folder, counting_on, name, share_buffer):
    prompt, tokens, logits = counting_on
    config, counted = by_config(genai, kvshare, folder(name, share_buffer, folders.permute_logits)), counters()
    run = generator(genai, config)
    run.append_tokens(prompt[None].astype(np.int32))
    found, off = steps(run, logits)
    assert (found, max(off) <= TOLERANCE) == (tokens, True), off
    assert counted.read()["ran"] == LAYERS * STEPS


@pytest.mark.parametrize("mode", ["fuse", "nodes"])
@pytest.mark.parametrize("name", MODELS)
def test_a_cache_with_room_to_spare_stays_where_it_is(genai, kvshare, folder, name, mode):
    config, counted = by_config(genai, kvshare, folder(name, share_buffer=True), mode=mode), counters()
    off = list(golden_differences(genai, config, MODELS[name][0]))
    assert max(off) <= TOLERANCE, off
    assert counted.read()["ran"] == LAYERS * len(off)


@pytest.mark.parametrize("slack, room", [(1, 40), (7, 40), (64, 40), (7, 2)], ids=["least", "slack", "as_rewrite_has_it", "a_short_run"])
def test_window_sized_caches_that_layers_borrow(genai, kvshare, folder, tmp_path, slack, room):
    """Windows of 16 tokens: the prompt is longer, the run several windows long. ONNX Runtime has no such cache."""
    path = folder("shared")
    (tmp_path / "windows").mkdir()
    kvshare("rewrite", path / "model.onnx", "-o", tmp_path / "windows/model.onnx", "--to", "kvshare", f"--window-caches={slack}")
    (tmp_path / "windows/model.onnx").replace(path / "model.onnx")
    folders.permute_logits(path / "model.onnx")
    full = folder("shared", name="full")
    folders.permute_logits(full / "model.onnx")
    prompt = np.random.default_rng(5).integers(1, 60, 41)
    config, counted = by_config(genai, kvshare, path), counters()
    run = generator(genai, config, room)
    run.append_tokens(prompt[None].astype(np.int32))
    tokens, logits = folders.greedy_run(full / "model.onnx", prompt.tolist(), room)
    found, off = steps(run, logits)
    assert (found, max(off) <= TOLERANCE) == (tokens, True), off
    chunks = -(-41 // (slack + 1))
    assert counted.read()["ran"] == LAYERS * (chunks + room - 1)


def test_undo_gives_the_model_back_to_onnxruntime(genai, kvshare, folder):
    path = folder("shared")
    by_config(genai, kvshare, path)
    kvshare("genai", path, "--undo")
    counted = counters()
    assert max(golden_differences(genai, genai.Config(str(path)), SHARED)) <= TOLERANCE
    assert counted.read()["ran"] == 0


def test_a_copy_runs_too(genai, kvshare, folder, tmp_path):
    kvshare("genai", folder("mixed"), "-o", tmp_path / "copy")
    assert max(golden_differences(genai, genai.Config(str(tmp_path / "copy")), MIXED)) <= TOLERANCE


def by_a_file_of_another_hand(genai, kvshare, path, mode):
    by_config(genai, kvshare, path, mode="fuse")
    config = path / "genai_config.json"
    config.write_text(config.read_text().replace('"fuse"', f'"{mode}"'))
    return genai.Config(str(path))


@pytest.mark.parametrize("ask", [by_a_file_of_another_hand, by_append])
def test_a_wrong_option_names_the_right_ones(genai, kvshare, folder, ask):
    with pytest.raises(RuntimeError, match="its option mode is 'x'; needs fuse, nodes or off"):
        genai.Model(ask(genai, kvshare, folder("shared"), mode="x"))


def test_a_program_that_registers_nothing_is_told_the_name(kvshare, folder):
    path = folder("shared")
    kvshare("genai", path)
    done = subprocess.run([sys.executable, "-c", "import onnxruntime_genai as g, sys; g.Model(sys.argv[1])", path],
                          capture_output=True, text=True, env={**os.environ})
    assert (done.returncode, "Unknown provider name" in done.stderr) == (1, True), done.stderr
