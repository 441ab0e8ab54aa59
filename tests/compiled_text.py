"""Reads the text of compiled programs."""

import math
import re


def all_reduces(compiled) -> list[tuple[str, int]]:
    """(computation, bytes) of each all-reduce in the compiled program."""
    return collectives(compiled, "all-reduce")


def collectives(compiled, kind: str) -> list[tuple[str, int]]:
    """(computation, bytes of what a device has of it then) of each of a kind."""
    found, computation = [], ""
    for line in compiled.as_text().splitlines():
        if line.endswith("{") and not line.startswith(" "):
            computation = line.split()[0]
        match = re.search(rf"= (.*?) {kind}(?:-start)?\(", line)
        if match:
            shapes = re.findall(r"\b([a-z]+)(\d+)\[([\d,]*)\]", match.group(1))
            sizes = [
                int(bits) // 8 * math.prod(int(n) for n in dims.split(",") if n)
                for _, bits, dims in shapes
            ]
            found.append((computation, sum(sizes)))
    return found
