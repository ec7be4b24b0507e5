"""A decoder with its cache in ONNX Runtime, step by step, and its comparison with golden logits."""
from __future__ import annotations

from typing import Any, Iterator, Mapping, Sequence

import numpy as np
import onnxruntime as ort

Array = np.ndarray[Any, Any]

ELEMENT = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}


class Decoder:
    """`capacity`: rows of a cache that stays where it is, as onnxruntime-genai binds it; 0: each step returns a longer one.

    `head_size`: of a model whose inputs do not tell theirs."""

    def __init__(self, session: ort.InferenceSession, batch: int = 1, capacity: int = 0, head_size: int | None = None) -> None:
        self.session, self.in_place = session, capacity > 0
        self.inputs = {i.name: i for i in session.get_inputs()}
        self.outputs = [o.name for o in session.get_outputs()]
        self.past: dict[str, Any] = {
            name: np.zeros((batch, i.shape[1], capacity, head_size or i.shape[3]), ELEMENT[i.type])
            for name, i in self.inputs.items() if name.startswith("past_key_values")}
        if self.in_place:
            self.past = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in self.past.items()}

    def step(self, ids: Array, mask: Array, positions: Array) -> Array:
        """The logits [B, S or 1, vocabulary] of ids [B, S]; mask [B, T] has a column for each token of the cache too."""
        feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feeds = {name: np.ascontiguousarray(array) for name, array in feeds.items() if name in self.inputs}
        if self.in_place:
            return self._step_in_place(feeds)
        results = dict(zip(self.outputs, self.session.run(None, {**feeds, **self.past})))
        self.past = {name: results[name.replace("past_key_values", "present")] for name in self.past}
        return np.asarray(results["logits"], np.float32)

    def _step_in_place(self, feeds: dict[str, Array]) -> Array:
        binding = self.session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        binding.bind_output("logits", "cpu")  # first: outputs come in the order in which they are bound
        for name, value in self.past.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
        self.session.run_with_iobinding(binding)
        return np.asarray(binding.get_outputs()[0].numpy(), np.float32)


def greedy(decoder: Decoder, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """The ids that follow `prompt`, one sequence: each the one with the largest logit."""
    ids, tokens = np.array([prompt], np.int64), list(prompt)
    for _ in range(new_tokens):
        positions = np.arange(len(tokens) - ids.shape[1], len(tokens))[None]
        logits = decoder.step(ids, np.ones((1, len(tokens)), np.int64), positions)
        tokens.append(int(logits[0, -1].argmax()))
        ids = np.array([[tokens[-1]]], np.int64)
    return tokens[len(prompt):]


def golden_steps(decoder: Decoder, golden: Mapping[str, Array]) -> Iterator[tuple[Array, Array]]:
    """(logits, golden logits) of a case's prompt, where it is no padding, and of each decode step."""
    valid = np.arange(golden["input_ids"].shape[1])[None, :] < golden["lens"][:, None]
    logits = decoder.step(golden["input_ids"], golden["attention_mask"], golden["position_ids"])
    if logits.shape[1] == 1 < valid.shape[1]:  # of a model that computes each sequence's last token alone
        yield logits[:, 0], golden["prefill_logits"][np.arange(len(valid)), golden["lens"] - 1]
    else:
        yield logits[valid], golden["prefill_logits"][valid]
    for t, ids in enumerate(golden["decode_input_ids"]):
        logits = decoder.step(ids[:, None], golden[f"decode_attention_mask_{t}"], golden["decode_position_ids"][t][:, None])
        yield logits[:, 0], golden["decode_logits"][t]
