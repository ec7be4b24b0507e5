"""The rows of rows.txt. Standard library only: the report needs no package."""
import dataclasses
import pathlib

FILE = pathlib.Path(__file__).with_name("rows.txt")
BITS = {"f32": 32, "f16": 16, "bf16": 16, "int8": 8, "float8e4m3fn": 8, "int4": 4}


@dataclasses.dataclass(frozen=True)
class Row:
    """S new tokens a sequence, T past and new tokens; window 0: none."""
    layers: int
    caches: int  # of the layers, which take turns with them
    B: int
    Hq: int
    Hkv: int
    S: int
    T: int
    D: int
    window: int
    element: str  # of query and output
    cache: str    # of K and V
    name: str

    @property
    def visible(self):
        """Rows of K and V of a sequence that some query sees."""
        return min(self.T, self.window + self.S - 1) if self.window else self.T

    @property
    def floor_bytes(self):
        """What any implementation reads of K and V, once for each layer."""
        return self.layers * 2 * self.B * self.Hkv * self.visible * self.D * BITS[self.cache] // 8

    def floor_ms(self, copy_tb_per_s):
        """At the rate of a copy. None for prompts: multiplications bind them."""
        return self.floor_bytes / copy_tb_per_s / 1e9 if self.S == 1 else None


def read(path=FILE):
    rows = []
    for line in pathlib.Path(path).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            *numbers, element, cache, name = line.split(maxsplit=11)
            rows.append(Row(*map(int, numbers), element, cache, name))
    return rows
