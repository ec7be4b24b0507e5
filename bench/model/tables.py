"""What the sides measured, as markdown and as a plot."""
from bench import report


def find(rows, side, phase):
    """{length: row}"""
    return {row["length"]: row for row in rows if (row["side"], row["phase"]) == (side, phase)}


def cell(rows, lengths, show):
    """One figure a length: "9.1 / 8.0 / 2.2"."""
    return " / ".join(show(rows[length]) if length in rows else "–" for length in lengths)


def table(head, lines):
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def lengths_of(rows, phase):
    return sorted({row["length"] for row in rows if row["phase"] == phase})


def gigabytes(row):
    return f"{row['peak'] / 1e9:.2f}"


def apart(row):
    return "0" if row["apart"] == 0 else f"{row['apart']:.0e}"


def decode_table(rows, sides):
    lengths = lengths_of(rows, "decode")
    lines = []
    for side in sides:
        steps, shares = find(rows, side, "decode"), find(rows, side, "share")
        if not steps:
            continue
        lines.append([side, cell(steps, lengths, lambda row: f"{1 / row['seconds']:.1f}"), cell(steps, lengths, gigabytes),
                      cell(steps, lengths, lambda row: f"{row['cache_bytes'] / 1e6:.0f}"),
                      cell(shares, lengths, lambda row: f"{100 * row['share'].get('attention', 0):.0f}"),
                      cell(steps, lengths, apart)])
    head = ["side", "tokens/s", "peak memory, GB", "caches, MB", "attention, % of a step", "logits apart"]
    return f"One decode step; T = {' / '.join(map(str, lengths))} tokens in the caches.\n\n" + table(head, lines)


def sliding_caches(rows, sizes, whole, windowed, slack):
    """What window-sized caches save at the longest T; whole, windowed: sides. "" where one of them has no such row."""
    T = max(lengths_of(rows, "decode"), default=0)
    peaks = [find(rows, side, "decode").get(T) for side in (whole, windowed)]
    if None in peaks:
        return ""
    large, small = (sizes.cache_bytes(T, rows, sizes.sliding()) for rows in (None, slack))
    lower = peaks[0]["peak"] - peaks[1]["peak"]
    return (f"At T = {T} the own layers with windows have caches of {large / 1e6:.1f} MB, window-sized {small / 1e6:.1f} MB: "
            f"{large / small:.1f} times less. The process's peak is {lower / 1e6:.0f} MB lower.")


def prompt_table(rows, sides, sizes):
    lengths = lengths_of(rows, "prompt")
    lines = [[side, cell(prompts, lengths, lambda row: f"{row['seconds']:.2f}"), cell(prompts, lengths, gigabytes),
              cell(prompts, lengths, apart)] for side in sides if (prompts := find(rows, side, "prompt"))]
    bounds = " / ".join(f"{sizes.fast_prefill_bound(S):.2f}" for S in lengths)
    return (f"Time to the first token; prompts of {' / '.join(map(str, lengths))} tokens.\n\n"
            + table(["side", "seconds", "peak memory, GB", "logits apart"], lines)
            + f"\n\nMultiplications by weights bound what fast prefill gains: {bounds} times.")


def plot(rows, sides, footer):
    panels = []
    for phase, title, unit, of in (("decode", "decode against tokens in the caches", "tokens/s", lambda row: 1 / row["seconds"]),
                                   ("prompt", "first token against tokens of the prompt", "s", lambda row: row["seconds"])):
        lines = {side: [(length, of(row)) for length, row in find(rows, side, phase).items()] for side in sides}
        lines = {side: line for side, line in lines.items() if len(line) > 1}
        if lines:
            panels.append((title, unit, lines))
    return report.drawing(panels, footer) if panels else None
