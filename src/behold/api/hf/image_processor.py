"""`processor.image_processor`: pictures to pixel tensors, and the settings that say how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from behold.api.hf.batch import Batch, TensorKind, check_kind, pictures_as
from behold.api.hf.images import flat_images
from behold.chat.media import load_image

if TYPE_CHECKING:
    from PIL.Image import Image

    from behold.processing.layout import ImageLayout


class HFImageProcessor:
    """Called with pictures it gives `pixel_values` and, where the family has them, masks.

    Its settings are attributes that can be read and set: `image_processor.do_image_splitting = False`.
    """

    layout: ImageLayout

    def __init__(self, layout: ImageLayout) -> None:
        self.__dict__["layout"] = layout

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by name."""
        record = self.layout.settings
        return {field.name: getattr(record, field.name) for field in fields(record) if field.name != "kind"}

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - a setting of any type
        if "layout" in self.__dict__ and name in self.settings:
            return self.settings[name]
        raise AttributeError(f"The image processor has no setting {name!r}; it has {', '.join(self.settings)}.")

    def __setattr__(self, name: str, value: object) -> None:
        self.change(**{name: value})

    def change(self, **settings: object) -> None:
        """Set some settings for good.

        Raises:
            OptionError: there is no such setting.
        """
        if settings:
            self.__dict__["layout"] = self.layout_with(settings)

    def layout_with(self, settings: Mapping[str, object]) -> ImageLayout:
        """The layout with some settings changed, this one untouched.

        Raises:
            OptionError: there is no such setting.
        """
        return self.layout.changed(**settings) if settings else self.layout

    def __call__(self, images: object, *, return_tensors: TensorKind = None, **settings: object) -> Batch:
        """Pixel tensors of one picture, several, or lists of them; `settings` hold for this call only."""
        check_kind(return_tensors)
        return self.batch(flat_images(images, load_image), return_tensors, layout=self.layout_with(settings))

    def batch(self, rows: Sequence[Sequence[Image]], kind: TensorKind, *, layout: ImageLayout) -> Batch:
        """Rows of loaded pictures as tensors, arrays or lists."""
        prepared = [[each for picture in layout.prepare(row) for each in picture] for row in rows]
        return Batch(pictures_as(kind, layout.pack(prepared)))
