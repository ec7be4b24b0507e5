"""Writes docs/errors.md, every failure message in src/ and what to do about it: errors_doc.py [--check]

A message is what `Status::InvalidInput`, `Refused` or `Internal` is given, directly or through a helper (of the same file,
or declared in a header) that puts words around its arguments, and what src/graph gives `Because(code, ...)`. The remedy is
the message's own part after the first "; ", else what its kind always means. --check fails when the page is stale.
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
    ("src/cuda/", "Attention: CUDA kernels", NOT_SERVED),
    ("src/ort/", "Op library in ONNX Runtime", "Remove what the message names, or run without kvshare."),
    ("src/genai/", "onnxruntime-genai", NOT_SERVED),
    ("src/ep/", "Execution provider", "None needed: the node stays ONNX Runtime's; or set mode = off."),
    ("src/graph/rules/", "Rewriting: why a layer is left alone", LEFT_ALONE),
    ("src/graph/match/", "Rewriting: why a layer is left alone", LEFT_ALONE),
    ("src/graph/forms/", "Rewriting: why a layer is left alone", LEFT_ALONE),
    ("src/graph/layers.cc", "Rewriting: why a layer is left alone", LEFT_ALONE),
    ("src/graph/masks/", "Rewriting: why a mask is not understood", LEFT_ALONE),
    ("src/graph/", "Reading and writing models", "Choose another output."),
    ("src/host/", "Running models: verify, doctor", "Run the model in your own program."),
    ("src/report/", "Reports", NOT_SERVED),
    ("src/cli/", "Command line", NOT_SERVED),
]
HEAD = """# Errors

Generated from the source by `scripts/errors_doc.py` (`make docs`); a test fails when this page is stale. `…` stands for
a value, `{option}` for the name of an option: the command line prints its flag there. Messages about an op open with
`<op> '<node>':` and read *input, what came; what is needed*.

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
    if tokens and tokens[0].text in known and (len(tokens) == 1 or arguments(tokens, 1)[1] == len(tokens) - 1):
        return known[tokens[0].text]  # a parameter, or the call of a function that makes a phrase
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


def shape_of(form):
    """A format string with each value left open; doubled braces stand for themselves."""
    return re.sub(r"\{\{|\}\}|\{[^{}]*\}", lambda m: m[0][0] if m[0] in ("{{", "}}") else "…", form)


def message_of(name, inside):
    """The tokens of the message in the call `name(inside)`: of Because(code, format, values...) all but the code."""
    if name != "Because":
        return inside
    comma = next((i for i, t in enumerate(inside) if t.text == ","), len(inside))
    line = inside[0].line if inside else 0
    return [Token("name", "fmt::format", line), Token("other", "(", line), *inside[comma + 1:], Token("other", ")", line)]


def kind_of(name):
    if name == "Because":
        return "LeftAlone"
    head, _, tail = name.rpartition("::")
    return tail if head.endswith("Status") and tail in KINDS else None


@dataclass
class Helper:
    """A function or lambda that makes a Status of texts, e.g. Bad(where, fact)."""
    kind: str
    parameters: list  # their names
    message: list  # the tokens that its Status is made of, or
    calls: "Helper | None"  # the helper that `message` are the arguments of
    body: range  # its tokens

    def text(self, given, known):
        """What a call with the arguments `given` says."""
        known = known | dict(zip(self.parameters, (text_of(g, known) for g in given)))
        if "format" in known and (len(given) > len(self.parameters) or "args" in known):
            form = literal(given[self.parameters.index("format")])  # what follows a format string fills it
            known["format"] = shape_of(form) if form else "…"
        return self.calls.text(split(self.message), known) if self.calls else text_of(self.message, known)


def definition(tokens, i):
    """(name, parameters, index of the body's brace) where `Status Name(...) {` or `auto name = [...](...) {` begins at i."""
    def text(at):
        return tokens[at].text if at < len(tokens) else ""

    if tokens[i].text in ("Status", "kvshare::Status", "Decline") and tokens[i + 1].kind == "name" and text(i + 2) == "(":
        name, opening = tokens[i + 1].text, i + 2
    elif tokens[i].text == "auto" and text(i + 2) == "=" and text(i + 3) == "[":
        name, opening = tokens[i + 1].text, arguments(tokens, i + 3)[1] + 1
    else:
        return None
    if text(opening) != "(":
        return None
    parameters, end = arguments(tokens, opening)
    brace = next((at for at in range(end + 1, min(end + 4, len(tokens))) if text(at) in "{;"), end)  # behind `const`, `-> Status`
    return (name, parameters, brace) if text(brace) == "{" else None


TEXTS = {"std::string", "std::string_view", "fmt::format_string", "char"}


def helpers_of(tokens, shared):
    """[(name, Helper)] of a file in order; they may call one another and those that are `shared`."""
    found = []
    for i in range(len(tokens) - 2):
        name, parameters, brace = definition(tokens, i) or ("", [], 0)
        if not TEXTS & {t.text for t in parameters}:
            continue
        body, end = arguments(tokens, brace)
        makers = [(j, helper_at(i, t.text, found, shared)) for j, t in enumerate(body[:-1]) if body[j + 1].text == "("]
        makers = [(j, calls) for j, calls in makers if calls or kind_of(body[j].text)]
        if len(makers) != 1 or len(body) >= 60:
            continue
        [(j, calls)] = makers
        found.append((name, Helper(calls.kind if calls else kind_of(body[j].text), [p[-1].text for p in split(parameters) if p],
                                   message_of(body[j].text, arguments(body, j + 1)[0]), calls, range(i, end + 1))))
    return found


def helper_at(i, name, own, shared):
    """What `name` means at token i: the last of the file's own before it (lambdas repeat names), else a shared one."""
    return next((helper for n, helper in reversed(own) if n == name and helper.body.start < i), shared.get(name))


def phrases_of(tokens):
    """{name: text} of a file's functions that do nothing but make a text, e.g. HasShape(tensor)."""
    found = {}
    for i in range(len(tokens) - 3):
        if tokens[i].text == "std::string" and tokens[i + 1].kind == "name" and tokens[i + 2].text == "(":
            _, end = arguments(tokens, i + 2)
            begin = [t.text for t in tokens[end + 1:end + 4]]
            if begin == ["{", "return", "fmt::format"]:
                body, _ = arguments(tokens, end + 1)
                found[tokens[i + 1].text] = text_of(body[1:-1], {})
    return found


def remedy_of(text, kind, refused):
    _, separator, tail = text.partition("; ")
    if separator and (kind != "LeftAlone" or tail.startswith("need")):
        return tail[0].upper() + tail[1:] + "."
    return KINDS[kind] or refused


def messages_of(source, refused, shared):
    """`shared`: the helpers that headers declare."""
    tokens = tokens_of(source)
    own = helpers_of(tokens, shared)
    phrases = phrases_of(tokens)
    bodies = [helper.body for _, helper in own]
    out = []
    for i, token in enumerate(tokens[:-1]):
        if token.kind != "name" or tokens[i + 1].text != "(" or any(i in body for body in bodies):
            continue
        inside, end = arguments(tokens, i + 1)
        given = [g for g in split(inside) if g]
        if kind := kind_of(token.text):
            given = [g for g in split(message_of(token.text, inside)) if g]
            text = text_of(given[0], phrases) if given else "…"
        elif helper := helper_at(i, token.text, own, shared):
            kind, text = helper.kind, helper.text(given, phrases)
        else:
            continue
        if kind == "Refused" and refused == LEFT_ALONE:
            kind = "LeftAlone"
        if re.search("[a-z]{2}", text.replace(PLACE, "")):
            lines = range(token.line, tokens[end].line + 1)
            out.append(Message(kind, text, remedy_of(text, kind, refused), lines))
    return out


def shared_helpers(sources):
    """The helpers that a header declares or defines: any file may call them."""
    headers = [path.read_text() for path in sorted((ROOT / "src").rglob("*.h"))]
    declared = {name for header in headers for name in re.findall(r"\b(?:Status|Decline) (\w+)\(", header)}
    found = {}
    for _ in range(2):  # the second time finds those that call one of the first
        for source in [*headers, *sources]:
            found |= {name: helper for name, helper in helpers_of(tokens_of(source), found) if name in declared}
    return found


def all_messages():
    """(file, its area's title, message) for each place that raises one."""
    sources = {path.relative_to(ROOT).as_posix(): path.read_text() for path in sorted((ROOT / "src").rglob("*.cc"))}
    shared = shared_helpers(sources.values())
    for relative, source in sources.items():
        _, title, refused = next((area for area in AREAS if relative.startswith(area[0])), (None, None, ""))
        for message in messages_of(source, refused, shared):
            if title is None:
                sys.exit(f"{relative} raises '{message.text}', and AREAS has no entry for its folder")
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
