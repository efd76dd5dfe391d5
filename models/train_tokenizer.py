#!/usr/bin/env python3
"""Trains kjv-10m's tokenizer: byte-level BPE of 4096 ids in the form of DeepSeek-V3's tokenizer.json.

    python3 models/train_tokenizer.py models/build/corpus.json models/kjv-10m

Digits are split in groups of up to three, words keep their leading space, every byte has an id, so any
UTF-8 text survives encoding and decoding. As in DeepSeek's files tokenizer.json itself adds no BOS:
`add_bos_token` in tokenizer_config.json says that it is wanted.
"""

import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB = 4096
BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
USER, ASSISTANT = "<｜User｜>", "<｜Assistant｜>"
WORDS = r" ?\p{L}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] }}"
    "{% elif message['role'] == 'user' %}{{ '" + USER + "' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '" + ASSISTANT + "' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('unknown role: ' + message['role']) }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + ASSISTANT + "' }}{% endif %}"
)


def added(text, special):
    return AddedToken(text, normalized=False, special=special)


def main():
    corpus = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    out = Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex(WORDS), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    special = [added(BOS, True), added(EOS, True), added(PAD, True), added(USER, False), added(ASSISTANT, False)]
    tok.train_from_iterator(
        corpus["train"] + [f"{w}\n{d}" for w, d in corpus["chat"]],
        trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=special, show_progress=False,
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    data = json.loads(tok.to_str())
    for token in data["added_tokens"]:      # DeepSeek's files do not mark the role tokens as special
        if token["content"] in (USER, ASSISTANT):
            token["special"] = False
    (out / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    config = {
        "add_bos_token": True, "add_eos_token": False, "bos_token": BOS, "chat_template": TEMPLATE,
        "clean_up_tokenization_spaces": False, "eos_token": EOS, "model_max_length": 2048, "pad_token": PAD,
        "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    tok = Tokenizer.from_file(str(out / "tokenizer.json"))
    assert tok.get_vocab_size() == VOCAB
    samples = corpus["train"][::40] + ["naïve 東京 🙂‍🔥 \t\r\n\n  x1234567 \u0000\uffff", "  a  \n\n b", ""]
    for text in samples:
        assert tok.decode(tok.encode(text).ids, skip_special_tokens=False) == text, text[:80]
    count = sum(len(tok.encode(d).ids) for d in corpus["train"])
    print(f"{count} training tokens, {sum(map(len, corpus['train'])) / count:.2f} characters a token")


if __name__ == "__main__":
    main()
