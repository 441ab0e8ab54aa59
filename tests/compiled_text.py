"""Reads the text of compiled programs."""

import math
import re


def all_reduces(compiled) -> list[tuple[str, int]]:
    """(computation, bytes) of each all-reduce in the compiled program."""
    found, computation = [], ""
    for line in compiled.as_text().splitlines():
        if line.endswith("{") and not line.startswith(" "):
            computation = line.split()[0]
        match = re.search(r"= (.*?) all-reduce(?:-start)?\(", line)
        if match:
            shapes = re.findall(r"\b([a-z]+)(\d+)\[([\d,]*)\]", match.group(1))
            sizes = [
                int(bits) // 8 * math.prod(int(n) for n in dims.split(",") if n)
                for _, bits, dims in shapes
            ]
            found.append((computation, sum(sizes)))
    return found
