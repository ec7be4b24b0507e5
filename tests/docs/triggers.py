"""Every message of docs/errors.md has a test that triggers it: triggers.py [--list]

A test shows a message by a string it expects: a literal of tests/**/*_test.cc, *.h or *.py that reads as (part of) the
message with its values filled in. Each literal speaks for the message of which it repeats most, and only if it repeats
enough to mean no other. --list prints which literal speaks for which message.
"""
import ast
import collections
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import errors_doc  # noqa: E402

# Fixed characters that are enough, or the share of them; a value that a literal may begin within; the index's grain.
ENOUGH, SHARE, VALUE, GRAM = 20, 0.6, 32, 8
# What no test can bring about, and why.
UNTESTED = {
    "the rewritten model exceeds protobuf's 2 GiB": "takes gigabytes of memory and minutes",
    "the model has more than 2 GB of weights in its file; needs them in another file": "takes gigabytes of memory",
    "rule … broke the model: …": "no rule does; it would be a fault of ours",
    "cannot set the permissions of '…': …": "needs a disk that fails",
    "kvshare: no room for an execution provider's factory": "ONNX Runtime gives room for one",
    "a cache that … takes has shape …; needs rank …": "ONNX's own checks of an alias's node fix the rank of its input",
    "'…' was planned to be made by the execution provider, and is not": "ONNX Runtime gives what it was asked for",
    "a mask group reads a mask of …": "claims are made for int64, int32 and bool",
    "a mask group has an output '…' that is no mask": "ONNX Runtime compiles what was claimed",
    "a mask group has no input '…'": "ONNX Runtime compiles what was claimed",
    "… '…': no such op": "ONNX Runtime asks only for what was claimed",
    "cannot rename to '…': …": "needs a disk that fails",
    "cannot make '…': …": "needs a disk that fails",
    "cannot put '…' back: …": "needs a disk that fails",
    "out of memory": "needs a machine without memory",
    "the library could not write its counters: out of memory": "needs a machine without memory",
    "'…' is ONNX Runtime …; needs 1.… or later": "no release so old is fetched",
    "ONNX Runtime … takes no execution providers from libraries; option 'via' = 'ep' needs 1.… or later": "no release so old is fetched",
    "<op> '<node>': no kernel for a cache of …; have f32, f16, bf16, int8, uint8 (two int4), float8e4m3fn":
        "every cache type that is registered has kernels",
    "… '…': no kernel for these types": "one of the inputs is always named before",
}


def messages():
    """{text: file}: as docs/errors.md has them."""
    found = {}
    for relative, _, message in errors_doc.all_messages():
        found.setdefault(message.text, relative)
    return found


def literals():
    """{text: a test file that has it}."""
    found = {}
    for path in sorted((ROOT / "tests").rglob("*")):
        if path.suffix in (".cc", ".h"):
            tokens = [t for t in errors_doc.tokens_of(path.read_text()) if t.kind != "comment"]
            run = ""
            for token in [*tokens, errors_doc.Token("other", ";", 0)]:
                if token.kind == "string":
                    run += token.text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
                elif run:
                    found.setdefault(run, path)
                    run = ""
        elif path.suffix == ".py" and path != pathlib.Path(__file__).resolve():
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.setdefault(node.value, path)
                elif isinstance(node, ast.JoinedStr):  # values of an f-string: any text
                    found.setdefault("".join(p.value if isinstance(p, ast.Constant) else "\0" for p in node.values), path)
    return found


def fragments(message):
    return re.split("…", message.replace(errors_doc.PLACE, "…"))


def repeated(literal, parts):
    """The most fixed characters of the message that `literal` repeats, read as a stretch of it; 0 if it is none."""
    # States: (part, characters of it read so far); a part read to its end is the gap behind it, which takes anything. A
    # literal that begins within a gap begins there as (part, None).
    reached = {(i, at): 0 for i, part in enumerate(parts) for at in range(len(part))}
    reached |= {(i, None): 0 for i in range(len(parts))}
    for n, char in enumerate(literal):
        after = {}
        for (i, at), score in reached.items():
            moves = []
            if at is None and n >= VALUE:
                continue
            if at is not None and at < len(parts[i]):
                if parts[i][at] == char:
                    moves.append(((i, at + 1), score + 1))
                elif char == "\0":  # an f-string's value stands for fixed text too, and earns nothing
                    moves += [((i, j), score) for j in range(at, len(parts[i]) + 1)]
            elif i + 1 < len(parts):
                moves.append(((i, at), score))
                if parts[i + 1][:1] == char:
                    moves.append(((i + 1, 1), score + 1))
                elif not parts[i + 1]:
                    moves.append(((i + 1, 0), score))
            for state, value in moves:
                if after.get(state, -1) < value:
                    after[state] = value
        reached = after
        if not reached:
            return 0
    return max(reached.values())


def grams(text):
    return {text[i:i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}


def main():
    known = {text: fragments(text) for text in messages()}
    by_gram = collections.defaultdict(set)
    for text, parts in known.items():
        for part in parts:
            for gram in grams(part):
                by_gram[gram].add(text)
    short = {text: max(parts, key=len) for text, parts in known.items() if max(map(len, parts)) < GRAM}
    speaks = {}
    for literal, path in literals().items():
        scores = {}
        near = {text for text, part in short.items() if part in literal}
        for text in near.union(*(by_gram.get(gram, ()) for gram in grams(literal))):
            parts = known[text]
            score = max(repeated(literal[begin:], parts) for begin in {0, max(0, literal.find(parts[0]))})  # a report names a node first
            if score >= min(ENOUGH, SHARE * sum(map(len, parts))):
                scores[text] = score
        for text in scores:
            if scores[text] == max(scores.values()):
                speaks.setdefault(text, (literal, path))
    silent = [text for text in known if text not in speaks and text not in UNTESTED]
    if "--list" in sys.argv:
        for text, (literal, path) in speaks.items():
            print(f"{text}\n    {path.relative_to(ROOT)}: {literal!r}")
    for text in silent:
        print(f"{messages()[text]}: no test triggers: {text}")
    stale = [text for text in UNTESTED if text not in known or text in speaks]
    for text in stale:
        print(f"UNTESTED has '{text}', which {'a test triggers' if text in known else 'nothing says'}")
    return 1 if silent or stale else 0


if __name__ == "__main__":
    sys.exit(main())
