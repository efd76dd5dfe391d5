// Whole model folders: how they are opened, which hostile or half-downloaded ones are refused, and that a file which
// changes during a load is noticed.
import { execFileSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { openCheckpoint, parseConfig } from '../../lib/checkpoint';
import { openFolder, openInside } from '../../lib/checkpoint/files';
import { readHeaderOf } from '../../lib/checkpoint/safetensors';
import {
  fails,
  type Json,
  removeFolders,
  TINY,
  tempFolder,
  tensorsFor,
  writeModel,
  writeSharded,
  writeTensors,
} from './support';

const refused = { folders: 0, indexes: 0, changes: 0 };
afterAll(() => {
  const { folders, indexes, changes } = refused;
  console.log(`refused: ${folders} hostile folders, ${indexes} indexes, ${changes} changes while open`);
  removeFolders();
});

const INDEX = 'model.safetensors.index.json';
const write = (dir: string, name: string, value: unknown): void => {
  fs.writeFileSync(path.join(dir, name), typeof value === 'string' ? value : JSON.stringify(value));
};
const subfolder = (): string => {
  const dir = path.join(tempFolder(), 'model');
  fs.mkdirSync(dir);
  return dir;
};
const openFds = (): number => fs.readdirSync('/proc/self/fd').length;
const weightMap = (dir: string): Record<string, string> =>
  JSON.parse(fs.readFileSync(path.join(dir, INDEX), 'utf8')).weight_map;

// The first asynchronous file operation of a process opens descriptors of its own, which must not be counted.
beforeAll(async () => {
  await (await openCheckpoint(writeModel(TINY))).close();
});

test('one file', async () => {
  const dir = writeModel(TINY);
  const before = openFds();
  const checkpoint = await openCheckpoint(dir);
  const specs = tensorsFor(parseConfig(JSON.stringify(TINY)), { bias: true });
  expect([...checkpoint.tensors.keys()].sort()).toEqual(Object.keys(specs).sort());
  expect(checkpoint.config).toMatchObject({ topk_method: 'noaux_tc', scoring_func: 'sigmoid' });
  expect(checkpoint.files).toEqual([
    {
      index: 0,
      name: 'model.safetensors',
      path: path.join(dir, 'model.safetensors'),
      fd: expect.any(Number),
      size: expect.any(Number),
    },
  ]);
  const norm = checkpoint.tensors.get('model.norm.weight');
  expect(norm).toMatchObject({ dtype: 'BF16', shape: [16], bytes: 32 });
  // The descriptor and the offset are enough to read the tensor.
  const writable = fs.openSync(path.join(dir, 'model.safetensors'), 'r+');
  fs.writeSync(writable, Buffer.from([1, 2, 3, 4]), 0, 4, norm?.offset);
  fs.closeSync(writable);
  const data = Buffer.alloc(4);
  fs.readSync(norm?.fd as number, data, 0, 4, norm?.offset as number);
  expect([...data]).toEqual([1, 2, 3, 4]);
  await checkpoint.close();
  await checkpoint.close();
  expect(openFds()).toBe(before);
  await fails(() => checkpoint.verifyUnchanged(), 'ERR_DISPOSED', /closed/);
});

test('several files with an index', async () => {
  const dir = writeSharded(TINY, { bias: true, fp8: false }, 3);
  const checkpoint = await openCheckpoint(dir);
  expect(checkpoint.files.map((file) => file.name)).toEqual(
    [1, 2, 3].map((i) => `model-0000${i}-of-00003.safetensors`),
  );
  for (const [name, file] of Object.entries(weightMap(dir))) {
    expect(checkpoint.tensors.get(name)?.file.name).toBe(file);
  }
  await checkpoint.verifyUnchanged();
  await checkpoint.close();
});

test('the layout of the Hugging Face cache: links from snapshots to blobs', async () => {
  const repo = path.join(tempFolder(), 'models--a--b');
  const snapshot = path.join(repo, 'snapshots', 'abc');
  const blobs = path.join(repo, 'blobs');
  fs.mkdirSync(snapshot, { recursive: true });
  fs.mkdirSync(blobs);
  writeModel(TINY, { bias: true }, blobs);
  for (const name of ['config.json', 'model.safetensors']) {
    fs.renameSync(path.join(blobs, name), path.join(blobs, `sha-${name}`));
    fs.symlinkSync(`../../blobs/sha-${name}`, path.join(snapshot, name));
  }
  const checkpoint = await openCheckpoint(snapshot);
  expect(checkpoint.files[0]?.path).toBe(path.join(blobs, 'sha-model.safetensors'));
  await checkpoint.verifyUnchanged();
  // A link to another blob is a replacement, although the open file is the same.
  writeTensors(path.join(blobs, 'other'), {});
  fs.rmSync(path.join(snapshot, 'model.safetensors'));
  fs.symlinkSync('../../blobs/other', path.join(snapshot, 'model.safetensors'));
  await fails(() => checkpoint.verifyUnchanged(), 'ERR_CHECKPOINT', /another file in its place/);
  await checkpoint.close();
  // Links that leave the repository are refused, from inside a snapshot too.
  const out = path.join(repo, 'out.safetensors');
  fs.renameSync(path.join(blobs, 'sha-model.safetensors'), out);
  fs.rmSync(path.join(snapshot, 'model.safetensors'));
  fs.symlinkSync('../../out.safetensors', path.join(snapshot, 'model.safetensors'));
  await fails(
    () => openCheckpoint(snapshot),
    'ERR_CHECKPOINT',
    /link that leads to .*out\.safetensors.*\(or in the cached repository's blobs\)/,
  );
});

test.each(['..', '../x', '/etc/passwd', 'a/b', '', 'a\\b'])('openInside opens plain names only: %p', async (name) => {
  const folder = await openFolder(writeModel(TINY));
  await fails(() => openInside(folder, name), 'ERR_CHECKPOINT', /expected the plain name of a file/);
});

describe('folders that are refused', () => {
  const secret = (): string => {
    const dir = writeModel(TINY);
    return path.join(dir, 'model.safetensors');
  };
  const cases: [string, (dir: string) => void, 'ERR_CHECKPOINT' | 'ERR_FILE' | 'ERR_SAFETENSORS', RegExp][] = [
    [
      'no weights',
      (dir) => fs.rmSync(path.join(dir, 'model.safetensors')),
      'ERR_CHECKPOINT',
      /found no weights, expected model\.safetensors/,
    ],
    [
      'pickle only',
      (dir) => {
        fs.renameSync(path.join(dir, 'model.safetensors'), path.join(dir, 'pytorch_model.bin'));
      },
      'ERR_CHECKPOINT',
      /found only "pytorch_model\.bin".*never opened: pickle can run code/,
    ],
    [
      'gguf only',
      (dir) => fs.renameSync(path.join(dir, 'model.safetensors'), path.join(dir, 'm.gguf')),
      'ERR_CHECKPOINT',
      /found only "m\.gguf"/,
    ],
    [
      'parts without index',
      (dir) => fs.renameSync(path.join(dir, 'model.safetensors'), path.join(dir, 'model-00001-of-00002.safetensors')),
      'ERR_CHECKPOINT',
      /found 1 \*\.safetensors .* but no index/,
    ],
    [
      'a link out',
      (dir) => {
        fs.rmSync(path.join(dir, 'model.safetensors'));
        fs.symlinkSync(secret(), path.join(dir, 'model.safetensors'));
      },
      'ERR_CHECKPOINT',
      /found a link that leads to .*expected one that stays inside the folder\. Copy/,
    ],
    [
      'config.json a link out',
      (dir) => {
        fs.rmSync(path.join(dir, 'config.json'));
        fs.symlinkSync('/etc/passwd', path.join(dir, 'config.json'));
      },
      'ERR_CHECKPOINT',
      /link that leads to "\/etc\/passwd"/,
    ],
    [
      'a folder beside with the same beginning',
      (dir) => {
        const beside = `${dir}-2`;
        fs.mkdirSync(beside);
        fs.renameSync(path.join(dir, 'model.safetensors'), path.join(beside, 'm'));
        fs.symlinkSync(path.join(beside, 'm'), path.join(dir, 'model.safetensors'));
      },
      'ERR_CHECKPOINT',
      /found a link that leads to/,
    ],
    [
      'a dangling link',
      (dir) => {
        fs.rmSync(path.join(dir, 'model.safetensors'));
        fs.symlinkSync('gone', path.join(dir, 'model.safetensors'));
      },
      'ERR_FILE',
      /found ENOENT, expected a file \(or a link to one that exists\)/,
    ],
    [
      'links in a circle',
      (dir) => {
        fs.rmSync(path.join(dir, 'model.safetensors'));
        fs.symlinkSync('model.safetensors', path.join(dir, 'model.safetensors'));
      },
      'ERR_FILE',
      /found ELOOP/,
    ],
    [
      'a folder in place of the file',
      (dir) => {
        fs.rmSync(path.join(dir, 'model.safetensors'));
        fs.mkdirSync(path.join(dir, 'model.safetensors'));
      },
      'ERR_FILE',
      /found a folder, expected a regular file/,
    ],
    [
      'a FIFO in place of the file',
      (dir) => {
        fs.rmSync(path.join(dir, 'model.safetensors'));
        execFileSync('mkfifo', [path.join(dir, 'model.safetensors')]);
      },
      'ERR_FILE',
      /found a FIFO, expected a regular file/,
    ],
    [
      'a FIFO in place of config.json',
      (dir) => {
        fs.rmSync(path.join(dir, 'config.json'));
        execFileSync('mkfifo', [path.join(dir, 'config.json')]);
      },
      'ERR_FILE',
      /config\.json": found a FIFO/,
    ],
    [
      'a large config.json',
      (dir) => fs.truncateSync(path.join(dir, 'config.json'), 5 << 20),
      'ERR_FILE',
      /found 5242880 bytes, expected at most 4194304/,
    ],
    [
      'a cut file',
      (dir) => fs.truncateSync(path.join(dir, 'model.safetensors'), 3000),
      'ERR_SAFETENSORS',
      /rule header-in-file|rule offsets-in-file/,
    ],
    [
      'an index beside another model',
      (dir) => write(dir, INDEX, { weight_map: { a: 'b.safetensors' } }),
      'ERR_CHECKPOINT',
      /found model\.safetensors and an index of other files/,
    ],
  ];
  test.each(cases)('%s', async (_, spoil, code, text) => {
    const dir = writeModel(TINY, { bias: true }, subfolder());
    spoil(dir);
    const before = openFds();
    await fails(() => openCheckpoint(dir), code, text);
    expect(openFds()).toBe(before);
    refused.folders += 1;
  });
  test('what is not a folder', async () => {
    await fails(() => openCheckpoint('/no/such/folder'), 'ERR_FILE', /found ENOENT, expected a model folder/);
    await fails(
      () => openCheckpoint(path.join(writeModel(TINY), 'config.json')),
      'ERR_FILE',
      /found a file, expected a folder/,
    );
    await fails(() => openCheckpoint(undefined as never), 'ERR_INVALID_ARG', /dir: expected/);
    await fails(() => openCheckpoint('a\0b'), 'ERR_FILE', /a\\u0000b/);
  });
});

describe('an index that is refused', () => {
  const bad: [string, unknown, RegExp][] = [
    ['broken JSON', '{', /index\.json: broken JSON at byte 1/],
    ['no object', '[]', /weight_map: found nothing, expected an object/],
    ['no weight_map', {}, /weight_map: found nothing/],
    ['weight_map an array', { weight_map: [] }, /weight_map: found \[\]/],
    ['no tensors', { weight_map: {} }, /found no tensor/],
    ['a number for a name', { weight_map: { a: 1 } }, /tensor "a": found 1, expected the name of a file/],
    [
      'the folder above',
      { weight_map: { a: '../x.safetensors' } },
      /found "\.\.\/x\.safetensors", a path with separators/,
    ],
    ['..', { weight_map: { a: '..' } }, /the name of a folder/],
    ['an absolute path', { weight_map: { a: '/etc/passwd' } }, /found "\/etc\/passwd", a path with separators/],
    ['a backslash', { weight_map: { a: '..\\x.safetensors' } }, /a path with separators/],
    ['a NUL', { weight_map: { a: 'x\0.safetensors' } }, /a name with a NUL character/],
    ['an empty name', { weight_map: { a: '' } }, /an empty name/],
    ['a long name', { weight_map: { a: `${'x'.repeat(250)}.safetensors` } }, /longer than 255 bytes/],
    [
      'a pickle file',
      { weight_map: { a: 'pytorch_model.bin' } },
      /"pytorch_model\.bin", a file of another format \(pickle files are never opened\)/,
    ],
    ['a line break in a name', { weight_map: { 'a\nERROR forged': 7 } }, /tensor "a\\nERROR forged"/],
    [
      'a missing file',
      { weight_map: { a: 'gone.safetensors' } },
      /found no "gone\.safetensors", expected every file of the index/,
    ],
    ['a name twice', '{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}', /found the key "a" twice/],
    ['very deep', `{"weight_map":${'{"a":'.repeat(100_000)}`, /nesting deeper than 64/],
    [
      'too many files',
      { weight_map: Object.fromEntries(Array.from({ length: 2001 }, (_, i) => [`t${i}`, `${i}.safetensors`])) },
      /more than 2000 files/,
    ],
    ['__proto__ as a tensor', '{"weight_map":{"__proto__":"gone.safetensors"}}', /found no "gone\.safetensors"/],
  ];
  test.each(bad)('%s', async (_, index, text) => {
    const dir = writeModel(TINY);
    fs.rmSync(path.join(dir, 'model.safetensors'));
    write(dir, INDEX, index);
    await fails(() => openCheckpoint(dir), 'ERR_CHECKPOINT', text);
    refused.indexes += 1;
  });
  const shards: [string, (dir: string, map: Record<string, string>) => void, RegExp][] = [
    [
      'a file that is missing',
      (dir) => fs.rmSync(path.join(dir, 'model-00002-of-00002.safetensors')),
      /found no "model-00002-of-00002\.safetensors"/,
    ],
    [
      'a tensor that is in no file',
      (dir, map) => write(dir, INDEX, { weight_map: { ...map, extra: 'model-00001-of-00002.safetensors' } }),
      /tensor "extra": found in no file, expected in "model-00001/,
    ],
    [
      'a tensor that is in another file',
      (dir, map) =>
        write(dir, INDEX, {
          weight_map: {
            ...map,
            'model.norm.weight': 'model-00001-of-00002.safetensors',
            'model.embed_tokens.weight': 'model-00002-of-00002.safetensors',
          },
        }),
      /tensor "model\.(norm|embed_tokens)\.weight": found in "model-0000\d-of-00002\.safetensors", expected in/,
    ],
    [
      'a tensor in two files',
      (dir) =>
        fs.copyFileSync(
          path.join(dir, 'model-00001-of-00002.safetensors'),
          path.join(dir, 'model-00002-of-00002.safetensors'),
        ),
      /found in "model-0000\d-of-00002\.safetensors" and in "model-0000\d-of-00002\.safetensors", expected in one file/,
    ],
  ];
  test.each(shards)('%s', async (_, spoil, text) => {
    const dir = writeSharded(TINY, { bias: true }, 2);
    spoil(dir, weightMap(dir));
    const before = openFds();
    await fails(() => openCheckpoint(dir), 'ERR_CHECKPOINT', text);
    expect(openFds()).toBe(before);
    refused.indexes += 1;
  });
});

describe('huge counts in config.json do not cost time or memory', () => {
  const bad: [string, Json, RegExp][] = [
    ['10^9 layers', { num_hidden_layers: 1e9 }, /num_hidden_layers: found 1000000000/],
    ['10^9 experts', { n_routed_experts: 1e9 }, /n_routed_experts: found 1000000000/],
    ['10^12 words', { vocab_size: 1e12 }, /vocab_size: found 1000000000000/],
  ];
  test.each(bad)('%s', async (_, changes, text) => {
    const dir = writeModel(TINY);
    write(dir, 'config.json', { ...TINY, ...changes });
    const begun = process.cpuUsage();
    await fails(() => openCheckpoint(dir), 'ERR_CONFIG', text);
    expect(process.cpuUsage(begun).user).toBeLessThan(1e6);
  });
});

describe('a file that changes after it was opened', () => {
  const changes: [string, (file: string) => void, RegExp][] = [
    ['is cut', (file) => fs.truncateSync(file, fs.statSync(file).size - 1), /found it cut from \d+ to \d+ bytes/],
    ['is cut to nothing', (file) => fs.truncateSync(file, 0), /found it cut from \d+ to 0 bytes/],
    ['grows', (file) => fs.appendFileSync(file, 'x'), /found it grown from \d+ to \d+ bytes/],
    [
      'is written to',
      (file) => {
        const fd = fs.openSync(file, 'r+');
        fs.writeSync(fd, 'x', 3000);
        fs.closeSync(fd);
        const { atime, mtimeMs } = fs.statSync(file);
        fs.utimesSync(file, atime, new Date(mtimeMs + 1000));
      },
      /found it written to/,
    ],
    [
      'is replaced',
      (file) => {
        fs.copyFileSync(file, `${file}.new`);
        fs.renameSync(`${file}.new`, file);
      },
      /found another file in its place/,
    ],
    ['is removed', (file) => fs.rmSync(file), /found it removed/],
  ];
  test.each(changes)('%s', async (_, change, text) => {
    const dir = writeSharded(TINY, { bias: true }, 2);
    const checkpoint = await openCheckpoint(dir);
    await checkpoint.verifyUnchanged();
    change(path.join(dir, 'model-00002-of-00002.safetensors'));
    await fails(() => checkpoint.verifyUnchanged(), 'ERR_CHECKPOINT', text);
    await checkpoint.close();
    refused.changes += 1;
  });

  test('is cut between its opening and the reading of its header', async () => {
    const file = path.join(writeModel(TINY), 'model.safetensors');
    const fd = fs.openSync(file, 'r');
    const { size } = fs.fstatSync(fd);
    fs.truncateSync(file, 200);
    await fails(() => readHeaderOf(fd, size, file), 'ERR_CHECKPOINT', /found its end at byte 200, .* it was cut while/);
    fs.closeSync(fd);
  });
});
