/** Whatever fails while a model is written, what was there stays as it was, and nothing else is left. */
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from 'vitest';
import {
  buildModel,
  type Model,
  makeNode,
  makeTensor,
  saveModel,
  saveModelAsync,
} from '../../../exporter/index.js';
import { ROOT } from '../../support/models.js';

const MIB = 2 ** 20;
const outer = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-write-'));
afterAll(() => fs.rmSync(outer, { recursive: true, force: true }));

/** A model with weights of so many MiB each, filled with a number. */
function weights(sizes: readonly number[], fill = 1): Model {
  const names = sizes.map((_, i) => `w${i}`);
  return buildModel({
    inputs: { x: ['float32', [1]] },
    outputs: Object.fromEntries(names.map((n) => [`y_${n}`, ['float32', undefined]])),
    nodes: names.map((n) => makeNode('Add', ['x', n], [`y_${n}`])),
    initializers: names.map((n, i) => {
      const count = (sizes[i]! * MIB) / 4;
      return makeTensor(n, 'float32', [count], new Float32Array(count).fill(fill));
    }),
  });
}

/** Names and contents of a folder. */
const contents = (folder: string) =>
  Object.fromEntries(
    fs.readdirSync(folder).map((f) => [f, fs.readFileSync(path.join(folder, f), 'base64')]),
  );

let folder: string;
let target: string;
beforeEach(() => {
  folder = fs.mkdtempSync(path.join(outer, 'out-'));
  target = path.join(folder, 'model.onnx');
});
afterEach(() => vi.restoreAllMocks());

describe.each([
  ['over an earlier pair', true],
  ['where nothing was', false],
])('a rename fails, %s', (_, there) => {
  it.each([1, 2, 3])('the one numbered %d', (failing) => {
    if (there) saveModel(weights([1 / 64], 1), target, { externalData: 'separate' });
    const before = contents(folder);
    const { renameSync } = fs;
    let calls = 0;
    vi.spyOn(fs, 'renameSync').mockImplementation((from, to) => {
      if (++calls === failing) throw new Error('EIO: i/o error, rename');
      renameSync(from, to);
    });
    const save = () => saveModel(weights([1 / 64], 2), target, { externalData: 'separate' });
    const renames = there ? 3 : 2; // the earlier data goes aside first
    if (failing > renames) {
      save();
      expect(contents(folder)).not.toEqual(before);
    } else {
      expect(save).toThrow(/^.*model\.onnx: cannot be written: EIO: i\/o error, rename$/);
      expect(contents(folder)).toEqual(before);
    }
  });
});

it.each([1, 2, 3, 4])('a file beside the model goes with it: rename %d fails', (failing) => {
  const beside = path.join(folder, 'config.json');
  const save = (fill: number) =>
    saveModel(weights([1 / 64], fill), target, {
      ...{ externalData: 'separate', beside: { [beside]: `${fill}` } },
    });
  const { renameSync } = fs;
  let calls = 0;
  vi.spyOn(fs, 'renameSync').mockImplementation((from, to) => {
    if (++calls === failing) throw new Error('EIO: i/o error, rename');
    renameSync(from, to);
  });
  if (failing > 3) {
    save(1);
    expect(fs.readdirSync(folder)).toEqual(['config.json', 'model.onnx', 'model.onnx.data']);
    expect(fs.readFileSync(beside, 'utf8')).toBe('1');
    return;
  }
  expect(() => save(1)).toThrow(/cannot be written: EIO/);
  expect(fs.readdirSync(folder)).toEqual([]);
});

it('says where the earlier data are when they cannot be put back', () => {
  saveModel(weights([1 / 64], 1), target, { externalData: 'separate' });
  const before = contents(folder);
  const { renameSync } = fs;
  let calls = 0;
  vi.spyOn(fs, 'renameSync').mockImplementation((from, to) => {
    if (++calls > 1) throw new Error('EIO: i/o error, rename');
    renameSync(from, to);
  });
  expect(() => saveModel(weights([1 / 64], 2), target, { externalData: 'separate' })).toThrow(
    /: EIO: i\/o error, rename; what \S+model\.onnx\.data held is in \S+model\.onnx\.data\.old-\d+$/,
  );
  expect(Object.values(contents(folder))).toEqual(Object.values(before));
});

it('a pair takes the place of an earlier one, and nothing else is left', () => {
  for (const fill of [1, 2]) {
    saveModel(weights([1 / 64], fill), target, { externalData: 'separate' });
    expect(fs.readdirSync(folder)).toEqual(['model.onnx', 'model.onnx.data']);
    expect(new Float32Array(fs.readFileSync(`${target}.data`).buffer.slice(0, 4))[0]).toBe(fill);
  }
});

it('a folder where the data go is left alone', () => {
  fs.mkdirSync(`${target}.data`);
  fs.writeFileSync(path.join(`${target}.data`, 'x'), 'x');
  expect(() => saveModel(weights([1 / 64]), target, { externalData: 'separate' })).toThrow(
    /model\.onnx: cannot be written: .*model\.onnx\.data is a folder/,
  );
  expect(fs.readdirSync(folder)).toEqual(['model.onnx.data']);
  expect(fs.readdirSync(`${target}.data`)).toEqual(['x']);
});

/** The command line, with a limit on the bytes of a file: a write is cut short, the next one fails. */
function limited(mib: number, args: readonly string[]) {
  const main = path.join(ROOT, 'exporter/cli/main.ts');
  const script = `ulimit -f ${mib * 1024}; exec "$@"`;
  return spawnSync(
    'bash',
    ['-c', script, 'bash', process.execPath, '--import', 'tsx', main, ...args],
    { cwd: ROOT, encoding: 'utf8', timeout: 60_000 },
  );
}

describe.each(['where nothing was', 'over an earlier pair'])(
  'a file may grow no more, %s',
  (what) => {
    it.each([
      ['in the first tensor of the data', [4, 4], 2, 'separate'],
      ['in the last', [4, 4], 6, 'separate'],
      ['in the model itself', [4, 4], 6, 'inline'],
    ])('%s', (_, sizes, limit, layout) => {
      const source = path.join(outer, 'source.onnx');
      saveModel(weights(sizes, 3), source, { externalData: 'separate' });
      const originals = [source, `${source}.data`].map((f) => fs.readFileSync(f));
      if (what !== 'where nothing was')
        saveModel(weights([1 / 64]), target, { externalData: 'separate' });
      const before = contents(folder);
      const args = [
        'rewrite',
        source,
        '-o',
        target,
        '--variant',
        'none',
        '--external-data',
        layout,
      ];
      const { status, stderr, stdout } = limited(limit, args);
      expect(stderr).toMatch(/^onnx-fla: \S*model\.onnx: cannot be written: EFBIG[^\n]*\n$/);
      expect(stdout).toBe('');
      expect(status).toBe(1);
      expect(contents(folder)).toEqual(before);
      for (const [i, f] of [source, `${source}.data`].entries())
        expect(fs.readFileSync(f).equals(originals[i]!)).toBe(true);
    });
  },
);

const disk = path.join(outer, 'disk');
const mounted = (() => {
  try {
    fs.mkdirSync(disk);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=12m', 'tmpfs', disk], { stdio: 'ignore' });
    return true;
  } catch {
    console.warn('write_failures.test.ts: full disks are SKIPPED, none can be mounted');
    return false;
  }
})();
afterAll(() => {
  if (mounted) execFileSync('umount', [disk]);
});

describe.skipIf(!mounted)('the disk gets full', () => {
  afterEach(() => {
    for (const f of fs.readdirSync(disk)) fs.rmSync(path.join(disk, f));
  });
  const save = async (sizes: readonly number[], options: Parameters<typeof saveModelAsync>[2]) => {
    const file = path.join(disk, 'model.onnx');
    saveModel(weights([1 / 64]), file, { externalData: 'separate' });
    const before = contents(disk);
    const error = await saveModelAsync(weights(sizes, 2), file, options).catch((e: unknown) => e);
    expect(error).toMatchObject({
      code: 'io',
      message: expect.stringMatching(/cannot be written: ENOSPC[^\n]*$/),
    });
    fs.rmSync(path.join(disk, 'filler'), { force: true });
    expect(contents(disk)).toEqual(before);
  };
  it('in the middle of the data', async () => {
    const fill = (done: number) => {
      if (done > 3 * MIB) return;
      const filler = path.join(disk, 'filler');
      expect(() => fs.writeFileSync(filler, Buffer.alloc(12 * MIB))).toThrow(/ENOSPC/);
      fs.truncateSync(filler, fs.statSync(filler).size - MIB); // room for a part of the next tensor
    };
    await save([3, 3, 3], { externalData: 'separate', onProgress: fill });
  });
  it('when the data is complete', async () => {
    await save([8, 6.5], { externalThreshold: 8 * MIB });
  });
});
