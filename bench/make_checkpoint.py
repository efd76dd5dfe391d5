"""Writes a checkpoint folder of DeepSeek-V2-Lite's shape (31 GB of bf16 noise), to measure loading where none can be had.

    python3 bench/make_checkpoint.py DIR [LAYERS]

Then measures, on the same machine and the same files, what loading cannot pass: parallel reads of the files, and pinned
copies to the GPU. Prints one JSON object. Needs PyTorch for the second.
"""

import concurrent.futures
import json
import os
import struct
import sys
import time

CONFIG = {
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "vocab_size": 102400,
    "hidden_size": 2048,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "topk_method": "greedy",
    "scoring_func": "softmax",
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    },
    "max_position_embeddings": 163840,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 100000,
    "eos_token_id": 100001,
}
SHARDS = 4
BLOCK = 64 << 20
THREADS = 16


def tensors(layers):
    """Names and shapes, in the order in which such checkpoints have them."""
    c = CONFIG
    d, heads, rank, rope = c["hidden_size"], c["num_attention_heads"], c["kv_lora_rank"], c["qk_rope_head_dim"]
    nope, value = c["qk_nope_head_dim"], c["v_head_dim"]
    yield "model.embed_tokens.weight", (c["vocab_size"], d)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (d,)
        yield f"{at}.self_attn.q_proj.weight", (heads * (nope + rope), d)
        yield f"{at}.self_attn.kv_a_proj_with_mqa.weight", (rank + rope, d)
        yield f"{at}.self_attn.kv_a_layernorm.weight", (rank,)
        yield f"{at}.self_attn.kv_b_proj.weight", (heads * (nope + value), rank)
        yield f"{at}.self_attn.o_proj.weight", (d, heads * value)
        yield f"{at}.post_attention_layernorm.weight", (d,)
        groups = [("mlp", c["intermediate_size"])]
        if layer >= c["first_k_dense_replace"]:
            inner = c["moe_intermediate_size"]
            yield f"{at}.mlp.gate.weight", (c["n_routed_experts"], d)
            groups = [(f"mlp.experts.{e}", inner) for e in range(c["n_routed_experts"])]
            groups.append(("mlp.shared_experts", c["n_shared_experts"] * inner))
        for name, inner in groups:
            yield f"{at}.{name}.gate_proj.weight", (inner, d)
            yield f"{at}.{name}.up_proj.weight", (inner, d)
            yield f"{at}.{name}.down_proj.weight", (d, inner)
    yield "model.norm.weight", (d,)
    yield "lm_head.weight", (c["vocab_size"], d)


def noise():
    """bf16 numbers between -2^-5 and 2^-5: random signs and mantissas, exponents of 0x7a and below."""
    words = bytearray(os.urandom(BLOCK))
    table = bytes((b & 0x80) | (0x3A + (b & 1)) for b in range(256))
    words[1::2] = words[1::2].translate(table)
    return memoryview(bytes(words))


def write_shard(path, entries, block):
    header, at = {}, 0
    for name, shape in entries:
        size = 2
        for n in shape:
            size *= n
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as out:
        out.write(struct.pack("<Q", len(text)) + text)
        left = at
        while left > 0:
            left -= out.write(block[: min(left, BLOCK)])
    return at


def write(folder, layers):
    os.makedirs(folder, exist_ok=True)
    entries = list(tensors(layers))
    block = noise()
    names, total = {}, 0
    sizes = [shape[0] * (shape[1] if len(shape) > 1 else 1) for _, shape in entries]
    share, shards, sum_ = sum(sizes) / SHARDS, [[]], 0
    for entry, size in zip(entries, sizes):
        if sum_ > share * len(shards):
            shards.append([])
        shards[-1].append(entry)
        sum_ += size
    with concurrent.futures.ThreadPoolExecutor(SHARDS) as pool:
        files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        jobs = [pool.submit(write_shard, os.path.join(folder, f), s, block) for f, s in zip(files, shards)]
        total = sum(job.result() for job in jobs)
    for file, shard in zip(files, shards):
        names.update({name: file for name, _ in shard})
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as out:
        json.dump({"metadata": {"total_size": total}, "weight_map": names}, out)
    with open(os.path.join(folder, "config.json"), "w") as out:
        json.dump({**CONFIG, "num_hidden_layers": layers}, out)
    return total


def read_speed(folder):
    """Bytes per second of THREADS readers with buffers of their own."""
    files = [os.path.join(folder, f) for f in os.listdir(folder) if f.endswith(".safetensors")]
    piece = 16 << 20
    pieces = [(f, at) for f in files for at in range(0, os.path.getsize(f), piece)]

    def run(part):
        buffer = bytearray(piece)
        got = 0
        for file, at in part:
            fd = os.open(file, os.O_RDONLY)
            got += os.preadv(fd, [buffer], at)
            os.close(fd)
        return got

    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        total = sum(pool.map(run, [pieces[i::THREADS] for i in range(THREADS)]))
    return total / (time.perf_counter() - began)


def copy_speed():
    import torch

    host = torch.empty(1 << 30, dtype=torch.uint8).pin_memory()
    device = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    best = 0
    for _ in range(5):
        torch.cuda.synchronize()
        began = time.perf_counter()
        device.copy_(host, non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, host.numel() / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    target, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else CONFIG["num_hidden_layers"]
    began = time.perf_counter()
    written = write(target, count)
    wrote = time.perf_counter() - began
    print(
        json.dumps(
            {
                "bytes": written,
                "writeSeconds": wrote,
                "fileReadBytesPerSecond": read_speed(target),
                "pinnedCopyBytesPerSecond": copy_speed(),
            }
        )
    )
