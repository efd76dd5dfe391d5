#!/usr/bin/env python3
"""Writes fp8-rows.json: rows of numbers as fp8 activations, by the e4m3 of ml_dtypes (JAX's and TensorFlow's).

    python3 test/golden/make_fp8_rows.py

Needs numpy and ml_dtypes 0.5 or newer. A row is cut into blocks of 128; each block is divided by the smallest power of two
from 2^-60 to 2^60 that brings its largest magnitude to 448 or below, and cast to float8_e4m3fn. `x` and `y` are float32
and float32 of the result, as base64 of little-endian bytes; `dtype` is the narrowest type that holds x exactly.
"""

import base64
import json
from pathlib import Path

import ml_dtypes
import numpy as np

E4M3, BF16 = ml_dtypes.float8_e4m3fn, ml_dtypes.bfloat16


def as_fp8(row):
    out = np.empty_like(row)
    for begin in range(0, len(row), 128):
        x = row[begin:begin + 128].astype(np.float64)
        top = np.abs(x).max()
        exponent = -60
        while exponent < 60 and top > 448.0 * 2.0 ** exponent:
            exponent += 1
        q = np.clip(x / 2.0 ** exponent, -448, 448).astype(np.float32).astype(E4M3)
        out[begin:begin + 128] = q.astype(np.float64) * 2.0 ** exponent
    return out


def encoded(values):
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def rows():
    rng = np.random.default_rng(8)
    finite = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float64)
    finite = np.sort(finite[np.isfinite(finite)])
    middles = (finite[1:] + finite[:-1]) / 2
    # Every e4m3 and every middle of two, beside a 448 in each block that keeps the scale at 1.
    for name, values in (("every e4m3", finite), ("every middle of two", middles)):
        blocks = [np.append(values[i:i + 127], 448.0) for i in range(0, len(values), 127)]
        yield name, np.concatenate(blocks)
    blocks = [np.append(np.nextafter(m[i:i + 127], side).astype(np.float32), 448.0)
              for m in (middles.astype(np.float32),) for side in (np.float32(-1e9), np.float32(1e9))
              for i in range(0, len(m), 127)]
    yield "beside every middle of two", np.concatenate(blocks)
    yield "normal", rng.standard_normal(333)
    yield "normal in bf16", rng.standard_normal(333).astype(BF16).astype(np.float64)
    yield "of many sizes", rng.standard_normal(300) * 2.0 ** rng.integers(-30, 30, 300)
    yield "outliers", rng.standard_normal(256) * np.where(rng.random(256) < 0.02, 1000.0, 1.0)
    tops = [448 * 2.0 ** e for e in (-3, 0, 5)]
    yield "largest just at and above a border", np.concatenate(
        [np.append(rng.standard_normal(127) * top / 3000, edge) for top in tops
         for edge in (top, np.nextafter(np.float32(top), np.float32(2 * top)), np.nextafter(np.float32(top), np.float32(0)))])
    yield "zeros and signs", np.concatenate([np.zeros(128), [-1.5] * 128, [0.0] * 127 + [-3e-5]])
    yield "least and largest scale", np.concatenate(
        [rng.standard_normal(128) * 1e-30, rng.standard_normal(128) * 1e30, rng.standard_normal(40) * 2.0 ** -68])


def main():
    out = []
    for name, values in rows():
        x = values.astype(np.float32)
        narrow = bool((x.astype(BF16).astype(np.float32) == x).all())
        y = as_fp8(x)
        assert (y.astype(BF16).astype(np.float32) == y).all() and (as_fp8(y) == y).all(), name
        out.append({"name": name, "dtype": "bf16" if narrow else "f32",
                    "x": encoded(x), "y": encoded(y)})
    path = Path(__file__).parent / "fp8-rows.json"
    path.write_text(json.dumps({"by": f"ml_dtypes {ml_dtypes.__version__}", "rows": out}, indent=1) + "\n")
    print(f"{path}: {len(out)} rows, {path.stat().st_size} bytes")


main()
