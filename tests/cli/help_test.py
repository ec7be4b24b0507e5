"""docs/tool.md and --help name the same options."""
import pathlib
import re

import pytest

from conftest import EQUAL

PAGE = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "tool.md").read_text()
VERBS = ["inspect", "rewrite", "verify", "doctor", "genai"]


def documented(verb):
    rows = re.findall(r"^\| (`-.*?) \| (.*?) \|", PAGE, flags=re.MULTILINE)
    return {flag for flags, verbs in rows if verbs == "all" or verb in verbs.split(", ") for flag in re.findall(r"--[a-z-]+", flags)}


@pytest.mark.parametrize("verb", VERBS)
def test_the_page_has_every_option_of_a_verb(kvshare, verb):
    done = kvshare(verb, "--help")
    assert done.returncode == EQUAL
    assert set(re.findall(r"^ +(?:-\w,)?(--[a-z-]+)", done.stdout, flags=re.MULTILINE)) - {"--help"} == documented(verb)


def test_the_page_has_every_verb_and_exit_code(kvshare):
    help_text = kvshare("--help").stdout
    assert re.findall(r"^  (\w+) {2,}", help_text.split("Subcommands:")[1], flags=re.MULTILINE) == VERBS
    assert re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE) == VERBS
    codes = re.findall(r"(\d) \w", help_text.split("Exit codes:")[1])
    assert codes == re.findall(r"^\| (\d) \|", PAGE, flags=re.MULTILINE)
