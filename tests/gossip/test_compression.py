"""Formats on the wire: exact sizes, errors within what is stated, and nothing that comes harms anything."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peer.gossip.compression import BLOCK, PIECE, WireFormat, pieces, wire_format
from peer.gossip.wire_dtype import WireDtype

SIZES = (1, 2, 7, BLOCK, BLOCK + 1, 50_826, PIECE, 2 * PIECE + 3 * BLOCK + 5)
LOSSY = ("bf16", "fp16", "int8", "top-k:0.1", "top-k:0.003", "top-k:1")
every_format = pytest.mark.parametrize("name", ["fp32", *LOSSY])


def made(name: str) -> WireFormat:
    return wire_format(WireDtype.parse(name))


def vector(d: int, seed: int = 0) -> Tensor:
    """Magnitudes over many decades, as parameters have."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(d, generator=generator) * torch.exp(3 * torch.randn(d, generator=generator))


def decoded(wire: WireFormat, payload: Tensor, d: int) -> Tensor:
    out = torch.empty(d)
    for start, stop in pieces(d):
        wire.piece(payload, start, out[start:stop])
    return out


def size(name: str, d: int) -> int:
    """The table at the head of compression.py, written once more."""
    blocks, cut = -(-d // 1024), [min(65_536, d - at) for at in range(0, d, 65_536)]
    match name.split(":"):
        case ["fp32"]:
            return 4 * d
        case ["bf16"]:
            return 2 * d
        case ["fp16"]:
            return 2 * d + 4 * blocks
        case ["int8"]:
            return d + 4 * blocks
        case [_, fraction]:
            return 4 * sum(math.ceil(float(fraction) * p) for p in cut)
    raise AssertionError(name)


@every_format
@pytest.mark.parametrize("d", SIZES)
def test_sizes_are_exact_and_errors_within_what_is_stated(name: str, d: int) -> None:
    wire, x = made(name), vector(d)
    payload = wire.encode(x, wire.payload(d))
    assert payload.dtype is torch.uint8
    assert payload.numel() == wire.num_bytes(d) == size(name, d)
    assert wire.is_sound(payload, d)
    got = decoded(wire, payload, d)
    largest = torch.cat([b.abs().amax().expand(b.numel()) for b in torch.split(x, BLOCK)])
    error = (got - x).abs()
    match name.partition(":")[0]:
        case "fp32":
            assert torch.equal(got, x)
        case "bf16":
            assert bool((error <= 2**-8 * x.abs()).all())
        case "fp16":
            assert bool((error <= torch.maximum(2**-11 * x.abs(), 2**-39 * largest)).all())
        case "int8":
            assert bool((error <= largest * (1 / 254 + 1e-6)).all())
        case _:
            for before, after in zip(torch.split(x, PIECE), torch.split(got, PIECE), strict=True):
                kept = after != 0
                assert int(kept.sum()) == math.ceil(wire.name.fraction * before.numel())
                assert bool((((after - before).abs() <= 2**-8 * before.abs()) | ~kept).all())
                rest = before[~kept].abs()
                assert rest.numel() == 0 or before[kept].abs().min() >= rest.max()


@pytest.mark.parametrize("name", LOSSY)
def test_what_is_encoded_may_be_a_difference_and_rounding_it_again_changes_nothing(name: str) -> None:
    wire, x, y, d = made(name), vector(70_001), vector(70_001, 1), 70_001
    payload = wire.encode(x, wire.payload(d), minus=y)
    assert torch.equal(payload, wire.encode(x - y, wire.payload(d)))
    got = decoded(wire, payload, d)
    if (
        name != "int8"
    ):  # its scale is the largest magnitude, which the multiple 127 of a rounded scale need not give back
        assert torch.equal(decoded(wire, wire.encode(got, wire.payload(d)), d), got)


def test_the_ratios_to_float32_are_what_is_promised() -> None:
    d = 50_826
    ratios = {name: made(name).num_bytes(d) / (4 * d) for name in ("bf16", "fp16", "int8", "top-k:0.1", "top-k:0.01")}
    assert ratios == pytest.approx(
        {"bf16": 0.5, "fp16": 0.501, "int8": 0.251, "top-k:0.1": 0.1, "top-k:0.01": 0.01}, rel=2e-3
    )


def test_numbers_are_little_endian_and_where_the_head_of_the_file_says() -> None:
    """Against numpy's own little-endian types, so that another machine's decoder can be written from the text."""
    x = torch.zeros(3000)
    x[5], x[1024], x[2999] = 1.0, -254.0, 0.5
    raw = made("int8").encode(x, made("int8").payload(3000)).numpy().tobytes()
    assert np.allclose(np.frombuffer(raw[:12], "<f4"), [1 / 127, 2.0, 0.5 / 127])
    assert [raw[12 + 5], raw[12 + 1024], raw[12 + 2999]] == [127, 256 - 127, 127]
    raw = made("fp16").encode(x, made("fp16").payload(3000)).numpy().tobytes()
    assert np.frombuffer(raw[:12], "<f4").tolist() == [2.0**-14, 2.0**-7, 2.0**-15]
    assert np.frombuffer(raw[12:], "<f2")[[5, 1024, 2999]].tolist() == [2.0**14, -(2.0**7) * 254, 2.0**14]
    raw = made("top-k:0.001").encode(x, made("top-k:0.001").payload(3000)).numpy().tobytes()
    assert np.frombuffer(raw[:6], "<u2").tolist() == [5, 1024, 2999]
    assert [int(n) << 16 for n in np.frombuffer(raw[6:], "<u2")] == [0x3F800000, 0xC37E0000, 0x3F000000]


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("at", [0, 65_535, 65_536, 70_000])
def test_a_vector_that_is_not_finite_is_not_sound(name: str, bad: float, at: int) -> None:
    wire, x = made(name), vector(70_001)
    x[at] = bad
    assert not wire.is_sound(wire.encode(x, wire.payload(x.numel())), x.numel())


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-38, 1e-30, 1e30])
def test_extreme_magnitudes_neither_overflow_nor_become_nonsense(name: str, scale: float) -> None:
    wire, x = made(name), torch.randn(3000, generator=torch.Generator().manual_seed(0)) * scale
    payload = wire.encode(x, wire.payload(3000))
    assert wire.is_sound(payload, 3000)
    got = decoded(wire, payload, 3000)
    assert bool((got.abs() <= 1.01 * x.abs().max() + 1e-44).all())
    if scale >= 1e-30:
        kept = got != 0
        torch.testing.assert_close(got[kept], x[kept], rtol=0.01, atol=0.02 * scale)


@given(st.sampled_from(LOSSY), st.integers(1, 3000), st.data())
def test_whatever_bytes_come_are_refused_or_finite(name: str, d: int, data: st.DataObject) -> None:
    wire = made(name)
    seed = data.draw(st.integers(0, 2**32 - 1))
    payload = torch.randint(
        0, 256, (wire.num_bytes(d),), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    around = torch.full((d + 2,), 7.0)
    if wire.is_sound(payload, d):
        assert torch.isfinite(wire.piece(payload, 0, around[1:-1])).all()
    assert around[0] == around[-1] == 7.0


@given(st.sampled_from(LOSSY), st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_a_damaged_payload_is_refused_or_finite(name: str, flips: list[tuple[int, int]]) -> None:
    wire, d = made(name), 2100
    payload = wire.encode(vector(d), wire.payload(d))
    for at, mask in flips:
        payload[at % payload.numel()] ^= mask
    if wire.is_sound(payload, d):
        assert torch.isfinite(decoded(wire, payload, d)).all()


@pytest.mark.parametrize("indices", [[3, 3, 9], [3, 9, 4], [3, 9, 30], [0, 1, 65_535], [29, 28, 27]])
def test_indices_out_of_order_twice_or_out_of_range_are_refused(indices: list[int]) -> None:
    wire = made("top-k:0.1")
    payload = wire.encode(torch.arange(30.0), wire.payload(30))
    assert wire.is_sound(payload, 30)
    payload[:6] = torch.from_numpy(np.array(indices, "<u2").view(np.uint8))
    assert not wire.is_sound(payload, 30)


@pytest.mark.parametrize("name", ["fp16", "int8"])
@pytest.mark.parametrize("scale", [torch.nan, -1.0, torch.inf, 1e38])
def test_scales_that_make_no_sense_are_refused(name: str, scale: float) -> None:
    wire = made(name)
    payload = wire.encode(torch.ones(2000), wire.payload(2000))
    payload[4:8] = torch.tensor([scale]).view(torch.uint8)
    assert not wire.is_sound(payload, 2000)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bf-16", "unknown format 'bf-16'; did you mean bf16"),
        ("int8:0.5", "int8 takes no fraction"),
        ("top-k", "top-k:R needs a fraction R"),
        ("top-k:0", "top-k:R needs a fraction R"),
        ("top-k:1.01", "top-k:R needs a fraction R"),
        ("top-k:nan", "top-k:R needs a fraction R"),
    ],
)
def test_a_wrong_name_is_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        WireDtype.parse(text)


def test_names_have_one_spelling() -> None:
    assert [str(WireDtype.parse(text)) for text in ("top-k:0.10", "top-k:1e-1", " bf16 ")] == [
        "top-k:0.1",
        "top-k:0.1",
        "bf16",
    ]


def test_a_machine_of_another_byte_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.byteorder", "big")
    with pytest.raises(ValueError, match="little-endian"):
        made("bf16")
