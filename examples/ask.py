"""Ask one question about one picture, and look at what is known about the answer.

python examples/ask.py [PICTURE] [QUESTION]
"""

import sys
from pathlib import Path

import behold

picture = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "scene.png"
question = sys.argv[2] if len(sys.argv) > 2 else "What do we see in this image?"

vlm = behold.load("demo")  # bundled; or a hub id, or a folder
answer = vlm.ask(picture, question)

print(answer)
print(f"{answer.usage.prompt_tokens} prompt tokens, {answer.usage.image_tokens} of them for the picture")
print(f"first token after {answer.timings.first_token_s:.2f} s, then {answer.timings.decode_tokens_per_s:.0f} a second")
