"""What a first answer loads: nothing that takes seconds and is not used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import toys

NEVER = ("torch._dynamo", "torch._inductor", "sympy", "transformers", "torchvision", "accelerate")


def test_an_answer_needs_no_compiler_and_no_transformers(tmp_path: Path) -> None:
    picture = tmp_path / "scene.png"
    toys.picture(40, 28, 0).save(picture)
    code = f"""
import sys, behold
vlm = behold.load({str(toys.checkpoint("llava-siglip-qwen2"))!r}, dtype="float32", device="cpu")
assert vlm.ask({str(picture)!r}, "What do we see?", max_new_tokens=3).usage.completion_tokens
print(*[name for name in {NEVER!r} if name in sys.modules])
"""
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert loaded == []
