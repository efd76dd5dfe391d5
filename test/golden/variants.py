"""The tiny checkpoints that make_golden.py builds: their configs and their random weights.

Every config is written the way the published checkpoints of that family write theirs, since
reading those spellings is part of what is tested. Head dimensions and ranks are the real ones
wherever the size of the files allows; hidden size, layer count, expert count and vocabulary are
as small as they can be.
"""

import math
import zlib
from dataclasses import dataclass, field

import torch

SEED = 20260724


@dataclass
class Variant:
    name: str
    config: dict
    fp8: bool = False           # linears as F8_E4M3 with 128x128 block scales
    mtp: bool = False           # write the tensors of one multi-token-prediction layer too
    fused: bool = False         # write transformers' fused expert tensors
    shards: int = 1
    bias_range: tuple = (0.0, 0.0)      # of e_score_correction_bias
    latent_gain: float = 1.0    # gain of the rows of kv_a (and q_a) that a latent norm follows
    down_gain: float = 0.8      # gain of the routed experts' down_proj
    dtype: str = "bfloat16"
    seed: int = SEED
    generation: dict = field(default_factory=dict)


def yarn(factor, original, mscale):
    return {"beta_fast": 32, "beta_slow": 1, "factor": factor, "mscale": mscale, "mscale_all_dim": mscale,
            "original_max_position_embeddings": original, "type": "yarn"}


COMMON = {
    "attention_bias": False, "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 128,
    "initializer_range": 0.02, "intermediate_size": 192, "moe_intermediate_size": 64, "moe_layer_freq": 1,
    "n_routed_experts": 8, "n_shared_experts": 1, "num_attention_heads": 2, "num_experts_per_tok": 3,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "pretraining_tp": 1, "kv_lora_rank": 512,
    "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-6, "rope_theta": 10000, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
    "use_cache": True, "vocab_size": 256, "bos_token_id": 0, "eos_token_id": 1,
}

V2_LITE = {
    **COMMON, "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "max_position_embeddings": 10240, "n_group": 1, "n_shared_experts": 2, "norm_topk_prob": False,
    "q_lora_rank": None, "rope_scaling": yarn(40, 256, 0.707), "routed_scaling_factor": 1.0,
    "scoring_func": "softmax", "topk_group": 1, "topk_method": "greedy",
}
V2 = {
    **COMMON, "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
    "first_k_dense_replace": 0, "kv_lora_rank": 256, "max_position_embeddings": 5120, "n_group": 4,
    "n_shared_experts": 2, "norm_topk_prob": False, "q_lora_rank": 96, "rope_scaling": yarn(40, 128, 0.707),
    "routed_scaling_factor": 16.0, "scoring_func": "softmax", "topk_group": 2,
    "topk_method": "group_limited_greedy",
}
V3 = {
    **COMMON, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "ep_size": 1,
    "max_position_embeddings": 5120, "n_group": 4, "norm_topk_prob": True, "num_nextn_predict_layers": 0,
    "q_lora_rank": 192, "rope_scaling": yarn(40, 128, 1.0), "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid", "topk_group": 2, "topk_method": "noaux_tc",
}
V3_FP8 = {
    **V3, "num_hidden_layers": 3, "num_nextn_predict_layers": 1,
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                            "weight_block_size": [128, 128]},
}
MOONLIGHT = {
    **COMMON, "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
    "kv_lora_rank": 256, "max_position_embeddings": 8192, "n_group": 1, "n_shared_experts": 2,
    "norm_topk_prob": True, "num_nextn_predict_layers": 0, "q_lora_rank": None, "rms_norm_eps": 1e-5,
    "rope_scaling": None, "rope_theta": 50000.0, "routed_scaling_factor": 2.446, "scoring_func": "sigmoid",
    "topk_group": 1, "topk_method": "noaux_tc",
}
# scoring_func is absent on purpose: the published file lacks it, and it means sigmoid.
GLM = {
    **COMMON, "architectures": ["Glm4MoeLiteForCausalLM"], "model_type": "glm4_moe_lite",
    "kv_lora_rank": 256, "max_position_embeddings": 4096, "n_group": 1, "norm_topk_prob": True,
    "num_attention_heads": 3, "num_key_value_heads": 3, "num_experts_per_tok": 4,
    "num_nextn_predict_layers": 0, "partial_rotary_factor": 1.0, "q_lora_rank": 64, "qk_nope_head_dim": 192,
    "v_head_dim": 256, "rms_norm_eps": 1e-5, "rope_scaling": None, "rope_theta": 1000000,
    "routed_scaling_factor": 1.8, "tie_word_embeddings": True, "topk_group": 1, "topk_method": "noaux_tc",
    "bos_token_id": None, "eos_token_id": [1, 2],
}
del GLM["bos_token_id"]

VARIANTS = [
    Variant("v2-lite", V2_LITE),
    # softmax weights times 16: a small gain keeps the routed experts as loud as the rest of the block
    Variant("v2", V2, down_gain=0.12),
    # negative biases: many allowed choice scores fall below 0, where a mask of 0 picks masked experts
    Variant("v3", V3, shards=2, bias_range=(-0.9, 0.1)),
    Variant("v3-fp8", V3_FP8, fp8=True, mtp=True, shards=2, bias_range=(-0.9, 0.1)),
    # small latents: rms_norm_eps 1e-5 and the class default 1e-6 give different answers
    Variant("moonlight", MOONLIGHT, fused=True, bias_range=(-0.3, 0.3), latent_gain=0.01),
    Variant("glm-4.7-flash", GLM, bias_range=(-0.3, 0.3), latent_gain=0.01),
]
for v in VARIANTS:
    v.generation = {"_from_model_config": True, "eos_token_id": v.config["eos_token_id"], "do_sample": False}


def gaussian(seed, name, shape):
    """Standard normal values that depend on the tensor's name and not on the order of creation."""
    g = torch.Generator().manual_seed(seed * 4294967296 + zlib.crc32(name.encode()))
    return torch.randn(shape, generator=g, dtype=torch.float32)


def bf16(t):
    return t.to(torch.bfloat16).float()


def quantize_blocks(w):
    """F8_E4M3 values and float32 scales per 128x128 block with w = q * scale; edge blocks are cut."""
    rows, cols = w.shape
    scale = torch.empty(math.ceil(rows / 128), math.ceil(cols / 128))
    q = torch.empty(rows, cols, dtype=torch.float8_e4m3fn)
    back = torch.empty_like(w)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            at = (slice(i * 128, (i + 1) * 128), slice(j * 128, (j + 1) * 128))
            s = w[at].abs().max() / 448
            scale[i, j] = s
            q[at] = (w[at] / s).clamp(-448, 448).to(torch.float8_e4m3fn)
            back[at] = q[at].float() * s
    return q, scale, back


def make_tensors(v):
    """Returns (stored, values): the tensors as written to disk under published names, and what they
    are worth in float32 (the same, dequantised). MTP tensors are in `stored` only."""
    c, stored, values = v.config, {}, {}
    d, heads = c["hidden_size"], c["num_attention_heads"]
    n, r, vd, kv, q = (c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"],
                       c["q_lora_rank"])
    layers, mtp_from = c["num_hidden_layers"], c["num_hidden_layers"]

    def put(name, value, kind=torch.bfloat16):
        value = value.to(kind)
        stored[name] = value
        if not name.startswith(f"model.layers.{mtp_from}."):
            values[name] = value.float()

    def linear(name, out, inp, gain=1.0, row_gain=None):
        w = gaussian(v.seed, name, (out, inp)) * (gain / math.sqrt(inp))
        if row_gain is not None:
            w = w * row_gain[:, None]
        if not v.fp8:
            return put(name + ".weight", w)
        # blocks of unlike size, so that a scale taken from the wrong block is far off
        b = torch.exp2(gaussian(v.seed, name + "#blocks", (math.ceil(out / 128), math.ceil(inp / 128))).clamp(-1, 1))
        w = w * b.repeat_interleave(128, 0)[:out].repeat_interleave(128, 1)[:, :inp]
        qw, scale, back = quantize_blocks(w)
        stored[name + ".weight"], stored[name + ".weight_scale_inv"] = qw, scale
        if not name.startswith(f"model.layers.{mtp_from}."):
            values[name + ".weight"] = back

    def norm(name, size):
        put(name + ".weight", 1 + 0.25 * gaussian(v.seed, name, (size,)).clamp(-2.5, 2.5))

    def plain(name, out, inp, gain=1.0):
        put(name + ".weight", gaussian(v.seed, name, (out, inp)) * (gain / math.sqrt(inp)))

    def mlp(name, width, down_gain):
        linear(name + ".gate_proj", width, d, 1.5)
        linear(name + ".up_proj", width, d, 1.5)
        linear(name + ".down_proj", d, width, down_gain)

    def layer(p, moe):
        norm(p + "input_layernorm", d)
        norm(p + "post_attention_layernorm", d)
        a = p + "self_attn."
        if q is None:
            linear(a + "q_proj", heads * (n + r), d, 1.4)
        else:
            linear(a + "q_a_proj", q, d, v.latent_gain)
            norm(a + "q_a_layernorm", q)
            linear(a + "q_b_proj", heads * (n + r), q, 1.4)
        rows = torch.cat([torch.full((kv,), v.latent_gain), torch.full((r,), 1.4)])
        linear(a + "kv_a_proj_with_mqa", kv + r, d, 1.0, rows)
        norm(a + "kv_a_layernorm", kv)
        linear(a + "kv_b_proj", heads * (n + vd), kv, 1.2)
        linear(a + "o_proj", d, heads * vd, 1.2)
        if not moe:
            return mlp(p + "mlp", c["intermediate_size"], 0.8)
        plain(p + "mlp.gate", c["n_routed_experts"], d, 1.6)
        if c["topk_method"] == "noaux_tc":
            lo, hi = v.bias_range
            g = torch.Generator().manual_seed(v.seed + zlib.crc32(p.encode()))
            bias = lo + (hi - lo) * torch.rand(c["n_routed_experts"], generator=g)
            put(p + "mlp.gate.e_score_correction_bias", bias, torch.float32)
        for e in range(c["n_routed_experts"]):
            mlp(f"{p}mlp.experts.{e}", c["moe_intermediate_size"], v.down_gain)
        mlp(p + "mlp.shared_experts", c["moe_intermediate_size"] * c["n_shared_experts"], 0.8)

    # a tied head would give logits of standard deviation sqrt(d); its embedding is made smaller
    plain("model.embed_tokens", c["vocab_size"], d, 1.8 if c["tie_word_embeddings"] else math.sqrt(d))
    for i in range(layers):
        layer(f"model.layers.{i}.", i >= c["first_k_dense_replace"])
    norm("model.norm", d)
    if not c["tie_word_embeddings"]:
        plain("lm_head", c["vocab_size"], d, 1.8)
    if v.mtp:
        p = f"model.layers.{mtp_from}."
        layer(p, True)
        norm(p + "enorm", d)
        norm(p + "hnorm", d)
        plain(p + "eh_proj", d, 2 * d)
        norm(p + "shared_head.norm", d)
        stored[p + "shared_head.head.weight"] = stored["lm_head.weight"].clone()
        stored[p + "embed_tokens.weight"] = stored["model.embed_tokens.weight"].clone()
    return stored, values


def fuse_experts(values, count):
    """Per-expert tensors of published checkpoints -> the fused tensors of transformers' modules."""
    out = {k: t for k, t in values.items() if ".mlp.experts." not in k}
    for p in sorted({k.split(".mlp.experts.")[0] for k in values if ".mlp.experts." in k}):
        e = [f"{p}.mlp.experts.{i}." for i in range(count)]
        out[p + ".mlp.experts.gate_up_proj"] = torch.stack(
            [torch.cat([values[x + "gate_proj.weight"], values[x + "up_proj.weight"]]) for x in e])
        out[p + ".mlp.experts.down_proj"] = torch.stack([values[x + "down_proj.weight"] for x in e])
    return out
