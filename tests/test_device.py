"""Which device and which number type."""

from __future__ import annotations

import pytest
import torch

from behold import device as devices
from behold.device import resolve_device, resolve_device_map, resolve_dtype
from behold.errors import DeviceError

CPU = torch.device("cpu")
HAS_CUDA = torch.cuda.is_available()


@pytest.fixture
def fast_bf16(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(devices, "cpu_has_fast_bf16", lambda: request.param)


def test_auto_is_cuda_where_there_is_one() -> None:
    expected = torch.device("cuda", 0) if HAS_CUDA else CPU
    assert resolve_device("auto") == resolve_device(None) == resolve_device() == expected


@pytest.mark.parametrize("given", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
def test_the_cpu_has_one_name(given: str | torch.device) -> None:
    assert resolve_device(given) == CPU


@pytest.mark.parametrize("given", ["cuda:99", 99, torch.device("cuda", 99)])
def test_a_device_that_is_not_there(given: str | int | torch.device) -> None:
    with pytest.raises(DeviceError, match=r'cuda:99.*CUDA device.*"cpu"|99.*CUDA device.*"cpu"'):
        resolve_device(given)


@pytest.mark.parametrize("given", ["gpu", "", "cuda:x", "xpu", "meta"])
def test_a_device_that_is_not_known(given: str) -> None:
    with pytest.raises(DeviceError, match='"cpu"'):
        resolve_device(given)


@pytest.mark.parametrize("given", ["cpu", {"": "cpu"}, {"model.vision": "cpu", "model.text": "cpu"}])
def test_device_maps_of_one_device(given: str | dict[str, str]) -> None:
    assert resolve_device_map(given) == CPU


@pytest.mark.parametrize("given", ["auto", "balanced", "sequential", None])
def test_device_maps_that_let_us_choose(given: str | None) -> None:
    assert resolve_device_map(given) == resolve_device("auto")


def test_a_device_map_over_several_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_cuda", lambda device: device)
    with pytest.raises(DeviceError, match="2 devices; a model lives on one"):
        resolve_device_map({"vision": "cpu", "text": "cuda:0"})
    with pytest.raises(DeviceError, match="0 devices"):
        resolve_device_map({})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("float32", torch.float32),
        ("fp32", torch.float32),
        ("torch.bfloat16", torch.bfloat16),
        ("bf16", torch.bfloat16),
        ("half", torch.float16),
        (torch.float16, torch.float16),
    ],
)
def test_a_named_type_is_taken_at_its_word(given: str | torch.dtype, expected: torch.dtype) -> None:
    assert resolve_dtype(given, CPU, torch.float32) is expected


@pytest.mark.parametrize("given", ["float64", "int8", torch.float64, torch.int8, "float8"])
def test_other_types_are_refused(given: str | torch.dtype) -> None:
    with pytest.raises(DeviceError, match='"bfloat16"'):
        resolve_dtype(given, CPU)


@pytest.mark.parametrize("fast_bf16", [False], indirect=True)
@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, "bfloat16", torch.float32, None, "int8"])
def test_a_cpu_without_bf16_units_never_computes_in_bf16_by_itself(
    stored: torch.dtype | str | None, fast_bf16: None
) -> None:
    assert resolve_dtype("auto", CPU, stored) is torch.float32
    assert resolve_dtype(None, CPU, stored) is torch.float32


@pytest.mark.parametrize("fast_bf16", [True], indirect=True)
@pytest.mark.parametrize(
    ("stored", "expected"),
    [("bfloat16", torch.bfloat16), (torch.float16, torch.bfloat16), (torch.float32, torch.float32)],
)
def test_a_cpu_with_bf16_units_uses_them_for_half_sized_checkpoints(
    stored: torch.dtype | str, expected: torch.dtype, fast_bf16: None
) -> None:
    assert resolve_dtype("auto", CPU, stored) is expected


@pytest.mark.parametrize(
    ("line", "fast"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16", True),
        ("flags\t\t: fpu amx_bf16 amx_tile", True),
        ("Features\t: fp asimd bf16", True),
        ("flags\t\t: fpu avx2 fma", False),
        ("model name\t: bf16", False),
    ],
)
def test_bf16_units_are_read_from_the_processors_flags(line: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.platform, "system", lambda: "Linux")
    monkeypatch.setattr(devices.Path, "read_text", lambda self, **options: f"processor\t: 0\n{line}\n")
    devices.cpu_flags.cache_clear()
    devices.cpu_has_fast_bf16.cache_clear()
    try:
        assert devices.cpu_has_fast_bf16() is fast
    finally:
        devices.cpu_flags.cache_clear()
        devices.cpu_has_fast_bf16.cache_clear()
