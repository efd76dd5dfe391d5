#!/usr/bin/env python3
"""Builds the tiny checkpoints of this folder and their reference outputs with Hugging Face transformers.

    python3 test/golden/make_golden.py [--out test/golden] [--only v3 ...]

Runs on a CPU in float32 (see README.md for versions and for the layout of golden.json).
Where transformers differs from what serving engines compute, the reference is set right here:
 - q_a_layernorm and kv_a_layernorm are built with eps 1e-6 whatever rms_norm_eps says: set from the config;
 - transformers before July 2026 lacks the YaRN factor in the softmax scale of deepseek_v2, and versions
   before April 2026 mask groups with 0 in the V3 router: both are asserted, so an old version fails loudly.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import mutations
from variants import VARIANTS, fuse_experts, make_tensors

MARGIN = 2e-2           # smallest router margin at any prompt position
STEPS = 32              # greedy continuation
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}     # no fused kernels anywhere
LENGTHS = [1, 7, 333, 610]
TOP = 5


class Kit:
    """What a mutation may change besides the model: the mask, and functions of modules (undone later)."""

    def __init__(self):
        self.mask_shift, self.undo = 0, []

    def patch(self, module, name, value):
        self.undo.append((module, name, getattr(module, name)))
        setattr(module, name, value)

    def restore(self):
        for module, name, value in self.undo:
            setattr(module, name, value)


def build(v, values):
    raw = {k: x for k, x in v.config.items() if k not in ("quantization_config",)}
    config = AutoConfig.for_model(**raw)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, **PLAIN).eval()
    state = fuse_experts(values, v.config["n_routed_experts"])
    if v.config["tie_word_embeddings"]:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    missing = model.load_state_dict(state, strict=True)
    assert not missing.missing_keys and not missing.unexpected_keys
    correct(model, v)
    return model


def correct(model, v):
    """Sets the latent norms' eps and checks the softmax scale against the formula."""
    c = v.config
    scale = (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5
    if c["rope_scaling"]:
        m = 0.1 * c["rope_scaling"]["mscale_all_dim"] * math.log(c["rope_scaling"]["factor"]) + 1
        scale *= m * m
    for a in mutations.attentions(model):
        for norm in (a.kv_a_layernorm, getattr(a, "q_a_layernorm", None)):
            if norm is not None:
                norm.variance_epsilon = c["rms_norm_eps"]
        assert abs(a.scaling / scale - 1) < 1e-12, (a.scaling, scale)
    for norm in (model.model.norm, model.model.layers[0].input_layernorm):
        assert norm.variance_epsilon == c["rms_norm_eps"]
    if not mutations.is_v2(model) and c["n_group"] > 1:
        gate, x = mutations.gates(model)[0], torch.randn(64, c["hidden_size"])
        ours, theirs = mutations.route(gate, x)[2], gate(x)[2]
        assert torch.equal(ours.sort(-1)[0], theirs.sort(-1)[0]), "group mask of this transformers is not -inf"


def router_margin(gate, logits):
    """Smallest distance, per token, between what was chosen and what was left out (experts and groups)."""
    v2 = not hasattr(gate, "e_score_correction_bias")
    choice = logits.softmax(-1) if v2 else logits.sigmoid() + gate.e_score_correction_bias
    groups = 1 if getattr(gate, "topk_method", "") == "greedy" else gate.num_group
    margin = torch.full((choice.shape[0],), math.inf)
    if groups > 1:
        g = choice.view(choice.shape[0], groups, -1)
        score = g.max(-1)[0] if v2 else g.topk(2, dim=-1)[0].sum(-1)
        top = score.sort(-1, descending=True)
        margin = top[0][:, gate.topk_group - 1] - top[0][:, gate.topk_group]
        keep = torch.zeros_like(score).scatter_(1, top[1][:, :gate.topk_group], 1).bool()
        choice = g.masked_fill(~keep.unsqueeze(-1), -math.inf).reshape(choice.shape)
    s = choice.sort(-1, descending=True)[0]
    return torch.minimum(margin, s[:, gate.top_k - 1] - s[:, gate.top_k])


class Reference:
    def __init__(self, model):
        self.model, self.margins = model, []
        for gate in mutations.gates(model):
            gate.register_forward_hook(lambda m, i, o: self.margins.append(router_margin(m, o[0])))

    @torch.no_grad()
    def forward(self, ids, cache=None, use_cache=False):
        """Returns logits [B,T,V], the least router margin per token [B,T], and the cache."""
        self.margins.clear()
        ids = torch.as_tensor(ids)
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=use_cache)
        margin = torch.stack(self.margins).min(0)[0].view(ids.shape)
        return out.logits.float(), margin, out.past_key_values


def settle(ref, tokens, vocab, rng, start=0):
    """Replaces tokens until every position's router margin is at least MARGIN."""
    while True:
        margin = ref.forward([tokens])[1][0]
        bad = [p for p in range(start, len(tokens)) if margin[p] < 1.05 * MARGIN]
        if not bad:
            return tokens
        for p in bad:
            tokens[p] = rng.randrange(3, vocab)


@torch.no_grad()
def continuations(ref, prefix, last):
    """Greedy continuations of prefix + [x] for each x in last, in one batch; least gap and margin of each
    (-1 where the prompt's own last token is too close to another routing)."""
    cache = None
    if prefix:
        cache = ref.forward([prefix], use_cache=True)[2]
        cache.batch_repeat_interleave(len(last))
    ids = torch.tensor(last)[:, None]
    worst, out = torch.full((len(last),), math.inf), []
    for step in range(STEPS + 1):
        logits, margin, cache = ref.forward(ids, cache, True)
        first = margin[:, 0] if step == 0 else first
        worst = torch.minimum(worst, margin[:, 0])
        if step == STEPS:
            break
        best = logits[:, 0].topk(2, dim=-1)
        worst = torch.minimum(worst, best[0][:, 0] - best[0][:, 1])
        ids = best[1][:, :1]
        out.append(ids)
    return torch.cat(out, 1), worst.masked_fill(first < 1.05 * MARGIN, -1.0)


def make_prompt(ref, length, vocab, eos, rng, rounds):
    """A prompt with safe router margins whose greedy continuation has the widest margins found."""
    found, long = None, length >= 50
    for _ in range(max(1, rounds // 6) if long else rounds):
        if length == 1:
            prefix, last = [], list(range(3, vocab))
        else:
            keep = found[1][:-4] if found and long else []      # of a long prompt only the end is drawn again
            fresh = [rng.randrange(3, vocab) for _ in range(length - 1 - len(keep))]
            prefix = settle(ref, keep + fresh, vocab, rng, len(keep))
            last = rng.sample(range(3, vocab), 48 if long else 200)
        greedy, worst = continuations(ref, prefix, last)
        # a continuation that repeats one token tests little
        dull = torch.tensor([len(set(g)) < 8 for g in greedy.tolist()])
        worst = torch.where(dull, worst.clamp(max=0.0) - 0.5, worst)
        for e in eos:
            worst = worst.masked_fill((greedy == e).any(1), -1.0)
        i = int(worst.argmax())
        if found is None or worst[i] > found[0]:
            found = (float(worst[i]), prefix + [last[i]])
        if found[0] >= 1.05 * MARGIN or length == 1:
            break
    assert found[0] > 1e-3, f"no usable continuation for length {length}"
    return found[1]


def record(ref, tokens):
    """Reference outputs of one prompt; everything from one pass over prompt + continuation."""
    ids = list(tokens)
    for _ in range(STEPS):      # no cache here: the plainest possible path
        ids.append(int(ref.forward([ids])[0][0, -1].argmax()))
    logits, margin, _ = ref.forward([ids])
    logits, margin = logits[0], margin[0]
    lp = torch.log_softmax(logits, -1)
    n = len(tokens)
    best = logits.topk(2, dim=-1)[0]
    gaps = (best[:, 0] - best[:, 1])[n - 1:n - 1 + STEPS]
    return {
        "tokens": tokens,
        "logprobs": [None] + [float(lp[i - 1, ids[i]]) for i in range(1, n)],
        "top": [None] + [[[int(k), float(x)] for x, k in zip(*lp[i - 1].topk(TOP))] for i in range(1, n)],
        "lastLogits": logits[n - 1].tolist(),
        "greedy": ids[n:],
        "greedyLogprobs": [float(lp[i - 1, ids[i]]) for i in range(n, n + STEPS)],
        "greedyGaps": gaps.tolist(),
        "minRouterMargin": float(margin[:n].min()),
        "minGreedyRouterMargin": float(margin[n:n + STEPS - 1].min()),
    }


@torch.no_grad()
def log_probabilities(model, tokens, kit):
    mask = None
    if kit.mask_shift:
        t = len(tokens)
        shown = torch.ones(t, t).tril(kit.mask_shift).bool() | (torch.eye(t).bool() if kit.mask_shift > 0 else False)
        shown[0, 0] = True      # a row that sees nothing is NaN, not a wrong answer
        mask = torch.zeros(t, t).masked_fill(~shown, torch.finfo(torch.float32).min)[None, None]
    return torch.log_softmax(model(input_ids=torch.tensor([tokens]), attention_mask=mask, use_cache=False).logits[0], -1)


def try_mutations(v, values, prompts):
    """Greatest change of any log-probability (over positions and vocabulary), for each mutation."""
    table = {}
    base = build(v, values)
    want = [log_probabilities(base, p, Kit()) for p in prompts]
    for name, apply in mutations.MUTATIONS:
        model, kit = build(v, values), Kit()
        if apply(model, kit) is False:
            continue
        try:
            table[name] = max(float((log_probabilities(model, p, kit) - w).gather(
                1, torch.tensor(p[1:] + [0])[:, None]).abs().max()) for p, w in zip(prompts, want))
        finally:
            kit.restore()
    return table


def write_checkpoint(v, folder, stored, model):
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.safetensors*"):
        old.unlink()
    if v.fused:
        biases = [gate.e_score_correction_bias for gate in mutations.gates(model)]
        model.to(torch.bfloat16)
        for gate, bias in zip(mutations.gates(model), biases):      # stays in float32, as transformers keeps it
            gate.e_score_correction_bias = bias
        model.save_pretrained(folder, save_original_format=False)
        return
    (folder / "config.json").write_text(json.dumps(v.config, indent=2, sort_keys=True) + "\n")
    (folder / "generation_config.json").write_text(json.dumps(v.generation, indent=2) + "\n")
    if v.shards == 1:
        save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(stored)
    cut = next(i for i, n in enumerate(names) if n.startswith("model.layers.1.mlp.experts.3.up_proj"))
    parts = [set(names[:cut]), set(names[cut:])]
    # as in the published files, a weight and its scale may lie in different shards
    for n in [n for n in parts[0] if n.startswith("model.layers.1.") and n.endswith("_scale_inv")][:6]:
        parts[0].remove(n)
        parts[1].add(n)
    where, size = {}, 0
    for i, part in enumerate(parts):
        file = f"model-{i + 1:05d}-of-{len(parts):05d}.safetensors"
        save_file({n: stored[n] for n in sorted(part)}, folder / file, metadata={"format": "pt"})
        where.update({n: file for n in part})
        size += sum(stored[n].numel() * stored[n].element_size() for n in part)
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def dump(value):
    """JSON with 9 significant digits, which float32 survives exactly."""
    if isinstance(value, float):
        return "%.9g" % value
    if isinstance(value, list):
        return "[" + ",".join(map(dump, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",\n".join(json.dumps(k) + ":" + dump(x) for k, x in value.items()) + "}"
    return json.dumps(value)


def reload_check(v, folder, prompts):
    """The files alone, read by transformers, give the recorded numbers (not for fp8: needs a GPU there)."""
    if v.fp8:
        return "not checked"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **PLAIN).eval()
    correct(model, v)
    ref = Reference(model)
    worst = 0.0
    for p in prompts:
        logits = ref.forward([p["tokens"]])[0][0, -1]
        worst = max(worst, float((logits - torch.tensor(p["lastLogits"])).abs().max()))
    assert worst < 1e-4, worst
    return "%.1e" % worst


def run(v, out, rounds):
    begun = time.time()
    stored, values = make_tensors(v)
    ref = Reference(build(v, values))
    eos = v.config["eos_token_id"]
    eos = eos if isinstance(eos, list) else [eos]
    rng = random.Random(v.seed)
    prompts = []
    for length in LENGTHS:
        tokens = make_prompt(ref, length, v.config["vocab_size"], eos, rng, rounds)
        prompts.append(record(ref, tokens))
        p = prompts[-1]
        assert p["minRouterMargin"] >= MARGIN, p["minRouterMargin"]
        assert not set(p["greedy"]) & set(eos)
        print(f"{v.name} {length}: margin {p['minRouterMargin']:.4f} greedy margin "
              f"{p['minGreedyRouterMargin']:.4f} gap {min(p['greedyGaps']):.4f} "
              f"logit std {torch.tensor(p['lastLogits']).std():.2f} distinct {len(set(p['greedy']))} "
              f"at {time.time() - begun:.0f} s", flush=True)
    table = try_mutations(v, values, [p["tokens"] for p in prompts[1:]])
    folder = out / v.name
    write_checkpoint(v, folder, stored, ref.model)
    golden = {"name": v.name, "torch": torch.__version__, "transformers": transformers.__version__,
              "seed": v.seed, "prompts": prompts}
    (folder / "golden.json").write_text(dump(golden) + "\n")
    print(f"{v.name}: reload {reload_check(v, folder, prompts)}, {time.time() - begun:.0f} s", flush=True)
    return table


def write_table(tables, path):
    lines = ["Greatest change of a token's log-probability when the reference is made wrong in one way",
             "(written by make_golden.py; a dash: this checkpoint has no such thing).", "",
             "| mutation | " + " | ".join(tables) + " |", "|---" * (len(tables) + 1) + "|"]
    for name, _ in mutations.MUTATIONS:
        row = [f"{t[name]:.3g}" if name in t else "-" for t in tables.values()]
        lines.append(f"| {name} | " + " | ".join(row) + " |")
        best = max([t[name] for t in tables.values() if name in t], default=0)
        assert best > 5e-2, f"no checkpoint notices: {name}"
    path.write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--rounds", type=int, default=12, help="tries at a wide-margin greedy continuation")
    args = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    tables = {v.name: run(v, args.out, args.rounds) for v in VARIANTS if not args.only or v.name in args.only}
    if not args.only:
        write_table(tables, args.out / "mutations.md")


if __name__ == "__main__":
    main()
