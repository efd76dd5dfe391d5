"""Measures what PyTorch's libraries reach on this GPU at the shapes of `mla bench kernels`: cuBLAS, cuDNN, grouped_mm.

    python3 bench/peers.py 'gemm n=3072 k=2048 m=8' 'mlaPrefill h=16 l=4096' ...     ids, as `mla bench kernels --list`
    python3 bench/peers.py ceilings                                                  what the GPU itself can do

Prints one JSON object a line: {"id", "us", "by"}; ids that no library here has an operation for are left out. As in
`mla bench kernels`, an operation is timed in a CUDA graph of at least 50 of them over inputs that together take 1 GiB.
`mla bench kernels --peers` runs this beside its own figures.
"""

import json
import re
import sys

import torch

COLD_BYTES = 2**30
MIN_OPERATIONS = 50
LONG_GRAPH_US = 20_000
SAMPLES = 15


def time_us(issue, sets, guess_us=None):
    """Microseconds per call of issue(i), i < sets, in a graph of many."""
    for i in range(min(sets, 3)):
        issue(i)
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    if guess_us is None:
        begin.record()
        issue(0)
        end.record()
        end.synchronize()
        guess_us = begin.elapsed_time(end) * 1000
    operations = max(1 if guess_us > LONG_GRAPH_US else sets, min(MIN_OPERATIONS, max(1, int(LONG_GRAPH_US / guess_us))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(operations):
            issue(i % sets)
    graph.replay()
    torch.cuda.synchronize()
    taken = []
    for _ in range(SAMPLES):
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(begin.elapsed_time(end) * 1000 / operations)
    return sorted(taken)[len(taken) // 2]


def sets_for(nbytes):
    return max(1, min(256, -(-COLD_BYTES // nbytes)))


def random(*shape, stddev=1.0):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * stddev


def gemm(n, k, m):
    sets = sets_for(2 * (m * k + n * k + m * n))
    x, w = random(sets, m, k), random(sets, n, k, stddev=k**-0.5)
    y = torch.empty(sets, m, n, device="cuda", dtype=torch.bfloat16)
    return time_us(lambda i: torch.mm(x[i], w[i].t(), out=y[i]), sets), "cuBLAS"


def prefill(h, l):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    sets = sets_for(2 * l * h * (192 + 192 + 128 + 128))
    q, k = random(sets, 1, h, l, 192), random(sets, 1, h, l, 192)
    v = random(sets, 1, h, l, 128)
    attend = torch.nn.functional.scaled_dot_product_attention
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        return time_us(lambda i: attend(q[i], k[i], v[i], is_causal=True, scale=192**-0.5), sets), "cuDNN"


EXPERTS = {"lite": (64, 6, 2048, 1408), "v3/8": (32, 1, 7168, 2048)}


def experts(name, tokens, down):
    count, per_token, d, inner = EXPERTS[name]
    n, k = (d, inner) if down else (2 * inner, d)
    rows = tokens * per_token
    copies = max(1, -(-COLD_BYTES // (count * n * k * 2)))
    w = random(copies, count, n, k, stddev=k**-0.5)
    x = random(rows, k)
    offsets = []
    for i in range(16):
        generator = torch.Generator().manual_seed(i)
        chosen = torch.stack([torch.randperm(count, generator=generator)[:per_token] for _ in range(min(tokens, 512))])
        counts = torch.bincount(chosen.flatten(), minlength=count).float()
        counts = torch.floor(counts * rows / counts.sum()).int()
        counts[0] += rows - counts.sum()
        offsets.append(torch.cumsum(counts, 0).int().cuda())
    grouped = torch._grouped_mm
    return time_us(lambda i: grouped(x, w[i % copies].transpose(-2, -1), offs=offsets[i % 16]), 16), "torch grouped_mm"


def measure(name):
    if found := re.fullmatch(r"gemm n=(\d+) k=(\d+) m=(\d+)", name):
        return gemm(*map(int, found.groups()))
    if found := re.fullmatch(r"mlaPrefill h=(\d+) l=(\d+)", name):
        return prefill(*map(int, found.groups()))
    if found := re.fullmatch(r"moe(GateUp|Down) (\S+) tokens=(\d+)", name):
        return experts(found[2], int(found[3]), found[1] == "Down")
    return None


def ceilings():
    """The rates that no kernel passes: a reduction over 4 GiB, and large products."""
    data = torch.randint(0, 2**31 - 1, (2**30,), device="cuda", dtype=torch.int32)
    read = time_us(lambda _: torch.max(data), 1, 1000)
    a, b = random(8192, 8192), random(8192, 8192)
    product = time_us(lambda _: torch.mm(a, b), 1, 1500)
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    one = torch.ones((), device="cuda")
    product8 = time_us(
        lambda _: torch._scaled_mm(a8, b8, scale_a=one, scale_b=one, out_dtype=torch.bfloat16), 1, 800
    )
    flops = 2 * 8192**3
    return {
        "gpu": torch.cuda.get_device_name(),
        "bytesPerSecond": 4 * 2**30 / read * 1e6,
        "bf16FlopsPerSecond": flops / product * 1e6,
        "fp8FlopsPerSecond": flops / product8 * 1e6,
    }


def main(names):
    for name in names:
        if name == "ceilings":
            print(json.dumps(ceilings()), flush=True)
            continue
        try:
            found = measure(name)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            print(json.dumps({"id": name, "error": str(error).splitlines()[0]}), flush=True)
            continue
        if found is not None:
            print(json.dumps({"id": name, "us": found[0], "by": f"{found[1]}, PyTorch {torch.__version__}"}), flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main(sys.argv[1:])
