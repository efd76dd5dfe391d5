"""Known ways to get this model family wrong, as patches of a transformers model.

make_golden.py applies each of them to the reference and records how far the log-probabilities move:
a mutation that moves nothing anywhere would be one that the golden data cannot catch.
Each entry is (name, apply): apply(model, kit) patches the model in place and returns False when the
mutation does not exist for this architecture.
"""

import types

import torch

import transformers.models.deepseek_v2.modeling_deepseek_v2 as v2_module


def attentions(model):
    return [layer.self_attn for layer in model.model.layers]


def gates(model):
    return [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]


def is_v2(model):
    return model.config.model_type == "deepseek_v2"


def has_yarn(model):
    return model.config.rope_parameters.get("rope_type", "default") == "yarn"


def no_yarn_softmax_factor(model, kit):
    if not has_yarn(model):
        return False
    for a in attentions(model):
        a.scaling = a.qk_head_dim ** -0.5


def no_yarn_frequencies(model, kit):
    if not has_yarn(model):
        return False
    rope, r = model.model.rotary_emb, model.config.qk_rope_head_dim
    base = model.config.rope_parameters["rope_theta"]
    rope.inv_freq = 1.0 / base ** (torch.arange(0, r, 2, dtype=torch.float32) / r)


def half_rope(model, kit):
    if not is_v2(model):
        model.config.rope_interleave = False
        return

    def rotate(xq, xk, freqs):
        cos, sin = freqs.real.unsqueeze(1), freqs.imag.unsqueeze(1)

        def one(x):
            a, b = x.chunk(2, dim=-1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)
        return one(xq), one(xk)
    kit.patch(v2_module, "apply_rotary_emb", rotate)


def latent_scale(model, kit):
    for a in attentions(model):
        a.scaling = a.scaling * (a.qk_head_dim / (a.kv_lora_rank + a.qk_rope_head_dim)) ** 0.5


class Identity(torch.nn.Module):
    def forward(self, x):
        return x


def unnormed_latent(model, kit):
    for a in attentions(model):
        a.kv_a_layernorm = Identity()


def latent_norm_without_weight(model, kit):
    for a in attentions(model):
        a.kv_a_layernorm.weight.data.fill_(1.0)


def latent_eps(model, kit):
    if model.config.rms_norm_eps == 1e-6:
        return False
    for a in attentions(model):
        for norm in (a.kv_a_layernorm, getattr(a, "q_a_layernorm", None)):
            if norm is not None:
                norm.variance_epsilon = 1e-6


def route(gate, hidden, *, biased=False, twice=False, mask=float("-inf"), softmax=False):
    """The noaux_tc router with its possible mistakes as switches."""
    logits = torch.nn.functional.linear(hidden.reshape(-1, gate.hidden_dim).float(), gate.weight.float())
    scores = logits.softmax(-1) if softmax else logits.sigmoid()
    choice = scores + gate.e_score_correction_bias
    groups = choice.view(choice.shape[0], gate.num_group, -1)
    if gate.num_group > 1:
        best = groups.topk(2, dim=-1)[0].sum(-1).topk(gate.topk_group, dim=-1)[1]
        keep = torch.zeros(groups.shape[:2]).scatter_(1, best, 1).bool()
        groups = groups.masked_fill(~keep.unsqueeze(-1), mask)
    choice = groups.reshape(choice.shape)
    index = choice.topk(gate.top_k, dim=-1)[1]
    weight = (choice if biased else scores).gather(1, index)
    if gate.norm_topk_prob:
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
    weight = weight * gate.routed_scaling_factor * (gate.routed_scaling_factor if twice else 1.0)
    return logits, weight, index


def rerouted(**how):
    def apply(model, kit):
        if is_v2(model):
            return False
        if "mask" in how and model.config.n_group == 1:
            return False
        for g in gates(model):
            g.forward = types.MethodType(lambda self, hidden: route(self, hidden, **how), g)
    return apply


def scaling_twice(model, kit):
    for g in gates(model):
        factor = g.routed_scaling_factor
        g.register_forward_hook(lambda m, i, o, f=factor: (o[0], o[1] * f, o[2]))


def no_shared_expert(model, kit):
    for layer in model.model.layers:
        if hasattr(layer.mlp, "shared_experts"):
            layer.mlp.shared_experts.down_proj.weight.data.zero_()


def mask_hides_newest(model, kit):
    kit.mask_shift = -1


def mask_shows_next(model, kit):
    kit.mask_shift = 1


MUTATIONS = [
    ("no YaRN softmax factor", no_yarn_softmax_factor),
    ("no YaRN frequencies", no_yarn_frequencies),
    ("RoPE in half layout", half_rope),
    ("softmax scale (rank + rope)^-0.5", latent_scale),
    ("latent not normed", unnormed_latent),
    ("latent norm without weight", latent_norm_without_weight),
    ("latent norm eps 1e-6 for rms_norm_eps", latent_eps),
    ("routing weights with bias", rerouted(biased=True)),
    ("group mask 0 for -inf", rerouted(mask=0.0)),
    ("softmax for sigmoid scores", rerouted(softmax=True)),
    ("routed scaling factor twice", scaling_twice),
    ("no shared expert", no_shared_expert),
    ("mask hides the newest key", mask_hides_newest),
    ("mask shows the next key", mask_shows_next),
]
