// Damaged files, 100,000 of each kind: weights' headers, config.json, JSON, tokenizer.json, saved sequences.
process.env.MLA_FUZZ_INPUTS = '100000';
for (const name of ['../checkpoint/fuzz.test', '../cache/snapshot-fuzz.test', '../text/tokenizer-spec.test']) {
  describe(name, () => {
    require(name);
  });
}
