"""Writes docs/errors.md, every failure message in src/ and what to do about it: errors_doc.py [--check]

A message is what `Status::InvalidInput`, `Refused` or `Internal` is given, directly or through a helper of the same
file that puts the place in front of it. The remedy is the message's own part after the first "; "; where a message has
none, a comment `// Remedy: ...` right above it, else what its kind always means. --check fails when the page is stale.
"""
import pathlib
import re
import sys
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/errors.md"
KINDS = {
    "InvalidInput": "Correct what the message names.",
    "Refused": "Well formed, but kvshare or this ONNX Runtime does not serve it.",
    "Internal": "No fault of the input: the machine's (disk, memory) or kvshare's; please report it.",
}
# In the order in which a reader meets them; a file that is not listed comes last.
AREAS = [
    ("src/core", "Attention: shapes, types, lengths"),
    ("src/attention", "Attention: kernels"),
    ("src/oracle", "Attention: oracle"),
    ("src/ort", "Op library in ONNX Runtime"),
    ("src/graph/rules", "Rewriting: why a layer is left alone"),
    ("src/graph", "Reading and writing models"),
    ("src/host", "Running models: verify, doctor"),
    ("src/cli", "Command line"),
]
HEAD = """# Errors

Generated from the source by `scripts/errors_doc.py` (`make docs`); a test fails when this page is stale. `…` stands for
a value. Messages about an op open with `<op> '<node>':` and read *input, what came; what is needed*.

| kind | in ONNX Runtime | exit code of `kvshare` |
|---|---|---|
| invalid input | `INVALID_ARGUMENT` | 2 |
| refused | `NOT_IMPLEMENTED` | 3 |
| internal | `FAIL` | 5 |
"""
TOKEN = re.compile(
    r'(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<string>"(?:[^"\\\n]|\\.)*")|(?P<char>\'(?:[^\'\\\n]|\\.)*\')'
    r'|(?P<name>[A-Za-z_][\w]*(?:::[A-Za-z_~]\w*)*)|(?P<number>\d[\w\'.]*)|(?P<other>\S)', re.DOTALL)


@dataclass
class Token:
    kind: str
    text: str
    line: int


@dataclass
class Message:
    kind: str
    text: str
    remedy: str


def tokens_of(source):
    out, line, last = [], 1, 0
    for match in TOKEN.finditer(source):
        line += source.count("\n", last, match.start())
        last = match.start()
        out.append(Token(match.lastgroup, match.group(), line))
    return out


def arguments(tokens, opening):
    """The tokens between the bracket at `opening` and its partner, and the partner's index."""
    depth = 0
    for end in range(opening, len(tokens)):
        if tokens[end].text in "([{":
            depth += 1
        elif tokens[end].text in ")]}":
            depth -= 1
            if depth == 0:
                return tokens[opening + 1:end], end
    return tokens[opening + 1:], len(tokens)


def literal(tokens):
    """The first run of adjacent string literals, unescaped."""
    run = []
    for token in tokens:
        if token.kind == "string":
            run.append(token.text[1:-1])
        elif run and token.kind != "comment":
            break
    return "".join(run).replace('\\"', '"').replace("\\n", " ").replace("\\\\", "\\") if run else None


def kind_of(name):
    head, _, tail = name.rpartition("::")
    return tail if head.endswith("Status") and tail in KINDS else None


def helpers_of(tokens):
    """{name: (kind, template)}: functions of a file that pass a literal or a text on to a Status, e.g. Bad(where, fact)."""
    found, i = {}, 0
    while i + 2 < len(tokens):
        if tokens[i].text in ("Status", "kvshare::Status") and tokens[i + 1].kind == "name" and tokens[i + 2].text == "(":
            parameters, end = arguments(tokens, i + 2)
            texts = {t.text for t in parameters}
            takes_text = texts & {"std::string", "std::string_view", "fmt::format_string", "char"}
            if takes_text and end + 1 < len(tokens) and tokens[end + 1].text == "{":
                body, _ = arguments(tokens, end + 1)
                names = [(j, kind_of(t.text)) for j, t in enumerate(body) if t.kind == "name" and kind_of(t.text)]
                if len(names) == 1 and len(body) < 60:
                    inner, _ = arguments(body, names[0][0] + 1)
                    found[tokens[i + 1].text] = (names[0][1], literal(inner) or "{}", i, end + 1 + len(body))
        i += 1
    return found


def remedy_of(text, kind, tokens, index):
    _, separator, tail = text.partition("; ")
    if separator:
        return tail[0].upper() + tail[1:] + "."
    for token in reversed(tokens[max(0, index - 12):index]):
        if token.kind == "comment" and token.text.startswith("// Remedy: ") and tokens[index].line - token.line <= 2:
            return token.text.removeprefix("// Remedy: ")
    return KINDS[kind]


def messages_of(source):
    tokens = tokens_of(source)
    helpers = helpers_of(tokens)
    bodies = [(begin, end) for _, _, begin, end in helpers.values()]
    out = []
    for i, token in enumerate(tokens[:-1]):
        if token.kind != "name" or tokens[i + 1].text != "(" or any(b <= i <= e for b, e in bodies):
            continue
        kind, template = kind_of(token.text), "{}"
        if kind is None and token.text in helpers:
            kind, template = helpers[token.text][:2]
        if kind is None:
            continue
        text = literal(arguments(tokens, i + 1)[0])
        if text is None or not re.search("[a-z]{2}", text):
            continue
        head, _, tail = template.rpartition("{}")
        text = head + text + tail
        out.append(Message(kind, text, remedy_of(text, kind, tokens, i)))
    return out


def shown(text):
    text = re.sub(r"\{[^{}]*\}", "…", text.replace("{{", "\0").replace("}}", "\1"))
    return text.replace("\0", "{").replace("\1", "}").replace("|", "\\|")


def page():
    sections = {title: [] for _, title in AREAS}
    for path in sorted((ROOT / "src").rglob("*.cc")):
        relative = path.relative_to(ROOT).as_posix()
        title = next(t for prefix, t in AREAS if relative.startswith(prefix + "/"))
        messages = messages_of(path.read_text())
        if messages:
            sections[title].append((relative, messages))
    lines = [HEAD]
    for title, files in sections.items():
        if not files:
            continue
        lines.append(f"## {title}\n")
        for relative, messages in files:
            lines.append(f"`{relative}`\n\n| message | kind | remedy |\n|---|---|---|")
            for text, kind, remedy in dict.fromkeys((m.text, m.kind, m.remedy) for m in messages):
                words = re.sub("([A-Z])", r" \1", kind).strip().lower()
                lines.append(f"| `{shown(text)}` | {words} | {shown(remedy)} |")
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def main():
    text = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.exists() or PAGE.read_text() != text:
            print("docs/errors.md is stale: run scripts/errors_doc.py (make docs)")
            return 1
        return 0
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
