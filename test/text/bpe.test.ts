// The heap against the definition: merge the pair of lowest rank, leftmost first, by looking at all pairs each time.
import { Bpe } from '../../lib/text/bpe';
import { BYTE_TO_CHAR } from '../../lib/text/byte-level';
import { codeOf, seeded } from './fixtures';

function byDefinition(
  text: string,
  vocab: Map<string, number>,
  merges: readonly (readonly [string, string])[],
): number[] {
  const ranks = new Map(merges.map(([left, right], rank) => [`${left} ${right}`, rank]));
  const symbols = Array.from(Buffer.from(text), (byte) => BYTE_TO_CHAR[byte] as string);
  for (;;) {
    let best = -1;
    let lowest = Number.POSITIVE_INFINITY;
    for (let i = 0; i + 1 < symbols.length; i++) {
      const rank = ranks.get(`${symbols[i]} ${symbols[i + 1]}`) ?? Number.POSITIVE_INFINITY;
      if (rank < lowest) {
        lowest = rank;
        best = i;
      }
    }
    if (best < 0) return symbols.map((symbol) => vocab.get(symbol) as number);
    symbols.splice(best, 2, (symbols[best] as string) + symbols[best + 1]);
  }
}

function randomModel(random: () => number, size: number) {
  const vocab = new Map(BYTE_TO_CHAR.map((char, byte) => [char, byte]));
  const symbols = ['a', 'b', 'c', 'Ã', '©'];
  const merges: [string, string][] = [];
  while (merges.length < size) {
    const pick = () => symbols[Math.floor(random() * symbols.length)] as string;
    const pair: [string, string] = [pick(), pick()];
    if (merges.some(([left, right]) => left === pair[0] && right === pair[1])) continue;
    const joined = pair.join('');
    if (!vocab.has(joined)) {
      vocab.set(joined, vocab.size);
      symbols.push(joined);
    }
    merges.push(pair);
  }
  return { vocab, merges };
}

test('2000 words on 20 random merge tables', () => {
  const random = seeded(1);
  for (let table = 0; table < 20; table++) {
    const { vocab, merges } = randomModel(random, 5 + table * 3);
    const bpe = new Bpe({ vocab, merges, ignoreMerges: false });
    for (let word = 0; word < 100; word++) {
      const text = Array.from({ length: Math.floor(random() * 60) }, () => 'abcé'[Math.floor(random() * 4)]).join('');
      const ids: number[] = [];
      bpe.encodeWord(text, ids);
      expect(ids).toEqual(byDefinition(text, vocab, merges));
    }
  }
});

test('a word longer than the memory that is kept', () => {
  const { vocab, merges } = randomModel(seeded(3), 30);
  const bpe = new Bpe({ vocab, merges, ignoreMerges: false });
  const ids: number[] = [];
  bpe.encodeWord('abc'.repeat(40_000), ids);
  const lengths = new Map([...vocab].map(([token, id]) => [id, token.length]));
  expect(ids.reduce((sum, id) => sum + (lengths.get(id) as number), 0)).toBe(120_000);
  expect(ids.length).toBeLessThan(120_000);
});

test('a merge of an unknown token and a missing byte are refused', async () => {
  const { vocab } = randomModel(seeded(4), 5);
  expect(await codeOf(() => new Bpe({ vocab, merges: [['a', 'zz']], ignoreMerges: false }))).toBe('ERR_TOKENIZER');
  expect(await codeOf(() => new Bpe({ vocab, merges: [['z', 'z']], ignoreMerges: false }))).toBe('ERR_TOKENIZER');
  vocab.delete('a');
  expect(await codeOf(() => new Bpe({ vocab, merges: [], ignoreMerges: false }))).toBe('ERR_TOKENIZER');
});
