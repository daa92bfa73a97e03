/**
 * A model of 3 GB: rewritten in little memory, and nothing is left behind where the disk is too small or someone interrupts.
 * FLA_LARGE_GIB=20 makes it as large, of bytes that are written and compared in place of a sparse file, and prints what it took.
 */
import { execFileSync, spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { loadModel, type Model, makeNode, modelBytes } from '../../exporter/index.js';
import { externalLocation } from '../../exporter/ir/tensor.js';
import { ROOT } from '../support/models.js';
import { FAMILIES, Writer } from './support/families.js';
import { makeLayer } from './support/layer.js';

const GIB = 2 ** 30;
const LARGE = process.env.FLA_LARGE_GIB;
const TABLES = Number(LARGE ?? 3); // of 1 GiB
const DISK = (LARGE ? 2 * TABLES + 15 : 8) * GIB; // the model (sparse, unless it is that large), its copy, and air
const PATIENCE_MS = TABLES * 100_000;
const PEAK_MIB = 700; // of the whole process, Node and ONNX Runtime included

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'fla-large-'));
const file = path.join(folder, 'large.onnx');
const output = path.join(folder, 'out', 'rewritten.onnx');
const stat = fs.statfsSync(folder);
const free = stat.bavail * stat.bsize;
if (free < DISK)
  console.warn(`large_file.test.ts: SKIPPED, ${folder} has ${free} bytes of ${DISK} free`);

/** A layer of attention, and tables of 1 GiB whose first and last bytes are known. */
function largeModel(): Model {
  const model = FAMILIES[0]!.build(new Writer(makeLayer()));
  const { graph } = model.proto;
  for (let i = 0; i < TABLES; i++) {
    graph.initializer.push({
      name: `table_${i}`,
      dataType: 1,
      dims: [2 ** 15, 2 ** 13],
      dataLocation: 1,
      externalData: [
        { key: 'location', value: 'large.bin' },
        { key: 'offset', value: String(i * GIB) },
        { key: 'length', value: String(GIB) },
      ],
    });
    graph.node.push(makeNode('Gather', [`table_${i}`, 'row'], [`row_${i}`]));
    graph.output.push({
      name: `row_${i}`,
      type: { tensorType: { elemType: 1, shape: { dim: [{ dimValue: 2 ** 13 }] } } },
    });
  }
  graph.input.push({ name: 'row', type: { tensorType: { elemType: 7, shape: { dim: [] } } } });
  return model;
}

function mark(i: number): Buffer {
  return Buffer.from(`table ${i}`);
}

/** Bytes that are another in every piece of the file. */
function fill(fd: number): void {
  const piece = randomBytes(2 ** 24);
  for (let at = 0; at < TABLES * GIB; at += piece.length) {
    piece.writeDoubleLE(at, 8);
    fs.writeSync(fd, piece, 0, piece.length, at);
  }
}

function sameBytes(a: number, b: number, from: number, to: number): boolean {
  const [x, y] = [Buffer.alloc(2 ** 24), Buffer.alloc(2 ** 24)];
  for (let at = 0; at < GIB; at += x.length) {
    fs.readSync(a, x, 0, x.length, from + at);
    fs.readSync(b, y, 0, y.length, to + at);
    if (!x.equals(y)) return false;
  }
  return true;
}

function rewrite(args: readonly string[], env: NodeJS.ProcessEnv = {}) {
  const told = `process.on('exit', () => process.stderr.write('peak ' + process.resourceUsage().maxRSS))`;
  const child = spawn(
    process.execPath,
    [
      ...['--import', `data:text/javascript,${encodeURIComponent(told)}`],
      ...['--import', 'tsx', path.join(ROOT, 'exporter/cli/main.ts'), 'rewrite', ...args],
    ],
    { cwd: ROOT, stdio: ['ignore', 'pipe', 'pipe'], env: { ...process.env, ...env } },
  );
  const done = new Promise<{ code: number | null; stderr: string; peak: number }>((resolve) => {
    let stderr = '';
    child.stdout.resume();
    child.stderr.on('data', (data) => (stderr += data));
    child.on('close', (code) => {
      resolve({ code, stderr, peak: Number(/peak (\d+)$/.exec(stderr)?.[1]) / 1024 });
    });
  });
  return { child, done };
}

describe.skipIf(free < DISK)(`a model of ${TABLES} GB`, () => {
  beforeAll(() => {
    fs.writeFileSync(file, modelBytes(largeModel()));
    const fd = fs.openSync(path.join(folder, 'large.bin'), 'w');
    if (LARGE) fill(fd);
    for (let i = 0; i < TABLES; i++) {
      fs.writeSync(fd, mark(i), 0, undefined, i * GIB);
      fs.writeSync(fd, mark(i), 0, mark(i).length, (i + 1) * GIB - mark(i).length);
    }
    fs.closeSync(fd);
    fs.mkdirSync(path.dirname(output));
  }, PATIENCE_MS);
  afterAll(() => fs.rmSync(folder, { recursive: true, force: true }));

  it(
    'is rewritten in little memory, the original untouched',
    async () => {
      const originals = [file, path.join(folder, 'large.bin')];
      const state = () => originals.map((f) => [fs.statSync(f).size, fs.statSync(f).mtimeMs]);
      const before = state();
      const start = performance.now();
      const { code, stderr, peak } = await rewrite([file, '-o', output]).done;
      const seconds = (performance.now() - start) / 1000;
      if (LARGE)
        console.log(`${TABLES} GiB: ${seconds.toFixed(1)} s, ${peak.toFixed(0)} MiB at most`);
      expect(stderr).toMatch(/peak \d+$/);
      expect(code, stderr).toBe(0);
      expect(peak).toBeLessThan(PEAK_MIB);
      expect(fs.readdirSync(path.dirname(output)).sort()).toEqual([
        'rewritten.onnx',
        'rewritten.onnx.data',
      ]);
      const model = loadModel(output);
      const fd = fs.openSync(`${output}.data`, 'r');
      const old = fs.openSync(originals[1]!, 'r');
      for (let i = 0; i < TABLES; i++) {
        const where = externalLocation(model.graph.initializer(`table_${i}`)!)!;
        expect(where).toMatchObject({ location: 'rewritten.onnx.data', length: GIB });
        for (const at of [where.offset, where.offset + GIB - mark(i).length]) {
          const bytes = Buffer.alloc(mark(i).length);
          fs.readSync(fd, bytes, 0, bytes.length, at);
          expect(bytes).toEqual(mark(i));
        }
        if (LARGE) expect(sameBytes(old, fd, i * GIB, where.offset)).toBe(true);
      }
      for (const open of [fd, old]) fs.closeSync(open);
      for (const f of fs.readdirSync(path.dirname(output)))
        fs.rmSync(path.join(path.dirname(output), f));
      expect(state()).toEqual(before);
    },
    PATIENCE_MS,
  );

  it('shares its weights with the rewritten model in the same folder', async () => {
    const beside = path.join(folder, 'shared.onnx');
    const { code, stderr } = await rewrite([file, '-o', beside, '--external-data', 'share']).done;
    expect(code, stderr).toBe(0);
    expect(fs.statSync(beside).size).toBeLessThan(2 ** 20);
    expect(fs.existsSync(`${beside}.data`)).toBe(false);
    const table = loadModel(beside).graph.initializer('table_1')!;
    expect(externalLocation(table)).toEqual({ location: 'large.bin', offset: GIB, length: GIB });
    fs.rmSync(beside);
  });

  it.each([
    ['share', /can be shared by files in its own folder only/],
    [
      'inline',
      new RegExp(
        `a model file ends at 2 GB, received ${String(TABLES * GIB).slice(0, 5)}\\d+ bytes`,
      ),
    ],
  ])('refuses --external-data %s where that is not possible', async (layout, message) => {
    const { code, stderr } = await rewrite([file, '-o', output, '--external-data', layout]).done;
    expect(code).toBe(1);
    expect(stderr).toMatch(message);
    expect(fs.readdirSync(path.dirname(output))).toEqual([]);
  });

  it(
    'leaves nothing behind when it is interrupted',
    async () => {
      const { child, done } = rewrite([file, '-o', output]);
      const copying = () =>
        fs
          .readdirSync(path.dirname(output))
          .some((f) => fs.statSync(path.join(path.dirname(output), f)).size > (TABLES * GIB) / 2);
      while (!copying() && child.exitCode === null) await new Promise((r) => setTimeout(r, 5));
      child.kill('SIGINT');
      expect((await done).code).toBe(130);
      expect(fs.readdirSync(path.dirname(output))).toEqual([]);
    },
    PATIENCE_MS,
  );

  const small = path.join(folder, 'small-disk');
  const mounted = (() => {
    try {
      fs.mkdirSync(small);
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=200m', 'tmpfs', small], {
        stdio: 'ignore',
      });
      return true;
    } catch {
      console.warn(
        'large_file.test.ts: a full disk is SKIPPED, no small file system can be mounted',
      );
      return false;
    }
  })();
  afterAll(() => {
    if (mounted) execFileSync('umount', [small]);
  });
  it.skipIf(!mounted)(
    'leaves nothing behind when the disk is full',
    async () => {
      const { code, stderr } = await rewrite([file, '-o', path.join(small, 'out.onnx')]).done;
      expect(code).toBe(1);
      expect(stderr).toMatch(
        /out\.onnx: cannot be written: its external data needs \d+ bytes, .* has \d+ free/,
      );
      expect(fs.readdirSync(small)).toEqual([]);
    },
    120_000,
  );
});
