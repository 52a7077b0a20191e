"""Exact answers by kind on held-out scenes, asked of an exported folder.

Every question is asked on its own, with nothing before it but what it needs: a follow-up the question it follows. An
answer counts when greedy decoding gives precisely the canonical text. That is read off one forward pass per question
(each token must be the likeliest after those before it); `--generate` repeats some through the processor and
`generate`, from the undistorted picture, and compares the texts.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from cases import Case, make_cases
from drawing import draw_scene
from model import WIDTH, decode, tower_features
from pool import Pool, open_pool
from rows import KINDS, RowEncoder, pack
from scenes import HELD_OUT_SEED, make_scene


@torch.no_grad()
def judge(model: LlavaForConditionalGeneration, encoder: RowEncoder, pool: Pool, cases: list[Case]) -> list[bool]:
    """Whether the last answer of each case is exact; all cases have equally many pictures."""
    rows = pack(encoder, pool, [case.talk for case in cases], [p for case in cases for p in case.places], budget=2048)
    features = tower_features(model, rows.images) if len(rows.images) else torch.zeros(0, WIDTH)
    _, last = decode(model, features, rows.ids)
    logits = model.lm_head(last[rows.row, rows.position])
    wrong = torch.zeros(len(rows.kind)).index_add_(0, rows.answer, (logits.argmax(-1) != rows.target).float())
    last = torch.tensor([len(case.talk.exchanges) for case in cases]).cumsum(0) - 1
    return (wrong[last] == 0).tolist()


def generated(model: LlavaForConditionalGeneration, processor: AutoProcessor, case: Case) -> str:
    """The last answer as a user of transformers gets it."""
    pictures = iter([draw_scene(make_scene(HELD_OUT_SEED + place)).image for place in case.places])
    messages = []
    for exchange in case.talk.exchanges:
        content = [{"type": "image", "image": next(pictures)} for _ in range(exchange.pictures)]
        messages.append({"role": "user", "content": [*content, {"type": "text", "text": exchange.turn.question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": exchange.turn.answer}]})
    inputs = processor.apply_chat_template(
        messages[:-1], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    ids = model.generate(**inputs, max_new_tokens=96, do_sample=False)
    return processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def table(results: list[tuple[str, bool]]) -> str:
    """Markdown: kind, how many were asked, exact share."""
    lines = ["| kind | asked | exact |", "|---|---:|---:|"]
    for kind in KINDS:
        hits = [right for name, right in results if name == kind]
        if hits:
            lines.append(f"| {kind} | {len(hits)} | {100 * sum(hits) / len(hits):.1f} % |")
    share = 100 * sum(right for _, right in results) / len(results)
    return "\n".join([*lines, f"| **all** | {len(results)} | **{share:.1f} %** |"])


def evaluate(folder: Path, scenes: int, generate: int, show: int) -> None:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    encoder = RowEncoder(processor.tokenizer)
    cases = sorted(make_cases(scenes), key=lambda case: (len(case.places), len(case.talk.exchanges)))
    verdicts: list[bool] = []
    with tempfile.TemporaryDirectory() as temporary:
        pool = open_pool(Path(temporary), scenes, first_seed=HELD_OUT_SEED)
        for pictures in range(3):
            alike = [case for case in cases if len(case.places) == pictures]
            for start in range(0, len(alike), 32):
                verdicts += judge(model, encoder, pool, alike[start : start + 32])
    print(table([(case.last.kind, right) for case, right in zip(cases, verdicts, strict=True)]))
    wrong = [case for case, right in zip(cases, verdicts, strict=True) if not right]
    for case in random.Random(1).sample(wrong, min(show, len(wrong))):
        print(f"{case.places} {case.last.question} | {case.last.answer} | {generated(model, processor, case)}")
    sample = random.Random(0).sample(range(len(cases)), generate)
    agree = sum((generated(model, processor, cases[i]) == cases[i].last.answer) == verdicts[i] for i in sample)
    print(f"generate() agrees on {agree} of {generate}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an exported folder")
    parser.add_argument("--scenes", type=int, default=1_000)
    parser.add_argument("--generate", type=int, default=100, help="how many to repeat through generate()")
    parser.add_argument("--show", type=int, default=0, help="how many wrong answers to print")
    arguments = parser.parse_args()
    evaluate(arguments.folder, arguments.scenes, arguments.generate, arguments.show)
