"""The picture layouts of the first families, each an ImageLayout bound to one checkpoint's settings.

WholeImageLayout: every picture becomes one input of one size (llava). NativeSizeLayout: pictures keep their own size
within bounds and may be split in four and a whole (idefics2).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from behold.errors import ChatError
from behold.processing.grids import SizeRule, clamped_size, halved, quarters, target_size
from behold.processing.images import (
    Pixels,
    center_crop,
    digest,
    normalize,
    pad_to_square,
    resize,
    size_of,
)
from behold.processing.settings import ImageSettings, read_settings
from behold.processing.tokenizer_files import read_tokens
from behold.types import ImageInput

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from behold.checkpoint.files import CheckpointFiles
    from behold.types import Detail

IMAGE_TOKEN = "<image>"
FAKE_TOKEN = "<fake_token_around_image>"


@dataclass(frozen=True, slots=True)
class WholeImageLayout:
    """One picture, one input (3, H, W), one run of image tokens with nothing around them.

    n_tokens = ⌊H/patch⌋ · ⌊W/patch⌋ + n_additional_tokens − (1 if the select strategy is "default", which drops CLS).
    """

    settings: ImageSettings
    image_token: str
    image_token_id: int
    patch_size: int
    n_additional_tokens: int
    drops_class_token: bool

    @classmethod
    def read(
        cls,
        files: CheckpointFiles,
        *,
        image_token_id: int,
        patch_size: int,
        n_class_tokens: int,
        select_strategy: str,
    ) -> WholeImageLayout:
        """From a checkpoint's files; the arguments are the model config's values, used where the processor is silent.

        n_class_tokens: 1 where the tower has a CLS token (CLIP), 0 where not (SigLIP).

        Raises:
            UnsupportedModelError: the image processor or one of its settings is not supported.
        """
        settings = read_settings(
            files.preprocessor,
            default_kind="LlavaImageProcessor",
            supported=("CLIPImageProcessor", "SiglipImageProcessor", "LlavaImageProcessor"),
        )
        processor = {key: value for key, value in files.processor.items() if value is not None}
        # A processor that states a patch size counts by its own numbers; an older one states nothing at all.
        additional = processor.get("num_additional_image_tokens", n_class_tokens)
        strategy = processor.get("vision_feature_select_strategy", select_strategy)
        return cls(
            settings=settings,
            image_token=read_tokens(files).get("image_token") or processor.get("image_token") or IMAGE_TOKEN,
            image_token_id=image_token_id,
            patch_size=int(processor.get("patch_size", patch_size)),
            n_additional_tokens=int(additional),
            drops_class_token=strategy == "default",
        )

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return (self.image_token,)

    def changed(self, **settings: object) -> WholeImageLayout:
        """The same layout with some image settings changed."""
        return replace(self, settings=self.settings.changed(**settings))

    def prepare(self, images: Sequence[Image], details: Sequence[Detail] = ()) -> list[list[ImageInput]]:
        """Pictures to one input each, of one cost whatever their detail; see ImageLayout."""
        return [[self._input(self._pixels(image))] for image in images]

    def expand(self, inputs: Sequence[ImageInput]) -> str:
        return "".join(self.image_token * each.n_tokens for each in inputs)

    def finish(self, text: str) -> str:
        return text

    def pack(self, rows: Sequence[Sequence[ImageInput]]) -> dict[str, torch.Tensor]:
        """{"pixel_values": (all pictures, 3, H, W)}, rows one after the other."""
        flat = [each.pixels for row in rows for each in row]
        return {"pixel_values": _tensor(np.stack(flat))} if flat else {}

    def unpack(self, batch: Mapping[str, torch.Tensor], n_image_tokens: Sequence[int]) -> list[list[ImageInput]]:
        pixels = _array(batch.get("pixel_values"))
        inputs = [self._input(each) for each in pixels] if pixels is not None else []
        each_tokens = inputs[0].n_tokens if inputs else 0
        if sum(n_image_tokens) != each_tokens * len(inputs) or any(
            each_tokens and n % each_tokens for n in n_image_tokens
        ):
            raise ChatError(
                f"the ids hold {list(n_image_tokens)} image tokens a row, and pixel_values {len(inputs)} pictures of "
                f"{each_tokens} tokens each; make both with one call of the processor."
            )
        counts = [n // each_tokens if each_tokens else 0 for n in n_image_tokens]
        stops = np.cumsum(counts).tolist()
        return [inputs[stop - count : stop] for count, stop in zip(counts, stops, strict=True)]

    def _pixels(self, image: Image) -> Pixels:
        settings = self.settings
        if settings.do_pad and settings.kind == "LlavaImageProcessor":
            image = pad_to_square(image, tuple(int(channel * 255) for channel in settings.image_mean))
        if settings.do_resize:
            image = resize(image, target_size(settings.size, size_of(image)), settings.resample)
        if settings.do_center_crop and settings.crop_size:
            image = center_crop(image, settings.crop_size)
        return _normalized(image, settings)

    def _input(self, pixels: Pixels) -> ImageInput:
        height, width = pixels.shape[-2:]
        n_patches = (height // self.patch_size) * (width // self.patch_size)
        n_tokens = n_patches + self.n_additional_tokens - self.drops_class_token
        return ImageInput(pixels, n_tokens, digest(pixels, "whole", n_tokens))


@dataclass(frozen=True, slots=True)
class NativeSizeLayout:
    """A picture of its own size, or its four quarters and itself, each n_tokens image tokens between fake tokens.

    One picture, not split, n_tokens=2: <fake><image><image><fake>; fake tokens that meet are merged into one. Pixels
    of an input are (3, h, w), without padding: the model takes the whole patches that lie inside.
    """

    settings: ImageSettings
    image_token: str
    image_token_id: int
    fake_token: str
    n_tokens: int

    @classmethod
    def read(cls, files: CheckpointFiles, *, image_token_id: int, n_tokens: int) -> NativeSizeLayout:
        """From a checkpoint's files; n_tokens is the resampler's number of latents.

        Raises:
            UnsupportedModelError: the image processor or one of its settings is not supported.
        """
        settings = read_settings(
            files.preprocessor, default_kind="Idefics2ImageProcessor", supported=("Idefics2ImageProcessor",)
        )
        tokens = read_tokens(files)
        return cls(
            settings=settings,
            image_token=tokens.get("image_token", IMAGE_TOKEN),
            image_token_id=image_token_id,
            fake_token=tokens.get("image_boundary_token", FAKE_TOKEN),
            n_tokens=int(files.processor.get("image_seq_len") or n_tokens),
        )

    @property
    def special_tokens(self) -> tuple[str, ...]:
        return (self.fake_token, self.image_token, "<end_of_utterance>")

    def changed(self, **settings: object) -> NativeSizeLayout:
        """The same layout with some image settings changed, such as do_image_splitting."""
        return replace(self, settings=self.settings.changed(**settings))

    def prepare(self, images: Sequence[Image], details: Sequence[Detail] = ()) -> list[list[ImageInput]]:
        """Pictures to one input each, or five where they are split; see ImageLayout.

        detail "high" splits, "low" does not and halves the longest side allowed: about a quarter of the patches.
        """
        each_detail = details or ["auto"] * len(images)
        return [self._inputs(image, detail) for image, detail in zip(images, each_detail, strict=True)]

    def expand(self, inputs: Sequence[ImageInput]) -> str:
        return "".join(f"{self.fake_token}{self.image_token * each.n_tokens}{self.fake_token}" for each in inputs)

    def finish(self, text: str) -> str:
        text = text.replace(self.fake_token * 2, self.fake_token)
        # A word right behind the closing token gets the space that its tokens were trained with.
        return re.sub(rf"{re.escape(self.fake_token)}(?=[^\s<])", f"{self.fake_token} ", text)

    def pack(self, rows: Sequence[Sequence[ImageInput]]) -> dict[str, torch.Tensor]:
        """{"pixel_values": (B, n, 3, H, W), "pixel_attention_mask": (B, n, H, W)}, n the most inputs of any row."""
        most = max((len(row) for row in rows), default=0)
        if not most:
            return {}
        sizes = [each.pixels.shape[-2:] for row in rows for each in row]
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        pixels = np.zeros((len(rows), most, 3, height, width), np.float32)
        mask = np.zeros((len(rows), most, height, width), np.int64)
        for b, row in enumerate(rows):
            for n, each in enumerate(row):
                h, w = each.pixels.shape[-2:]
                pixels[b, n, :, :h, :w] = each.pixels
                mask[b, n, :h, :w] = 1
        return {"pixel_values": _tensor(pixels), "pixel_attention_mask": _tensor(mask)}

    def unpack(self, batch: Mapping[str, torch.Tensor], n_image_tokens: Sequence[int]) -> list[list[ImageInput]]:
        pixels = _array(batch.get("pixel_values"))
        mask = _array(batch.get("pixel_attention_mask"))
        rows = np.zeros((len(n_image_tokens), 0, 3, 0, 0), np.float32) if pixels is None else pixels
        if mask is None:
            mask = np.ones((*rows.shape[:2], *rows.shape[-2:]), np.int64)
        if len(rows) != len(n_image_tokens):
            raise ChatError(f"input_ids have {len(n_image_tokens)} rows and pixel_values {len(rows)}; they must agree.")
        unpacked = []
        for b, n in enumerate(n_image_tokens):
            held = int(mask[b].any(axis=(-1, -2)).sum()) if batch.get("pixel_attention_mask") is not None else None
            wanted, rest = divmod(n, self.n_tokens)
            if rest or wanted > rows.shape[1] or (held is not None and held != wanted):
                raise ChatError(
                    f"row {b} of the ids holds {n} image tokens, {self.n_tokens} for each picture, and pixel_values "
                    f"hold {rows.shape[1] if held is None else held} pictures for it; make both with one call of "
                    "the processor."
                )
            sizes = [(int(each[:, 0].sum()), int(each[0].sum())) for each in mask[b, :wanted]]
            unpacked.append([self._input(each[:, :h, :w]) for each, (h, w) in zip(rows[b], sizes, strict=False)])
        return unpacked

    def _inputs(self, image: Image, detail: Detail) -> list[ImageInput]:
        splits = self.settings.do_image_splitting if detail == "auto" else detail == "high"
        rule = halved(self.settings.size) if detail == "low" else self.settings.size
        crops = [image.crop(box) for box in quarters(size_of(image))[:-1]] if splits else []
        return [self._input(self._pixels(each, rule)) for each in (*crops, image)]

    def _pixels(self, image: Image, rule: SizeRule) -> Pixels:
        if self.settings.do_resize:
            image = resize(image, clamped_size(rule, size_of(image)), self.settings.resample)
        return _normalized(image, self.settings)

    def _input(self, pixels: Pixels) -> ImageInput:
        return ImageInput(pixels, self.n_tokens, digest(pixels, "native", self.n_tokens))


def _normalized(image: Image, settings: ImageSettings) -> Pixels:
    return normalize(
        image,
        rescale_factor=settings.rescale_factor if settings.do_rescale else None,
        mean=settings.image_mean if settings.do_normalize else None,
        std=settings.image_std if settings.do_normalize else None,
    )


def _tensor(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> torch.Tensor:
    import torch  # here only: text and pictures are prepared without torch; only the HF surface wants tensors

    return torch.from_numpy(np.ascontiguousarray(array))


def _array(tensor: torch.Tensor | None) -> Pixels | None:
    """A tensor on any device to float32 numpy."""
    return None if tensor is None else np.asarray(tensor.detach().float().cpu().numpy(), np.float32)
