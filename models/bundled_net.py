"""A plain PyTorch DeepSeek-V3 forward for training small models; parameters carry the published names.

MLA in its multi-head form, RoPE on interleaved pairs, sigmoid routing with a correction bias
(one group). All routed experts are computed for every token and weighted with a mostly zero gate.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x):
        f = x.float()
        return (f * torch.rsqrt(f.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight).to(x.dtype)


def linear(inp, out, gain=1.0):
    layer = nn.Linear(inp, out, bias=False)
    nn.init.normal_(layer.weight, std=gain / math.sqrt(inp))
    return layer


def rotate(x, cos, sin):
    """Adjacent pairs (x0, x1), (x2, x3), ... turn by one angle each. x [..., T, r]; cos, sin [T, r/2]."""
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c, out_gain):
        super().__init__()
        d, eps = c["hidden_size"], c["rms_norm_eps"]
        self.h, self.n, self.r = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        self.v, self.rank = c["v_head_dim"], c["kv_lora_rank"]
        self.q_a_proj = linear(d, c["q_lora_rank"])
        self.q_a_layernorm = RMSNorm(c["q_lora_rank"], eps)
        self.q_b_proj = linear(c["q_lora_rank"], self.h * (self.n + self.r))
        self.kv_a_proj_with_mqa = linear(d, self.rank + self.r)
        self.kv_a_layernorm = RMSNorm(self.rank, eps)
        self.kv_b_proj = linear(self.rank, self.h * (self.n + self.v))
        self.o_proj = linear(self.h * self.v, d, out_gain)

    def forward(self, x, cos, sin):
        b, t, _ = x.shape
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(b, t, self.h, -1).transpose(1, 2)
        q = torch.cat([q[..., :self.n], rotate(q[..., self.n:], cos, sin)], -1)
        c, k_rope = self.kv_a_proj_with_mqa(x).split([self.rank, self.r], -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(c)).view(b, t, self.h, -1).transpose(1, 2)
        k_rope = rotate(k_rope[:, None], cos, sin).expand(-1, self.h, -1, -1)
        k = torch.cat([kv[..., :self.n], k_rope], -1)
        v = F.pad(kv[..., self.n:], (0, self.n + self.r - self.v))      # flash attention wants equal widths
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)[..., :self.v]
        return self.o_proj(o.transpose(1, 2).reshape(b, t, -1))


class MLP(nn.Module):
    def __init__(self, d, width, out_gain):
        super().__init__()
        self.gate_proj, self.up_proj = linear(d, width), linear(d, width)
        self.down_proj = linear(width, d, out_gain)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MoE(nn.Module):
    def __init__(self, c, out_gain):
        super().__init__()
        d, self.e, self.mi = c["hidden_size"], c["n_routed_experts"], c["moe_intermediate_size"]
        self.k, self.scale = c["num_experts_per_tok"], c["routed_scaling_factor"]
        self.gate = nn.Parameter(torch.randn(self.e, d) / math.sqrt(d))
        self.gate_up = nn.Parameter(torch.randn(self.e, 2 * self.mi, d) / math.sqrt(d))
        self.down = nn.Parameter(torch.randn(self.e, self.mi, d) * (out_gain / math.sqrt(self.mi)))
        self.shared_experts = MLP(d, self.mi * c["n_shared_experts"], out_gain)
        self.register_buffer("bias", torch.zeros(self.e))

    def forward(self, x):
        b, t, d = x.shape
        x2 = x.reshape(-1, d)
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x2.float(), self.gate.float()).sigmoid()
            index = (scores.detach() + self.bias).topk(self.k, dim=-1).indices
            weight = scores.gather(1, index)
            weight = weight / (weight.sum(-1, keepdim=True) + 1e-20) * self.scale
            mask = torch.zeros_like(scores).scatter(1, index, weight)
        gate, up = F.linear(x2, self.gate_up.flatten(0, 1)).view(-1, self.e, 2 * self.mi).chunk(2, -1)
        act = F.silu(gate) * up * mask.unsqueeze(-1).to(gate.dtype)
        out = act.flatten(1) @ self.down.flatten(0, 1).to(act.dtype)
        return out.view(b, t, d) + self.shared_experts(x), (mask > 0).sum(0)


class Layer(nn.Module):
    def __init__(self, c, moe, out_gain):
        super().__init__()
        d, eps = c["hidden_size"], c["rms_norm_eps"]
        self.input_layernorm, self.post_attention_layernorm = RMSNorm(d, eps), RMSNorm(d, eps)
        self.self_attn = Attention(c, out_gain)
        self.mlp = MoE(c, out_gain) if moe else MLP(d, c["intermediate_size"], out_gain)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        y, load = self.mlp(self.post_attention_layernorm(x)), None
        if isinstance(y, tuple):
            y, load = y
        return x + y, load


class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        d, count = c["hidden_size"], c["num_hidden_layers"]
        self.embed_tokens = nn.Embedding(c["vocab_size"], d)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        gain = 1 / math.sqrt(2 * count)
        self.layers = nn.ModuleList(Layer(c, i >= c["first_k_dense_replace"], gain) for i in range(count))
        self.norm = RMSNorm(d, c["rms_norm_eps"])
        self.lm_head = linear(d, c["vocab_size"], 0.5)
        r = c["qk_rope_head_dim"]
        inv = 1.0 / c["rope_theta"] ** (torch.arange(0, r, 2, dtype=torch.float64) / r)
        angle = torch.arange(c["max_position_embeddings"], dtype=torch.float64)[:, None] * inv
        self.register_buffer("cos", angle.cos().float())
        self.register_buffer("sin", angle.sin().float())

    def hidden(self, ids):
        t = ids.shape[1]
        x, loads = self.embed_tokens(ids), []
        for layer in self.layers:
            x, load = layer(x, self.cos[:t], self.sin[:t])
            if load is not None:
                loads.append(load)
        return self.norm(x), torch.stack(loads)

    def forward(self, ids, targets):
        """Mean cross entropy over targets that are not -100, and the tokens each expert got [layers, E]."""
        x, load = self.hidden(ids)
        logits = self.lm_head(x).float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100), load

    @torch.no_grad()
    def logits(self, ids):
        return self.lm_head(self.hidden(ids)[0]).float()

    @torch.no_grad()
    def balance(self, load, rate):
        """Raises the bias of experts that got too few tokens and lowers that of the others (DeepSeek-V3, 2.1.2)."""
        mean = load.float().mean(1, keepdim=True)
        step = rate * (mean - load).sign()
        for layer, s in zip([x for x in self.layers if isinstance(x.mlp, MoE)], step):
            layer.mlp.bias.add_(s)

    @torch.no_grad()
    def round_weights(self):
        for p in self.parameters():
            p.copy_(p.to(torch.bfloat16).float())


def published_tensors(net):
    """The weights under DeepSeek's names: bf16, the correction bias float32, experts one by one."""
    out = {}
    for name, value in net.state_dict().items():
        if name in ("cos", "sin"):
            continue
        value = value.detach().cpu()
        key = name if name.startswith("lm_head") else "model." + name
        if name.endswith("mlp.gate"):
            out[key + ".weight"] = value.to(torch.bfloat16)
        elif name.endswith("mlp.bias"):
            out[key[:-len("bias")] + "gate.e_score_correction_bias"] = value.float()
        elif name.endswith("mlp.gate_up"):
            for e, w in enumerate(value.to(torch.bfloat16)):
                p = key[:-len("gate_up")] + f"experts.{e}."
                out[p + "gate_proj.weight"], out[p + "up_proj.weight"] = [x.contiguous() for x in w.chunk(2)]
        elif name.endswith("mlp.down"):
            for e, w in enumerate(value.to(torch.bfloat16)):
                out[key[:-len("down")] + f"experts.{e}.down_proj.weight"] = w.t().contiguous()
        else:
            out[key] = value.to(torch.bfloat16).contiguous()
    return out


@torch.no_grad()
def load_published(net, folder):
    """Reads what published_tensors wrote; every tensor of the folder must find its place."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        found.update(load_file(file))
    names = {}
    for name, value in net.state_dict().items():
        if name in ("cos", "sin"):
            continue
        key = name if name.startswith("lm_head") else "model." + name
        if name.endswith("mlp.gate"):
            new = found.pop(key + ".weight")
        elif name.endswith("mlp.bias"):
            new = found.pop(key[:-len("bias")] + "gate.e_score_correction_bias")
        elif name.endswith("mlp.gate_up"):
            p = key[:-len("gate_up")] + "experts."
            new = torch.stack([torch.cat([found.pop(f"{p}{e}.{x}_proj.weight") for x in ("gate", "up")])
                               for e in range(value.shape[0])])
        elif name.endswith("mlp.down"):
            p = key[:-len("down")] + "experts."
            new = torch.stack([found.pop(f"{p}{e}.down_proj.weight").t() for e in range(value.shape[0])])
        else:
            new = found.pop(key)
        names[name] = new.float()
    if found:
        raise ValueError(f"{folder}: tensors without a place: {sorted(found)[:5]}")
    missing = net.load_state_dict(names, strict=False)
    assert set(missing.missing_keys) == {"cos", "sin"} and not missing.unexpected_keys
