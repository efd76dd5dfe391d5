// What a user's npm gets: the files of the package, its entry points, its lockfile. Runs against the built dist/.
import { execFileSync } from 'node:child_process';
import { accessSync, constants, existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';

const ROOT = resolve(__dirname, '../..');
const readJson = (file: string) => JSON.parse(readFileSync(join(ROOT, file), 'utf8'));
const manifest = readJson('package.json');

/** What the lockfile says of one package. */
interface LockEntry {
  resolved?: string;
  integrity?: string;
  inBundle?: boolean;
  os?: string[];
  cpu?: string[];
  libc?: string[];
  optionalDependencies?: Record<string, string>;
}

/** Runs node in the checkout, whose own name resolves to it as it would inside node_modules. */
function node(...args: string[]): string {
  return execFileSync(process.execPath, args, { cwd: ROOT, encoding: 'utf8' }).trim();
}

describe('the packed files', () => {
  let files: { path: string; size: number; mode: number }[] = [];
  let unpackedSize = 0;

  beforeAll(() => {
    const args = ['pack', '--dry-run', '--json', '--ignore-scripts', '--loglevel=error'];
    const [packed] = JSON.parse(execFileSync('npm', args, { cwd: ROOT, encoding: 'utf8' }));
    files = packed.files;
    unpackedSize = packed.unpackedSize;
  });

  const paths = () => files.map((file) => file.path);

  test.each([
    'package.json',
    'README.md',
    'LICENSE',
    'dist/index.js',
    'dist/index.d.ts',
    'dist/cli/main.js',
    'CMakeLists.txt',
    'binding.gyp',
    'scripts/build-native.cjs',
    'csrc/ops/ops.h',
  ])('contain %s', (file) => {
    expect(paths()).toContain(file);
  });

  test('contain a model that runs without a download', () => {
    expect(paths().filter((file) => /^models\/.*\.safetensors$/.test(file))).not.toEqual([]);
    expect(paths().filter((file) => /^models\/.*\/config\.json$/.test(file))).not.toEqual([]);
  });

  test('contain nothing that only development needs', () => {
    const allowed =
      /^(dist|prebuilds|models|csrc)\/|^(package\.json|README\.md|LICENSE|CMakeLists\.txt|binding\.gyp|scripts\/build-native\.cjs|bench\/anchors\.json)$/;
    const unwanted = /\.(py|log|tgz|o|a|gz)$|\.test\.|\.next$|(^|\/)(node_modules|build|__pycache__)\//;
    // mla bench kernels --peers runs it
    const kept = paths().filter((file) => file !== 'bench/peers.py');
    expect(kept.filter((file) => !allowed.test(file) || unwanted.test(file))).toEqual([]);
  });

  test('have a source in lib/ for each compiled file', () => {
    const compiled = paths().filter((file) => file.startsWith('dist/'));
    const orphans = compiled.filter(
      (file) => !existsSync(join(ROOT, file.replace(/^dist\/(.*?)(\.d\.ts|\.js)$/, 'lib/$1.ts'))),
    );
    expect(orphans).toEqual([]);
  });

  test('are a package of a few megabytes', () => {
    expect(unpackedSize).toBeGreaterThan(100_000);
    expect(unpackedSize).toBeLessThan(64_000_000);
  });
});

describe('the entry points', () => {
  test('are the same for require and import', () => {
    const required = node('-p', "Object.keys(require('node-mla')).sort().join()");
    const imported = node(
      '--input-type=module',
      '-e',
      "console.log(Object.keys(await import('node-mla')).filter((k) => !['default', 'module.exports', '__esModule'].includes(k)).sort().join())",
    );
    expect(required).toContain('loadModel');
    expect(imported).toBe(required);
  });

  test('have types beside them', () => {
    for (const file of [manifest.types, manifest.exports['.'].types]) expect(existsSync(join(ROOT, file))).toBe(true);
  });

  test('give package.json and nothing from inside', () => {
    expect(node('-p', "require('node-mla/package.json').name")).toBe('node-mla');
    expect(node('-p', "try { require('node-mla/dist/index.js') } catch (e) { e.code }")).toBe(
      'ERR_PACKAGE_PATH_NOT_EXPORTED',
    );
  });

  test('load no native code until a model is asked for', () => {
    const loaded = "require('node-mla'); Object.keys(require.cache).filter((f) => f.endsWith('.node')).length";
    expect(node('-p', loaded)).toBe('0');
  });

  test('are executable commands that npx finds in the checkout', () => {
    for (const [name, file] of Object.entries<string>(manifest.bin)) {
      expect(readFileSync(join(ROOT, file), 'utf8')).toMatch(/^#!\/usr\/bin\/env node\n/);
      accessSync(join(ROOT, file), constants.X_OK);
      accessSync(join(ROOT, 'node_modules/.bin', name), constants.X_OK);
    }
  });
});

describe('the manifest', () => {
  test('asks for the Node versions that the README names', () => {
    expect(manifest.engines.node).toBe('>=20.19');
    expect(readFileSync(join(ROOT, 'README.md'), 'utf8')).toContain('Node.js >= 20.19');
    const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
    expect(major > 20 || (major === 20 && minor >= 19)).toBe(true);
  });

  test('builds without Python, node-gyp and headers', () => {
    expect(manifest.scripts.install).toBe('node-gyp-build-test || node scripts/build-native.cjs');
    expect(manifest.binary.napi_versions).toEqual([8]);
  });

  test('depends at run time on what dist/ and the build import, and on nothing else', () => {
    const used = new Set(['node-gyp-build', 'node-addon-api', 'node-api-headers']);
    const sources = execFileSync('grep', ['-rhoE', "(from|import|require\\()\\s*'[^'.][^']*'", 'lib'], {
      cwd: ROOT,
      encoding: 'utf8',
    });
    for (const [, name = ''] of sources.matchAll(/'([^']+)'/g))
      if (!name.startsWith('node:')) used.add(/^(@[^/]+\/)?[^/]+/.exec(name)?.[0] ?? name);
    expect(Object.keys(manifest.dependencies).sort()).toEqual([...used].sort());
  });
});

describe('the lockfile', () => {
  const lock = readJson('package-lock.json');

  test('names no registry host', () => {
    const resolved = Object.values<LockEntry>(lock.packages).filter((entry) => /^https?:/.test(entry.resolved ?? ''));
    expect(resolved).toEqual([]);
    expect(readFileSync(join(ROOT, '.npmrc'), 'utf8')).toContain('omit-lockfile-registry-resolved=true');
  });

  test('is that of this package.json', () => {
    expect(lock.packages[''].dependencies).toEqual(manifest.dependencies);
    expect(lock.packages[''].devDependencies).toEqual(manifest.devDependencies);
    expect(lock.version).toBe(manifest.version);
  });

  test('has a checksum for each package that is installed on Linux x64', () => {
    const ours = ({ os, cpu, libc }: LockEntry) =>
      (os ?? ['linux']).includes('linux') && (cpu ?? ['x64']).includes('x64') && (libc ?? ['glibc']).includes('glibc');
    const without = Object.entries<LockEntry>(lock.packages)
      .filter(([name, entry]) => name !== '' && !entry.inBundle && !entry.integrity && ours(entry))
      .map(([name]) => name);
    expect(without).toEqual([]);
  });

  // npm ci refuses a lockfile without the packages for other platforms, which a mirror may not even have.
  test('lists the optional packages of every platform', () => {
    const missing = Object.entries<LockEntry>(lock.packages).flatMap(([owner, entry]) =>
      Object.keys(entry.optionalDependencies ?? {}).filter(
        (name) => !(`node_modules/${name}` in lock.packages) && !(`${owner}/node_modules/${name}` in lock.packages),
      ),
    );
    expect(missing).toEqual([]);
  });
});
