"""What quantizing did to a model: a built-in picture goes through it, and every layer's output is compared."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw

from behold.api.turns import user_message
from behold.errors import OptionError
from behold.models.load import full_weights
from behold.nn.attention import AttentionPlan, PlainCache
from behold.quant.report import MeasuredLayer, watching

if TYPE_CHECKING:
    from behold.checkpoint.files import CheckpointFiles
    from behold.models.base import VisionLanguageModel
    from behold.processing.processor import Processor

QUESTION = "What do we see in this image? Name the shapes, their colours and where they are."
SIDE = 384


@dataclass(frozen=True)
class QuantizationReport:
    """One record for each layer that the scheme reaches, in the order of the model."""

    layers: tuple[MeasuredLayer, ...]

    @property
    def bytes_before(self) -> int:
        """What these layers take in the checkpoint."""
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        """What they take now."""
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def fallbacks(self) -> tuple[MeasuredLayer, ...]:
        """The layers that were over their gate and are stored more safely than asked."""
        return tuple(layer for layer in self.layers if layer.scheme != layer.asked)

    def record(self) -> dict[str, Any]:
        """As --json prints it."""
        return {
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "layers": [asdict(layer) for layer in self.layers],
        }


def measure(model: VisionLanguageModel, processor: Processor, files: CheckpointFiles) -> QuantizationReport:
    """Runs the built-in picture and question through a model once.

    Raises:
        OptionError: the model is not quantized.
        WeightsError: the checkpoint's files are no longer what they were.
    """
    if not model.quantized_layers:
        raise OptionError('The model is not quantized: load it with quantize="int8", "int4" or "float8".')
    with watching(model, model.quantized_layers) as watch:
        _run(model, processor)
    return QuantizationReport(tuple(watch.errors(model.quantized_layers, full_weights(model, files))))


def picture() -> Image.Image:
    """The built-in picture: shapes and stripes on a colour gradient, always the same."""
    across, down = Image.linear_gradient("L").rotate(90).resize((SIDE, SIDE)), Image.linear_gradient("L")
    sheet = Image.merge("RGB", (across, down.resize((SIDE, SIDE)), Image.new("L", (SIDE, SIDE), 128)))
    pen = ImageDraw.Draw(sheet)
    pen.ellipse((40, 60, 170, 190), fill=(220, 30, 40))
    pen.rectangle((210, 50, 340, 160), fill=(30, 60, 200), outline=(255, 255, 255), width=4)
    pen.polygon([(60, 340), (130, 220), (200, 340)], fill=(20, 140, 60))
    for left in range(230, 350, 16):
        pen.line((left, 220, left + 20, 340), fill=(0, 0, 0), width=4)
    return sheet


@torch.inference_mode()
def _run(model: VisionLanguageModel, processor: Processor) -> None:
    """One pass over the prompt, without the engine: nothing that it may have kept is spared."""
    prompt = processor.chat([user_message([picture()], QUESTION)])
    pictures = model.encode_images(prompt.images)
    rows = torch.cat([pictures[span.image] for span in prompt.spans])
    at = torch.cat([torch.arange(span.start, span.stop) for span in prompt.spans]).to(model.device)
    spans = tuple((span.start, span.stop) for span in prompt.spans if span.bidirectional)
    plan = AttentionPlan((len(prompt.ids),), (0,), (0,), (spans,))
    embeddings = model.embed(torch.tensor(prompt.ids, device=model.device), rows, at)
    positions = model.positions(len(prompt.ids)).to(model.device)
    last = torch.tensor([len(prompt.ids) - 1], device=model.device)
    model.logits(model.hidden(embeddings, positions, PlainCache(plan), last))
