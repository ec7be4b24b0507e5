"""Writes docs/errors.md, every failure message in src/ and what to do about it: errors_doc.py [--check]

A message is what `Status::InvalidInput`, `Refused` or `Internal` is given, directly or through a helper of the same
file that puts the place in front of it, and what a graph rule gives `Outcome::Decline`. The remedy is the message's own
part after the first "; ", else what its kind always means. --check fails when the page is stale.
"""
import pathlib
import re
import sys
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/errors.md"
PLACE = "<op> '<node>'"
KINDS = {
    "InvalidInput": "Correct what the message names.",
    "Refused": "",  # see AREAS
    "LeftAlone": "",
    "Internal": "No fault of the input: the machine's (disk, memory) or kvshare's; please report it.",
}
NOT_SERVED = "Well formed, but kvshare or this ONNX Runtime does not serve it."
LEFT_ALONE = "None needed; a sound model that lands here is a form to be learned: report it."
# Path, title, what a refusal without a remedy of its own means there. In the order in which a reader meets them.
AREAS = [
    ("src/core/", "Attention: shapes, types, lengths", NOT_SERVED),
    ("src/attention/", "Attention: kernels", NOT_SERVED),
    ("src/oracle/", "Attention: oracle", NOT_SERVED),
    ("src/ort/", "Op library in ONNX Runtime", "Remove what the message names, or run without kvshare."),
    ("src/graph/rules/", "Rewriting: why a layer is left alone", LEFT_ALONE),
    ("src/graph/masks.cc", "Rewriting: why a mask is not understood", LEFT_ALONE),
    ("src/graph/", "Reading and writing models", "Choose another output."),
    ("src/host/", "Running models: verify, doctor", "Run the model in your own program."),
    ("src/report/", "Reports", NOT_SERVED),
    ("src/cli/", "Command line", NOT_SERVED),
]
HEAD = """# Errors

Generated from the source by `scripts/errors_doc.py` (`make docs`); a test fails when this page is stale. `…` stands for
a value. Messages about an op open with `<op> '<node>':` and read *input, what came; what is needed*.

| kind | in ONNX Runtime | exit code of `kvshare` |
|---|---|---|
| invalid input | `INVALID_ARGUMENT` | 2 |
| refused | `NOT_IMPLEMENTED` | 3 |
| internal | `FAIL` | 5 |
| left alone | | 0: the report of `kvshare rewrite` says why a layer stayed as it was |
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
    lines: range  # of the call


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


def split(tokens):
    """Arguments, one list of tokens each."""
    out, depth = [[]], 0
    for token in tokens:
        depth += (token.text in "([{") - (token.text in ")]}")
        if token.text == "," and depth == 0:
            out.append([])
        elif token.kind != "comment":
            out[-1].append(token)
    return out


def literal(tokens):
    """Adjacent string literals as one text, unescaped; None for anything else."""
    if not tokens or any(t.kind != "string" for t in tokens):
        return None
    text = "".join(t.text[1:-1] for t in tokens)
    return text.replace('\\"', '"').replace("\\n", " ").replace("\\\\", "\\")


def text_of(tokens, known):
    """What an expression says, as far as the source tells: literals, formats, and the names in `known`; else "…"."""
    if (text := literal(tokens)) is not None:
        return text
    if len(tokens) == 1 and tokens[0].text in known:
        return known[tokens[0].text]
    if len(tokens) > 2 and tokens[0].text in ("std::string", "std::move") and tokens[1].text == "(":
        return text_of(arguments(tokens, 1)[0], known)
    if len(tokens) > 2 and tokens[0].text == "fmt::format" and tokens[1].text == "(":
        form, *values = split(arguments(tokens, 1)[0])
        if len(form) == 1 and form[0].text in known:  # a helper's own format string
            return known[form[0].text]
        text = literal(form)
        if text is None:
            return "…"
        values = iter(values)
        pieces = re.split(r"(\{\{|\}\}|\{[^{}]*\})", text)
        return "".join("{" if x == "{{" else "}" if x == "}}" else text_of(next(values, []), known) if x.startswith("{")
                       else x for x in pieces)
    return PLACE if any(t.text.lower().rstrip("_") == "where" for t in tokens) else "…"


def kind_of(name):
    head, _, tail = name.rpartition("::")
    return tail if head.endswith("Status") and tail in KINDS else None


def helpers_of(tokens):
    """{name: (kind, parameters, message, begin, end)}: functions of a file that make a Status of texts, e.g. Bad(where, fact)."""
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
                    names_of = [p[-1].text for p in split(parameters) if p]
                    found[tokens[i + 1].text] = (names[0][1], names_of, inner, i, end + 1 + len(body))
        i += 1
    return found


def remedy_of(text, kind, refused):
    _, separator, tail = text.partition("; ")
    if separator and (kind != "LeftAlone" or tail.startswith("need")):
        return tail[0].upper() + tail[1:] + "."
    return KINDS[kind] or refused


def messages_of(source, refused):
    tokens = tokens_of(source)
    helpers = helpers_of(tokens)
    bodies = [(begin, end) for *_, begin, end in helpers.values()]
    out = []
    for i, token in enumerate(tokens[:-1]):
        if token.kind != "name" or tokens[i + 1].text != "(" or any(b <= i <= e for b, e in bodies):
            continue
        inside, end = arguments(tokens, i + 1)
        given = [g for g in split(inside) if g]
        if kind := kind_of(token.text):
            text = text_of(given[0], {}) if given else "…"
        elif token.text == "Outcome::Decline":
            kind = "LeftAlone"
            text = re.sub(r"\{[^{}]*\}", "…", literal(given[0]) or "…") if given else "…"
        elif token.text in helpers:
            kind, names, message, *_ = helpers[token.text]
            known = dict(zip(names, (text_of(g, {}) for g in given)))
            if len(given) > len(names) or "args" in names:  # what follows a format string fills it
                j = names.index("format")
                form = literal(given[j])
                known["format"] = re.sub(r"\{[^{}]*\}", "…", form) if form else "…"
            text = text_of(message, known)
        else:
            continue
        if kind == "Refused" and refused == LEFT_ALONE:
            kind = "LeftAlone"
        if re.search("[a-z]{2}", text.replace(PLACE, "")):
            lines = range(token.line, tokens[end].line + 1)
            out.append(Message(kind, text, remedy_of(text, kind, refused), lines))
    return out


def all_messages():
    """(file, its area's title, message) for each place that raises one."""
    for path in sorted((ROOT / "src").rglob("*.cc")):
        relative = path.relative_to(ROOT).as_posix()
        _, title, refused = next(area for area in AREAS if relative.startswith(area[0]))
        for message in messages_of(path.read_text(), refused):
            yield relative, title, message


def shown(text):
    return text.replace("|", "\\|")


def page():
    sections = {title: {} for _, title, _ in AREAS}
    for relative, title, message in all_messages():
        sections[title].setdefault(relative, []).append(message)
    lines = [HEAD]
    for title, files in sections.items():
        if not files:
            continue
        lines.append(f"## {title}\n")
        for relative, messages in files.items():
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
