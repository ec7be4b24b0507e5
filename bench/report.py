"""The text table and the plots: time against T, S and the group, one panel a shape, by hand."""
import math

COLOURS = ("#d33f49", "#2a6f97", "#61a5c2", "#7f5539", "#6a994e", "#f2a65a", "#8338ec", "#6c757d", "#012a4a", "#b56576",
           "#06d6a0", "#c9a227")
PANEL, PAD, LEGEND = (330, 250), 54, (195, 22)


def table(result):
    """One row: the roof, then a line a side."""
    roof, floor = result["roof"], result["floor"]
    lines = [f"{result['name']}   roof {roof['gbs']:.1f} GB/s (plain {roof['read_gbs']:.1f}), {roof['gflops']:.0f} GFLOP/s; "
             f"floor {floor['ms']:.4f} ms ({floor['by']})"]
    ours = result["sides"].get("kvshare", {})
    for name, side in result["sides"].items():
        if "ms" not in side:
            lines.append(f"    {name:26} {side['skipped']}")
            continue
        comparable = side["disturbed"] == ours.get("disturbed")  # a disturbed time says little beside an undisturbed one
        ratio = f"{side['ms'] / ours['ms']:7.2f} x kvshare" if comparable else " " * 17
        mark = "*" if side["disturbed"] else " "
        lines.append(f"    {name:26} {side['ms']:10.4f}{mark}ms ±{side['spread']:3.0f} %  {ratio}  "
                     f"{side['ms'] / floor['ms']:8.2f} x floor  "
                     f"{side['peak_bytes'] / 1e6:7.1f} MB  error {side['error']:.0e}  {side['calls']} calls, {side['dropped']} dropped")
    return "\n".join(lines)


def _panel_of_decode(row):
    return row["shape"]["name"], row["T"]


def _panel_of_prefill(row):
    return row["shape"]["name"], row["S"]


def _panel_of_group(row):
    return "8 KV heads, D 128, T 4096", row["shape"]["Hq"] // row["shape"]["Hkv"]


# name of the file: (phase, whether the shape is one of the group rows, panel and x of a row, what x is)
PLOTS = {"decode": ("decode", False, _panel_of_decode, "tokens in the cache, T"),
         "prefill": ("prefill", False, _panel_of_prefill, "tokens of the prompt, S"),
         "group": ("decode", True, _panel_of_group, "query heads that share a KV head")}


def _series(results, phase, grouped, place):
    """{panel: {side: [(x, ms)]}} of fp32 on one thread, with the floor among the sides."""
    found = {}
    for result in results:
        row = result["row"]
        if (row["phase"], row["dtype"], row["threads"], row["batch"]) != (phase, "fp32", 1, 1):
            continue
        if row["shape"]["name"].startswith("group") != grouped:
            continue
        panel, x = place(row)
        timed = {name: side["ms"] for name, side in result["sides"].items() if "ms" in side}
        for name, ms in {**timed, "floor": result["floor"]["ms"]}.items():
            found.setdefault(panel, {}).setdefault(name, []).append((x, ms))
    return {panel: sides for panel, sides in found.items() if len(sides["floor"]) > 1}


def _panel(title, unit, sides, colour, left):
    points = [p for line in sides.values() for p in line]
    (x0, x1), (y0, y1) = ((math.log10(min(v)), math.log10(max(v))) for v in zip(*points))
    width, height = PANEL[0] - PAD - 10, PANEL[1] - PAD

    def at(T, ms):
        return (left + PAD + (math.log10(T) - x0) / (x1 - x0) * width,
                30 + (1 - (math.log10(ms) - y0) / (y1 - y0)) * height)

    out = [f'<text x="{left + PAD + width / 2:.0f}" y="18" text-anchor="middle" font-weight="bold">{title}</text>',
           f'<rect x="{left + PAD}" y="30" width="{width}" height="{height}" fill="none" stroke="#999"/>']
    for T in sorted({T for T, _ in points}):
        x = at(T, 10**y0)[0]
        out.append(f'<text x="{x:.0f}" y="{height + 46}" text-anchor="middle">{T}</text>')
    for power in range(math.ceil(y0), math.floor(y1) + 1):
        y = at(10**x0, 10**power)[1]
        out.append(f'<path d="M{left + PAD} {y:.1f}h{width}" stroke="#ddd"/>')
        out.append(f'<text x="{left + PAD - 5}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g} {unit}</text>')
    for name, line in sides.items():
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*p) for p in sorted(line)))
        dashed = ' stroke-dasharray="4 3"' if name == "floor" else ""
        thick = 3 if name == "kvshare" else 1.5
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour[name]}" stroke-width="{thick}"{dashed}/>')
    return out


def plots(results, title):
    """{name: SVG}; a plot whose panels have one point each is left out."""
    drawn = {name: _plot(_series(results, phase, grouped, place), f"{phase}, fp32, 1 thread", x, title)
             for name, (phase, grouped, place, x) in PLOTS.items()}
    return {name: svg for name, svg in drawn.items() if svg}


def _plot(series, subject, x_name, title):
    if not series:
        return None
    return drawing([(f"{panel}: {subject}", "ms", sides) for panel, sides in series.items()],
                   f"{title}; time of one call against {x_name}")


def drawing(panels, footer):
    """SVG, both axes logarithmic. panels: (title, unit, {side: [(x, y)]}) each; a side called floor is dashed."""
    names = [n for n in dict.fromkeys(name for _, _, sides in panels for name in sides) if n != "floor"]
    colour = {n: COLOURS[i % len(COLOURS)] for i, n in enumerate(names)}
    if any("floor" in sides for _, _, sides in panels):
        colour["floor"] = "#000"
    columns = max(2, len(panels) * PANEL[0] // LEGEND[0])
    rows = math.ceil(len(colour) / columns)
    width, height = max(len(panels), 2) * PANEL[0] + PAD // 2, PANEL[1] + 60 + rows * LEGEND[1]
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
           'font-size="11">', f'<rect width="{width}" height="{height}" fill="#fff"/>']
    for i, (title, unit, sides) in enumerate(panels):
        out += _panel(title, unit, sides, colour, i * PANEL[0])
    for i, name in enumerate(colour):
        x, y = 20 + i % columns * LEGEND[0], PANEL[1] + 20 + i // columns * LEGEND[1]
        out.append(f'<path d="M{x} {y}h18" stroke="{colour[name]}" stroke-width="3"/>'
                   f'<text x="{x + 24}" y="{y + 4}">{name}</text>')
    out.append(f'<text x="20" y="{height - 10}" fill="#666">{footer}</text></svg>')
    return "\n".join(out) + "\n"
