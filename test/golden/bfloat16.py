"""How far transformers' own bfloat16 is from its float32 on the golden checkpoints (not the fp8 one).

    python3 test/golden/bfloat16.py

Prints, per checkpoint, the worst and the mean difference of the prompts' log-probabilities in golden.json, which are
float32's. Needs what make_golden.py needs; what came out stands in docs/numerics.md.
"""

import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from make_golden import PLAIN, correct
from variants import VARIANTS

for variant in VARIANTS:
    if variant.fp8:
        continue
    folder = Path(__file__).parent / variant.name
    golden = json.loads((folder / "golden.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, **PLAIN).eval()
    correct(model, variant)
    differences = []
    with torch.no_grad():
        for prompt in golden["prompts"]:
            ids = prompt["tokens"]
            rows = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
            differences += [abs(float(rows[i - 1, ids[i]]) - prompt["logprobs"][i]) for i in range(1, len(ids))]
    worst, mean = max(differences), sum(differences) / len(differences)
    print(f"{variant.name}: {len(differences)} worst {worst:.3g} mean {mean:.3g}", flush=True)
