"""What inspect, rewrite, genai, verify and doctor return. Fields are those of the command line's --json."""
from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

T = TypeVar("T")


def make(kind: type[T], fields: dict[str, Any]) -> T:
    """A dataclass from the fields of JSON that it knows; later versions of the library may have more."""
    known = {field.name for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: value for name, value in fields.items() if name in known})


def number(value: float | None) -> float:
    """JSON has no NaN."""
    return float("nan") if value is None else value


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """One attention layer, in order of execution."""

    index: int
    node: str
    place: str  # "": the main graph; else the body or function that holds it
    domain: str
    form: str  # "GroupQueryAttention" or "Attention"
    kind: str  # "own": it has K and V of its own; "shared": it reads another layer's
    source: int  # the layer whose K and V a shared layer reads; -1: none, or a graph input
    source_key: str
    window: int | None  # keys that a query sees, its own included; -1: all; None: a mask that is not understood
    query_heads: int
    kv_heads: int
    head_size: int  # 0: not known from the graph
    expansion: int = 1  # times that the graph repeats each key-value head before attention reads it
    cache_rows: int = 0  # rows that its cache keeps; 0: one for each token
    row_bytes: int = 0  # of a row of its cache, key and value of one sequence; 0: none of its own, or not known
    written: str = ""  # its form, e.g. "own Attention, caches joined by Concat"
    note: str = ""  # what is odd about it


@dataclasses.dataclass(frozen=True)
class CudaPlacement:
    """Where the CUDA provider of a release of ONNX Runtime would run the nodes: a prediction by its table of kernels."""

    release: str  # "1.29"
    cuda_nodes: int
    cpu_nodes: int
    unknown_nodes: int  # not in the table: copies beside them are not counted
    attention_on_cpu: int  # attention and mask nodes among cpu_nodes
    copies: int  # between GPU and host, that the session would add
    attention_copies: list[str]  # the values, of them, that an attention or mask node makes or reads
    notes: list[str]  # why nodes are not on the GPU


@dataclasses.dataclass(frozen=True)
class EqualCache:
    """A cache that holds at every step what an earlier one does, where both begin alike."""

    past: str  # the graph input
    present: str  # the graph output that hands it on
    of: str  # the earlier cache's input
    bytes: int  # of one sequence of 32,768 tokens; 0: not known


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What attention a model holds."""

    layers: list[AttentionLayer]
    nodes: int
    mask_nodes: int  # nodes that exist to make masks
    borrowed_copies: int  # Transpose and Reshape on K and V of another layer
    named_unused_presents: int  # caches that are copied for nobody
    warnings: list[str]  # one line each, such as the is_causal trap of onnxruntime 1.28 and later
    repeat_nodes: int = 0  # nodes that repeat key-value heads
    producer: str = ""  # which exporter wrote the model
    opsets: dict[str, int] = dataclasses.field(default_factory=dict)  # by domain
    unfused_layers: int = 0  # attention made of MatMul and Softmax, which kvshare does not serve
    equal_caches: list[EqualCache] = dataclasses.field(default_factory=list)  # that the model could do without
    cuda: CudaPlacement | None = None  # where inspect was asked for it

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Inspection:
        layers = [make(AttentionLayer, layer) for layer in fields["layers"]]
        equal = [make(EqualCache, cache) for cache in fields["equal_caches"]]
        cuda = fields.get("cuda")
        placement = make(CudaPlacement, cuda) if cuda else None
        return make(Inspection, {**fields, "layers": layers, "equal_caches": equal, "cuda": placement})


@dataclasses.dataclass(frozen=True)
class RuleOutcome:
    """What one rule did to one node."""

    rule: str
    node: str
    applied: bool
    reason: str = ""  # why the rule left the node alone
    code: str = ""  # the same, for programs


@dataclasses.dataclass(frozen=True)
class RuleSaving:
    """By how much one rule made each count of Inspection smaller; below 0: larger."""

    rule: str
    nodes: int
    mask_nodes: int
    copies: int  # borrowed_copies and repeat_nodes
    presents: int  # named_unused_presents
    cache_bytes: int  # of one sequence of 32,768 tokens


@dataclasses.dataclass(frozen=True)
class RewriteReport:
    """What a rewrite did, or would do."""

    before: Inspection
    after: Inspection
    outcomes: list[RuleOutcome]
    notes: list[str]  # what the reader must know, such as a changed contract for ragged batches
    changed: bool
    savings: list[RuleSaving] = dataclasses.field(default_factory=list)  # of the rules that changed something
    model: Any = None  # onnx.ModelProto, where one was given

    @staticmethod
    def from_json(fields: dict[str, Any], model: Any = None) -> RewriteReport:
        return RewriteReport(
            before=Inspection.from_json(fields["before"]), after=Inspection.from_json(fields["after"]),
            outcomes=[make(RuleOutcome, outcome) for outcome in fields["outcomes"]], notes=list(fields["notes"]),
            changed=fields["changed"], savings=[make(RuleSaving, saving) for saving in fields["savings"]], model=model)


@dataclasses.dataclass(frozen=True)
class GenaiReport:
    """What was done to an onnxruntime-genai folder."""

    config: str  # the configuration; written only if changes has a line
    backup: str  # what it was before; "" where nothing was overwritten
    changes: list[str]  # one line each; empty: nothing had to change
    library: str  # what the program registers: onnxruntime_genai.register_execution_provider_library("kvshare", library)

    @staticmethod
    def from_json(fields: dict[str, Any]) -> GenaiReport:
        return make(GenaiReport, fields)


@dataclasses.dataclass(frozen=True)
class StepDifference:
    """How far the logits of one step are from what they should be. NaN: one of the two is NaN or infinite."""

    step: str  # "prefill", "decode 0", ...
    difference: float  # largest absolute difference
    relative: float  # the largest as a share of its row's largest expected logit

    @staticmethod
    def from_json(fields: dict[str, Any]) -> StepDifference:
        return StepDifference(fields["step"], number(fields["difference"]), number(fields["relative"]))


@dataclasses.dataclass(frozen=True)
class CacheRounding:
    """What became of a cache's rows when they were rounded to codes."""

    present: str
    share: float  # root mean square of the error over that of the values; a mean of channels that have a scale each
    far: int  # codes that are neither next to their value nor the largest there is
    alike: bool  # the model compared with rounds by the same scales: share is not judged


@dataclasses.dataclass(frozen=True)
class CodesCheck:
    """A model with caches of codes beside the same model with caches of floats.

    Once that reads what the codes mean; once it reads the rows unrounded, and is what expected logits are compared with.
    """

    right: bool  # difference and shares are within, and no code is far
    difference: float  # largest |logit - logit of the same codes in fp32| over the latter's largest of that row
    unrounded: StepDifference  # the largest of all steps, from the expected logits; Verification.tolerance judges it
    caches: list[CacheRounding]
    tolerance: float  # of difference
    rounding: float  # of each cache's share

    @staticmethod
    def from_json(fields: dict[str, Any]) -> CodesCheck:
        caches = [CacheRounding(cache["present"], number(cache["share"]), cache["far"], cache["alike"])
                  for cache in fields["caches"]]
        unrounded = StepDifference.from_json({"step": "", **fields["unrounded"]})
        return make(CodesCheck, {**fields, "difference": number(fields["difference"]), "unrounded": unrounded, "caches": caches})


@dataclasses.dataclass(frozen=True)
class Verification:
    """Whether a model's logits are what they should be."""

    equal: bool
    steps: list[StepDifference]
    tolerance: float
    relative: bool  # whether the tolerance is a share of a row's largest logit, as it is for 16-bit models
    precision: str  # the coarsest float type of inputs and logits
    invented: list[str]  # what the model was fed that no rule knows
    onnxruntime: str  # its version
    seed: int | None = None  # of the random tokens
    codes: CodesCheck | None = None  # judged too, where caches hold codes and no tolerance was given
    notes: list[str] = dataclasses.field(default_factory=list)  # what was not compared, and why

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Verification:
        steps = [StepDifference.from_json(step) for step in fields["steps"]]
        codes = None if fields["codes"] is None else CodesCheck.from_json(fields["codes"])
        return make(Verification, {**fields, "steps": steps, "codes": codes})


@dataclasses.dataclass(frozen=True)
class NodeCount:
    """One node that a kvshare library has counted."""

    domain: str
    op: str
    node: str
    kernel: str  # what served its last call
    ran: int  # calls


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Which nodes of a model really ran in kvshare."""

    nodes_here: int  # with at least one call
    nodes: list[NodeCount]
    workload: str  # what was run, in words
    invented: list[str]  # what the model was fed that no rule knows
    version: str  # kvshare's
    simd: str  # the SIMD target of this machine
    library: str  # kvshare's file
    via: str  # how kvshare came in: "ep", "ops" or "dropin"
    entries: dict[str, str]  # the session's
    onnxruntime: str  # its version
    onnxruntime_file: str
    drop_in: str  # the value of session entry kvshare.drop_in that suits the model; "": none of its ops is to be replaced
    warnings: list[str]  # those of Inspection

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Diagnosis:
        return make(Diagnosis, {**fields, "nodes": [make(NodeCount, node) for node in fields["nodes"]]})
