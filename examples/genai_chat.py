#!/usr/bin/env python3
"""Text as it is generated, by onnxruntime-genai with its attention in kvshare, and how many tokens a second.

    genai_chat.py MODEL_DIR [-m "Why is the sky blue?"] [-n 128] [--library build/lib/libkvshare_ort.so | --plain]

MODEL_DIR is a folder with genai_config.json. The folder stays as it is. `make chat` makes one of SmolLM2-135M.
"""
import argparse
import json
import os
import time

import onnxruntime_genai as og

NAME = "KvshareExecutionProvider"


def load(folder, library):
    config = og.Config(folder)
    if library:
        og.register_execution_provider_library("kvshare", os.path.abspath(library))
        config.append_provider(NAME)
    return og.Model(config)


def prompt_of(tokenizer, message):
    """The message in the model's own chat template, or as it is where the model has none."""
    try:
        return tokenizer.apply_chat_template(json.dumps([{"role": "user", "content": message}]), add_generation_prompt=True)
    except RuntimeError:
        return message


def chat(model, message, new_tokens):
    tokenizer = og.Tokenizer(model)
    ids = tokenizer.encode(prompt_of(tokenizer, message))
    params = og.GeneratorParams(model)
    params.set_search_options(max_length=len(ids) + new_tokens, do_sample=False)
    generator, stream = og.Generator(model, params), tokenizer.create_stream()
    start = time.perf_counter()
    generator.append_tokens(ids)
    prompt_seconds, count, start = time.perf_counter() - start, 0, time.perf_counter()
    while not generator.is_done():
        generator.generate_next_token()
        print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
        count += 1
    print(f"\n\nprompt: {len(ids)} tokens in {prompt_seconds:.2f} s; "
          f"then {count} tokens at {count / (time.perf_counter() - start):.1f} tokens/s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("-m", "--message", default="Why is the sky blue?")
    parser.add_argument("-n", "--new-tokens", type=int, default=128)
    parser.add_argument("--library", help="libkvshare_ort.so; by default that of the package kvshare")
    parser.add_argument("--plain", action="store_true", help="ONNX Runtime's own attention")
    given = parser.parse_args()
    library = given.library
    if library is None and not given.plain:
        import kvshare
        library = kvshare.library_path()
    chat(load(given.folder, library if not given.plain else None), given.message, given.new_tokens)


if __name__ == "__main__":
    main()
