"""llama.cpp as a peer (through llama-cpp-python), with the same two methods as `benchmarks.worker.Peer`.

Everything goes through llama.cpp's own calls, without a Python detour for each token.
"""

from __future__ import annotations

import ctypes
import json
import re
import time
from pathlib import Path
from typing import Any

from benchmarks.gguf_files import EYE, TEXT

BATCH_TOKENS = 1024


class LlamaPeer:
    """The two files of benchmarks.gguf_files, loaded."""

    def __init__(self, folder: str, *, checkpoint: str, quantize: str, threads: int, context: int) -> None:
        """folder: of the GGUF files. checkpoint: the folder they were made from, whose template is used."""
        from benchmarks.worker import peak_bytes

        start = time.perf_counter()
        import llama_cpp
        from llama_cpp import mtmd_cpp

        self.import_s = time.perf_counter() - start
        self.base_bytes = peak_bytes()
        self.kind, self.api, self.mtmd = quantize, llama_cpp, mtmd_cpp
        start = time.perf_counter()
        self.text = llama_cpp.Llama(
            str(Path(folder) / TEXT),
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            n_batch=BATCH_TOKENS,
            flash_attn=True,
            verbose=False,
        )
        settings = mtmd_cpp.mtmd_context_params_default()
        settings.use_gpu, settings.n_threads, settings.print_timings = False, threads, False
        eye = str(Path(folder) / EYE).encode()
        self.eye = mtmd_cpp.mtmd_init_from_file(eye, self.text.model, settings)
        if not self.eye:
            raise SystemExit(f"llama.cpp cannot load {Path(folder) / EYE}")
        self.load_s = time.perf_counter() - start
        self.load_bytes = peak_bytes()
        self.n_vocab = self.text.n_vocab()
        self.template, self.image_token = _template(Path(checkpoint))

    def described(self) -> dict[str, Any]:
        """What is known after loading."""
        return {
            "import_s": self.import_s,
            "load_s": self.load_s,
            "base_bytes": self.base_bytes,
            "load_bytes": self.load_bytes,
            "dtype": self.kind.upper(),
        }

    def answer(self, *, picture_seed: int, side: int, prompt_tokens: int, decode_tokens: int) -> dict[str, Any]:
        """See Peer.answer."""
        from benchmarks.worker import QUESTION, noise, peak_bytes

        picture, question = noise(picture_seed, side), QUESTION
        chunks = self._chunks(picture, question)
        question += "?" * max(prompt_tokens - self._count(chunks), 0)  # one token a byte
        self.mtmd.mtmd_input_chunks_free(chunks)
        self.api.llama_memory_clear(self.api.llama_get_memory(self.text.ctx), True)
        start = time.perf_counter()
        chunks = self._chunks(picture, question)
        self._read(chunks)
        ids = [self._likeliest()]
        first = time.perf_counter()
        for _ in range(decode_tokens):
            ids.append(self._next(ids[-1]))
        last = time.perf_counter()
        n_prompt = self._count(chunks)
        self.mtmd.mtmd_input_chunks_free(chunks)
        return {
            "prompt_tokens": n_prompt,
            "first_token_s": first - start,
            "decode_tokens_per_s": decode_tokens / (last - first) if decode_tokens else None,
            "peak_bytes": peak_bytes(),
            "ids": ids,
        }

    def _chunks(self, picture: Any, question: str) -> Any:
        """The prompt as llama.cpp has it: text, the preprocessed picture, text."""
        pixels = picture.tobytes()
        bitmap = self.mtmd.mtmd_bitmap_init(
            *picture.size, ctypes.cast(ctypes.c_char_p(pixels), ctypes.POINTER(ctypes.c_uint8))
        )
        content = [{"type": "image"}, {"type": "text", "text": question}]
        rendered = self.template.render(messages=[{"role": "user", "content": content}], add_generation_prompt=True)
        text = self.mtmd.mtmd_input_text()
        text.text = rendered.encode().replace(self.image_token, self.mtmd.mtmd_default_marker())
        text.text_len, text.add_special, text.parse_special = len(text.text), False, True
        chunks = self.mtmd.mtmd_input_chunks_init()
        bitmaps = (self.mtmd.mtmd_bitmap_p_ctypes * 1)(bitmap)
        failed = self.mtmd.mtmd_tokenize(self.eye, chunks, ctypes.byref(text), bitmaps, 1)
        self.mtmd.mtmd_bitmap_free(bitmap)
        if failed:
            raise SystemExit(f"llama.cpp cannot read the prompt ({failed})")
        return chunks

    def _count(self, chunks: Any) -> int:
        each = (self.mtmd.mtmd_input_chunks_get(chunks, i) for i in range(self.mtmd.mtmd_input_chunks_size(chunks)))
        return sum(self.mtmd.mtmd_input_chunk_get_n_tokens(chunk) for chunk in each)

    def _read(self, chunks: Any) -> None:
        past = self.api.llama_pos(0)
        if self.mtmd.mtmd_helper_eval_chunks(
            self.eye, self.text.ctx, chunks, 0, 0, BATCH_TOKENS, True, ctypes.byref(past)
        ):
            raise SystemExit("llama.cpp cannot run the prompt")

    def _likeliest(self) -> int:
        import numpy as np

        logits = self.api.llama_get_logits_ith(self.text.ctx, -1)
        return int(np.ctypeslib.as_array(logits, shape=(self.n_vocab,)).argmax())

    def _next(self, token: int) -> int:
        batch = self.api.llama_batch_get_one((self.api.llama_token * 1)(token), 1)
        if self.api.llama_decode(self.text.ctx, batch):
            raise SystemExit("llama.cpp cannot run a token")
        return self._likeliest()


def _template(checkpoint: Path) -> tuple[Any, bytes]:
    """The chat template, as transformers would run it, and the text that stands for a picture."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def read(name: str, key: str) -> str:
        return str(json.loads((checkpoint / name).read_text("utf-8"))[key])

    source = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", read("chat_template.json", "chat_template"))
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(source), read("processor_config.json", "image_token").encode()
