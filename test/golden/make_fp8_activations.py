#!/usr/bin/env python3
"""Writes v3-fp8/fp8-activations.json: what transformers computes on v3-fp8 where activations meet fp8 weights in fp8.

    python3 test/golden/make_fp8_activations.py

The reference of make_golden.py (float32 on a CPU, weights exactly q * scale), but every input of a product with a weight
that is fp8 in the checkpoint is rounded first: blocks of 128 columns of a row, divided by the smallest power of two that
brings the largest magnitude to 448 or below, cast to torch.float8_e4m3fn, and multiplied again. kv_b enters attention
head by head and is no such product; q_a and kv_a are loaded as one matrix, which has no whole blocks where the rank of
the query is no multiple of 128, as here, so their input stays as it is. The prompts are those of v3-fp8/golden.json.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from torch.overrides import TorchFunctionMode

from make_golden import build, dump
from variants import VARIANTS, make_tensors

FOLDER = Path(__file__).parent


def as_fp8(x):
    pad = -x.shape[-1] % 128
    blocks = F.pad(x, (0, pad)).unflatten(-1, (-1, 128))
    top = blocks.abs().amax(-1, keepdim=True).double()
    exponent = torch.ceil(torch.log2(top / 448)).clamp(-60, 60)
    # log2 may round to a border from either side
    exponent = torch.where(top > 448 * torch.exp2(exponent), exponent + 1, exponent)
    exponent = torch.where(top <= 448 * torch.exp2(exponent - 1), exponent - 1, exponent).clamp(-60, 60)
    scale = torch.exp2(exponent).float()
    rounded = (blocks / scale).to(torch.float8_e4m3fn).float() * scale
    return rounded.flatten(-2)[..., :x.shape[-1]]


class Fp8Activations(TorchFunctionMode):
    """Rounds what enters a linear function whose weight lies in one of these tensors."""

    def __init__(self, weights):
        super().__init__()
        self.storages = {w.untyped_storage().data_ptr(): name for name, w in weights.items()}
        self.met = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.linear:
            x, w, *rest = args
            name = self.storages.get(w.untyped_storage().data_ptr())
            if name is not None:
                self.met.add(name)
                args = (as_fp8(x), w, *rest)
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def main():
    torch.set_float32_matmul_precision("highest")
    v = next(v for v in VARIANTS if v.name == "v3-fp8")
    model = build(v, make_tensors(v)[1])
    assert v.config["q_lora_rank"] % 128 != 0
    plain = ("kv_b_proj", "q_a_proj", "kv_a_proj")
    fp8 = {n: p for n, p in model.named_parameters()
           if "proj" in n and ("self_attn" in n or "mlp" in n) and not any(name in n for name in plain)}
    golden = json.loads((FOLDER / v.name / "golden.json").read_text())
    logprobs = []
    for prompt in golden["prompts"]:
        ids = prompt["tokens"]

        def score():
            lp = torch.log_softmax(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float(), -1)
            return [float(lp[i - 1, ids[i]]) for i in range(1, len(ids))]

        plain = score()
        assert all(abs(a - b) < 1e-3 for a, b in zip(plain, prompt["logprobs"][1:])), "not the model of golden.json"
        with Fp8Activations(fp8) as mode:
            logprobs.append([None] + score())
        assert mode.met == set(fp8), sorted(set(fp8) - mode.met)
        if plain:
            moved = [abs(a - b) for a, b in zip(plain, logprobs[-1][1:])]
            print(f"{len(ids)} ids: log-probabilities move by {sum(moved) / len(moved):.3f} in the mean")
    out = {"torch": torch.__version__, "transformers": transformers.__version__, "logprobs": logprobs}
    (FOLDER / v.name / "fp8-activations.json").write_text(dump(out) + "\n")
    print(f"{len(fp8)} weights")


if __name__ == "__main__":
    main()
