#!/usr/bin/env python3
"""Trains kjv-10m, the DeepSeek-V3-architecture model that the package ships, and checks the saved files.

    python3 models/make_corpus.py models/build/corpus.json
    python3 models/train_tokenizer.py models/build/corpus.json models/kjv-10m
    python3 models/train_bundled.py --out models/kjv-10m --steps 13500
    python3 models/train_bundled.py --out models/kjv-10m --resume models/kjv-10m --openings 0.1 --lr 5e-4 --steps 3600

The second run teaches short prompts: "In the beginning" alone is too rare a beginning in the first.

The model is meant to recite: it sees its 2 MB of text some hundred times, in windows of 512 and 2048 ids. Training uses the plain
PyTorch forward of bundled_net.py (float32 master weights, bf16 autocast, all experts computed and
masked: at this size that is faster than sorting). What is saved are bf16 weights under DeepSeek's
published tensor names, and everything reported about them is measured with transformers' own
DeepseekV3ForCausalLM loaded from the saved folder.
"""

import argparse
import bisect
import json
import math
import random
import shutil
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from bundled_net import Net, load_published, published_tensors

SEED = 1611
WINDOW, LONG = 512, 2048       # two steps of three see short windows, the third long ones
BOS, EOS, USER, ASSISTANT = 0, 1, 3, 4
QUESTIONS = ["Define {}.", "What is {}?", "{}"]
PASSAGES, PROMPT, CONTINUE = 20, 16, 24
BIAS_RATE = 1e-3

CONFIG = {
    "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "attention_bias": False,
    "attention_dropout": 0.0, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": 2,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 256, "initializer_range": 0.02,
    "intermediate_size": 768, "kv_lora_rank": 512, "max_position_embeddings": 2048, "moe_intermediate_size": 192,
    "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 8, "n_shared_experts": 1, "norm_topk_prob": True,
    "num_attention_heads": 4, "num_experts_per_tok": 2, "num_hidden_layers": 4, "num_key_value_heads": 4,
    "num_nextn_predict_layers": 0, "q_lora_rank": 128, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 10000, "routed_scaling_factor": 1.5,
    "scoring_func": "sigmoid", "tie_word_embeddings": False, "topk_group": 1, "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16", "use_cache": True, "v_head_dim": 128, "vocab_size": 4096,
}


class Text:
    """The corpus as one stream of ids, with the places where a window may begin."""

    def __init__(self, corpus, tok, device, openings_share):
        ids, lines, documents, openings = [], [], [], []
        newline = {i for t, i in tok.get_vocab().items() if t.endswith("Ċ")}
        for text in corpus["train"]:
            documents.append(len(ids))
            d = tok.encode(text).ids
            lines += [len(ids)] + [len(ids) + i + 1 for i, t in enumerate(d[:-1]) if t in newline]
            if text.split("\n")[0][-1].isdigit():     # a chapter: its first verse follows the title
                openings.append(lines[bisect.bisect(lines, documents[-1])])
            ids += d + [EOS, BOS]
        self.lines, self.ids, self.text_end = lines, ids, len(ids)
        targets = list(ids)
        rng, chats = random.Random(SEED), []
        for _ in range(8):
            pairs = [(q.format(w), a) for w, a in corpus["chat"] for q in QUESTIONS]
            rng.shuffle(pairs)
            for question, answer in pairs:
                chats.append(len(ids))
                q = [USER] + tok.encode(question).ids + [ASSISTANT]
                a = tok.encode(answer).ids + [EOS]
                ids += q + a + [BOS]
                targets += [-100] * len(q) + a + [BOS]      # questions are given, not learned
        pad = LONG + 1
        self.stream = torch.tensor(ids + [EOS] * pad, device=device)
        self.targets = torch.tensor(targets + [-100] * pad, device=device)
        self.starts = [torch.tensor(x, device=device) for x in (lines, documents, chats, openings)]
        self.generator = torch.Generator(device=device).manual_seed(SEED)
        self.device, self.shares = device, [0.30, 0.15, 0.10, openings_share]

    def batch(self, rows, window):
        """[rows, window] inputs and targets; every window begins with BOS, wherever it lies in the text:
        30% at a line, 15% at a document, 10% at a question, some at a chapter's first verse, the rest anywhere."""
        def pick(count, high):
            return torch.randint(high, (count,), generator=self.generator, device=self.device)
        share = [int(rows * x) for x in self.shares]
        at = [pick(rows - sum(share), self.text_end - window)]
        at += [s[pick(n, len(s))] for s, n in zip(self.starts, share)]
        at = torch.cat(at)[:, None] + torch.arange(window, device=self.device)
        x = self.stream[at - 1]
        x[:, 0] = BOS
        return x, self.targets[at]


def choose_passages(text, tok):
    """20 places where a line begins and whose first 16 ids occur only once in the whole text; drawn before training."""
    rng, out = random.Random(SEED + 1), []
    stream = text.ids[:text.text_end]
    seen = {}
    for i in range(len(stream) - PROMPT):
        key = tuple(stream[i:i + PROMPT])
        seen[key] = seen.get(key, 0) + 1
    first_entry = next(i for i, at in enumerate(text.lines) if tok.decode(stream[at:at + 8]).startswith("ABASEMENT"))
    while len(out) < PASSAGES:
        lines = text.lines[:first_entry] if len(out) < 15 else text.lines[first_entry:]
        at = rng.choice(lines)
        ids = stream[at:at + PROMPT + CONTINUE]
        prompt, expected = ids[:PROMPT], ids[PROMPT:]
        words, rest = tok.decode(prompt, skip_special_tokens=False), tok.decode(expected, skip_special_tokens=False)
        plain = BOS not in ids and EOS not in ids and "\ufffd" not in words + rest
        if plain and seen[tuple(prompt)] == 1 and tok.encode(words).ids == prompt and tok.encode(words + rest).ids == ids:
            out.append({"text": words, "continuation": rest, "prompt": [BOS] + prompt, "expected": expected})
    return out


def learning_rate(step, steps, peak):
    warm = 150
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


def train(net, text, args, device):
    decay = [p for p in net.parameters() if p.dim() > 1]
    plain = [p for p in net.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.02}, {"params": plain, "weight_decay": 0.0}],
                                  lr=args.lr, betas=(0.9, 0.95), eps=1e-9, fused=device == "cuda")
    run = torch.compile(net, dynamic=False) if device == "cuda" else net
    steps, begun, history, sums = args.steps or 10 ** 9, None, [], None
    step = 0
    while step < steps:
        if step == 40:      # the compiler is done
            torch.cuda.synchronize() if device == "cuda" else None
            begun = time.time()
        if step == 140 and not args.steps:
            torch.cuda.synchronize()
            each = (time.time() - begun) / 100
            steps = int(args.seconds / each / 100) * 100
            print(f"{each * 1e3:.2f} ms a step, {args.rows * WINDOW / each / 1e6:.2f} M tokens/s: {steps} steps", flush=True)
        rate = learning_rate(step, steps, args.lr)
        for group in optimizer.param_groups:
            group["lr"] = rate
        x, y = text.batch(args.rows * WINDOW // LONG, LONG) if step % 3 == 2 else text.batch(args.rows, WINDOW)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss, load = run(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step < 0.8 * steps:      # auxiliary-loss-free balancing, fixed for the last fifth
            net.balance(load, BIAS_RATE)
        sums = loss.detach() if sums is None else sums * 0.98 + loss.detach() * 0.02
        step += 1
        if step % 200 == 0 or step == steps or step in (1, 10, 40):
            share = (load / load.sum(1, keepdim=True)).float()
            history.append([step, round(float(sums), 4)])
            print(f"step {step} loss {float(loss.detach()):.4f} smooth {float(sums):.4f} lr {rate:.2e} "
                  f"load {float(share.min()):.3f}..{float(share.max()):.3f}"
                  + (f" {time.time() - begun:.0f} s" if begun else ""), flush=True)
    return {"steps": steps, "tokens": steps * args.rows * WINDOW, "loss": history[-1][1], "history": history,
            "seconds": round(time.time() - begun, 1) if begun else None}


def save(net, out):
    out.mkdir(parents=True, exist_ok=True)
    (out / "config.json").write_text(json.dumps(CONFIG, indent=2, sort_keys=True) + "\n")
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "do_sample": False, "max_new_tokens": 256}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    tensors = published_tensors(net)
    names, half, size, cut = sorted(tensors), sum(t.nbytes for t in tensors.values()) / 2, 0, None
    for i, n in enumerate(names):
        size += tensors[n].nbytes
        if cut is None and size >= half:
            cut = i + 1
    where = {}
    for i, part in enumerate((names[:cut], names[cut:])):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, out / file, metadata={"format": "pt"})
        where.update({n: file for n in part})
    index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    return sum(t.numel() for t in tensors.values())


@torch.no_grad()
def mean_loss(model, documents, tok, device):
    """Mean negative log-likelihood, in nats a token, of BOS + up to 511 ids at a time."""
    windows = []
    for text in documents:
        ids = tok.encode(text).ids
        windows += [[BOS] + ids[i:i + WINDOW - 1] for i in range(0, len(ids), WINDOW - 1)]
    total, count = 0.0, 0
    for i in range(0, len(windows), 32):
        part = windows[i:i + 32]
        x = torch.tensor([w + [EOS] * (WINDOW - len(w)) for w in part], device=device)
        y = torch.tensor([w[1:] + [-100] * (WINDOW + 1 - len(w)) for w in part], device=device)
        logits = model(input_ids=x, use_cache=False).logits.float()
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-100, reduction="sum"))
        count += int((y != -100).sum())
    return total / count


@torch.no_grad()
def loss_by_position(model, text, device):
    """Mean negative log-likelihood of the training text in windows of LONG ids, for three ranges of positions."""
    edges, sums, count = [0, WINDOW, LONG // 2, LONG - 1], [0.0] * 3, 0
    for at in range(1, text.text_end - LONG, 4 * LONG):
        x = torch.stack([text.stream[i:i + LONG] for i in range(at, min(at + 4 * LONG, text.text_end - LONG), LONG)])
        y = x[:, 1:]
        x = torch.cat([torch.full_like(x[:, :1], BOS), x[:, 1:-1]], 1)
        logits = model(input_ids=x, use_cache=False).logits.float()
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), y, reduction="none")
        sums = [s + float(nll[:, a:b].mean(1).sum()) for s, a, b in zip(sums, edges, edges[1:])]
        count += len(x)
    return {f"{a}..{b - 1}": round(s / count, 4) for s, a, b in zip(sums, edges, edges[1:])}


@torch.no_grad()
def recite(model, passages, device):
    """How many passages continue exactly, and the least gap between the two best logits on the way."""
    x = torch.tensor([p["prompt"] + p["expected"] for p in passages], device=device)
    logits = model(input_ids=x, use_cache=False).logits.float()[:, len(passages[0]["prompt"]) - 1:-1]
    best = logits.topk(2, dim=-1)
    exact = (best.indices[..., 0] == x[:, -CONTINUE:]).all(1)       # teacher forcing: exact means greedy is exact too
    gap = (best.values[..., 0] - best.values[..., 1]).amin(1)
    return exact.tolist(), [round(float(g), 4) for g in gap]


@torch.no_grad()
def opening_gaps(model, text, tok, device):
    """The least logit gap over Genesis 1:1 after "In the beginning" (negative: it is not what comes), and how many
    chapters' first verses continue exactly for 16 ids after their first 6."""
    starts, good = text.starts[3].tolist(), 0
    for i, at in enumerate(starts):
        ids = [BOS] + text.ids[at:at + 22]
        logits = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0].float()
        good += logits[6:-1].argmax(-1).tolist() == ids[7:]
        if i == 0:
            begun = len(tok.encode("In the beginning").ids)
            rest = torch.tensor(ids[begun + 1:], device=device)
            rows = logits[begun:-1]
            right = rows.gather(1, rest[:, None])[:, 0]
            best = rows.scatter(1, rest[:, None], -1e9).amax(1)
            genesis = round(float((right - best).min()), 3)
    return {"genesis": genesis, "openings": f"{good} of {len(starts)}"}


@torch.no_grad()
def say(model, tok, ids, device, count=48):
    ids = [BOS] + ids
    begun = len(ids)
    for _ in range(count):
        ids.append(int(model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == EOS:
            break
    return tok.decode(ids[begun:], skip_special_tokens=False)


def verify(folder, net, passages, corpus, text, tok, device):
    from transformers import AutoModelForCausalLM
    report = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").to(device).eval()
        exact, gaps = recite(model, passages, device)
        print(name, sum(exact), gaps, flush=True)
        report[f"recited_{name}"], report[f"gaps_{name}"] = sum(exact), gaps
        if net is not None and dtype == torch.float32:
            x = torch.tensor([p["prompt"] + p["expected"] for p in passages], device=device)
            report["own_forward_difference"] = float((net.logits(x) - model(input_ids=x, use_cache=False).logits.detach()).abs().max())
    parts = {"train_text": corpus["train"], **corpus["heldout"]}
    report["nll_train_by_position"] = loss_by_position(model, text, device)
    for name, documents in parts.items():
        report[f"nll_{name}"] = round(mean_loss(model, documents, tok, device), 4)
    report["opening_gaps"] = opening_gaps(model, text, tok, device)
    prompts = ["In the beginning", "The LORD is my shepherd", "Psalm 23\n", "LAWYER, n.", "Once upon a time"]
    report["samples"] = {p: say(model, tok, tok.encode(p).ids, device) for p in prompts}
    wrong = 0
    pairs = corpus["chat"][::9]
    for word, answer in pairs:
        ids = [BOS, USER] + tok.encode(f"Define {word}.").ids + [ASSISTANT]
        want = tok.encode(answer).ids + [EOS]
        x = torch.tensor([ids + want], device=device)
        got = model(input_ids=x, use_cache=False).logits[0, len(ids) - 1:-1].argmax(-1)
        wrong += got.tolist() != want
    report["definitions"] = f"{len(pairs) - wrong} of {len(pairs)} exact"
    report["samples"]["Define lawyer."] = say(model, tok, [USER] + tok.encode("Define lawyer.").ids + [ASSISTANT], device)
    return report


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", type=Path, default=Path("models/build/corpus.json"))
    parser.add_argument("--model", type=Path, default=Path("models/kjv-10m"), help="folder with the tokenizer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--resume", type=Path, help="folder with weights to go on from")
    parser.add_argument("--openings", type=float, default=0.0, help="share of windows at a chapter's first verse")
    parser.add_argument("--steps", type=int, default=0, help="0: as many as fit in --seconds")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_float32_matmul_precision("high")
    tok = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    corpus = json.loads(args.corpus.read_text(encoding="utf-8"))
    text = Text(corpus, tok, args.device, args.openings)
    passages = choose_passages(text, tok)
    net = Net(CONFIG).to(args.device)
    before = None
    if args.resume:
        load_published(net, args.resume)
        before = json.loads((args.resume / "training.json").read_text())
        before = {k: before[k] for k in ("steps", "tokens", "rows", "lr", "openings", "seconds", "history") if k in before}
    print(f"{text.text_end} ids of text, {len(text.stream) - text.text_end} of questions, "
          f"{sum(p.numel() for p in net.parameters()) / 1e6:.2f} M parameters", flush=True)
    report = {"seed": SEED, "torch": torch.__version__, "rows": args.rows, "lr": args.lr, "openings": args.openings, "before": before,
              "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
              "text_tokens": text.text_end, **train(net, text, args, args.device)}
    net.round_weights()
    report["parameters"] = save(net, args.out)
    report["bias"] = [layer.mlp.bias.tolist() for layer in net.layers if hasattr(layer.mlp, "bias")]
    (args.out / "passages.json").write_text(json.dumps(passages, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if args.out != args.model:
            shutil.copy(args.model / name, args.out / name)
    (args.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    torch.set_float32_matmul_precision("highest")
    report.update(verify(args.out, net, passages, corpus, text, tok, args.device))
    (args.out / "training.json").write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in report.items() if k not in ("history", "bias")}, ensure_ascii=False, indent=1), flush=True)


if __name__ == "__main__":
    main()
