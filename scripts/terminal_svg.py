"""A terminal picture of text: COMMAND | terminal_svg.py TITLE > PICTURE.svg (scripts/pictures.sh)

Bold (ESC[1m), dim (ESC[2m), red, green and yellow are kept; other escapes are dropped.
"""
import html
import re
import sys

COLOURS = {"31": "#e06c75", "32": "#98c379", "33": "#e5c07b", "36": "#56b6c2"}
CHAR, LINE, PAD, BAR = 8.43, 18, 14, 30


def spans(line):
    style = {}
    for piece in re.split(r"(\x1b\[[0-9;]*[A-Za-z])", line):
        code = re.fullmatch(r"\x1b\[([0-9;]*)m", piece)
        if code:
            for n in code[1].split(";"):
                if n in ("", "0"):
                    style = {}
                elif n == "1":
                    style["font-weight"] = "bold"
                elif n == "2":
                    style["opacity"] = "0.6"
                elif n in COLOURS:
                    style["fill"] = COLOURS[n]
        elif piece and not piece.startswith("\x1b"):
            attributes = "".join(f' {k}="{v}"' for k, v in style.items())
            yield f"<tspan{attributes}>{html.escape(piece)}</tspan>" if style else html.escape(piece)


def main():
    lines = [line.rstrip("\n").expandtabs() for line in sys.stdin]
    columns = max(len(re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line)) for line in lines)
    width, height = round(columns * CHAR + 2 * PAD), len(lines) * LINE + BAR + PAD
    print(f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">')
    print(f'<rect width="{width}" height="{height}" rx="8" fill="#21252b"/>')
    for i, colour in enumerate(("#e06c75", "#e5c07b", "#98c379")):
        print(f'<circle cx="{PAD + 4 + 18 * i}" cy="{BAR / 2:g}" r="5" fill="{colour}"/>')
    print(f'<text x="{width / 2:g}" y="{BAR / 2 + 5:g}" text-anchor="middle" font-family="sans-serif" font-size="13" '
          f'fill="#9da5b4">{html.escape(sys.argv[1])}</text>')
    print('<g font-family="ui-monospace, Menlo, Consolas, \'DejaVu Sans Mono\', monospace" font-size="14" fill="#d7dae0" '
          'xml:space="preserve">')
    for i, line in enumerate(lines):
        if line:
            print(f'<text x="{PAD}" y="{BAR + 14 + i * LINE}">{"".join(spans(line))}</text>')
    print("</g>\n</svg>")


if __name__ == "__main__":
    main()
