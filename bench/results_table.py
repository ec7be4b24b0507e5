"""python -m bench.results_table FILE...: the rows of build/bench/results.txt as a table for bench/RESULTS.md.

A later file's row takes the place of an earlier one's. The unchanged graph is that of Attention + mask, in the execution
provider; in drop-in mode where a file has no such side.
"""
import re
import sys

ROW = re.compile(r"(?P<name>\S.*?)   roof .*; floor \S+ ms \((?P<bound>\w+)\)$")
SIDE = re.compile(r"    (?P<side>.{26}) +(?P<ms>\d+\.\d+)(?P<disturbed>[* ])ms .*?(?P<floor>\d+\.\d+) x floor")
HEAD = ("row", "kvshare, ms", "x floor (bound)", "fastest ORT way, times", "fastest other peer, times", "unchanged graph, ms",
        "ORT on it, times")


def read(path):
    """{row: (bound, {side: (ms, x floor, whether every call was disturbed)})}"""
    rows = {}
    sides = None
    with open(path) as lines:
        for line in lines:
            if row := ROW.match(line.rstrip("\n")):
                sides = {}
                rows[row["name"]] = (row["bound"], sides)
            elif sides is not None and (side := SIDE.match(line)):
                sides[side["side"].strip()] = (float(side["ms"]), float(side["floor"]), side["disturbed"] == "*")
    return rows


def times(ours, sides, wanted):
    """The fastest of the sides whose name `wanted` accepts: how many times our time it takes, and its name."""
    found = [(ms, disturbed, name) for name, (ms, _, disturbed) in sides.items() if wanted(name)]
    if not found:
        return "–"
    ms, disturbed, name = min(found)
    mark = "*" if disturbed != ours[2] else ""
    return f"{ms / ours[0]:.1f}{mark} ({name.removeprefix('ort ')})"


def line(name, bound, sides):
    ours = sides["kvshare"]
    unchanged = sides.get("kvshare EP, masked") or sides.get("kvshare, Attention + mask")
    return (name, f"{ours[0]:.3f}{'*' if ours[2] else ''}", f"{ours[1]:.2f} ({bound})",
            times(ours, sides, lambda side: side.startswith("ort ")),
            times(ours, sides, lambda side: not side.startswith(("ort ", "kvshare"))),
            f"{unchanged[0]:.3f}" if unchanged else "–",
            times(unchanged, sides, lambda side: side == "ort Attention + mask").split(" ")[0] if unchanged else "–")


def main():
    rows = {}
    for path in sys.argv[1:]:
        rows.update(read(path))
    print("| " + " | ".join(HEAD) + " |\n|" + "---|" * len(HEAD))
    for name, (bound, sides) in rows.items():
        if "kvshare" in sides and not name.startswith("cost"):
            print("| " + " | ".join(line(name, bound, sides)) + " |")


if __name__ == "__main__":
    main()
