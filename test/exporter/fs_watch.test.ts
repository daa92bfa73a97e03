/** What the fuzzing relies on: no function of node:fs reaches a file outside of a folder unseen. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { type FsWatch, WATCHED, watchFs } from './support/fs_watch.js';

const outer = fs.mkdtempSync(path.join(fs.realpathSync(os.tmpdir()), 'fla-watch-'));
const folder = path.join(outer, 'model');
const inside = path.join(folder, 'in.bin');
const secret = path.join(outer, 'secret', 'file');
let watch: FsWatch;

/** Calls a function in whatever way it takes; only what it asks for is of interest. */
async function call(name: string, ...args: unknown[]): Promise<string[]> {
  const [holder, own] = name.startsWith('promises.') ? [fs.promises, name.slice(9)] : [fs, name];
  const fn = (holder as unknown as Record<string, (...a: unknown[]) => unknown>)[own]!;
  watch.start();
  try {
    const callback = holder === fs && !own.endsWith('Sync') ? [() => {}] : [];
    const result = fn.call(holder, ...args, ...callback);
    if (result instanceof Promise) await result.catch(() => {});
    const { close, destroy, on } = (result ?? {}) as Record<string, (...a: unknown[]) => void>;
    on?.call(result, 'error', () => {});
    (destroy ?? close)?.call(result);
  } catch {
    // It is not there, or not to be had with these arguments.
  }
  if (own === 'watchFile') fs.unwatchFile(secret);
  return watch.stop();
}

beforeAll(() => {
  fs.mkdirSync(folder);
  fs.writeFileSync(inside, 'x');
  fs.mkdirSync(path.dirname(secret));
  fs.symlinkSync(path.dirname(secret), path.join(folder, 'link'));
  watch = watchFs(folder);
});
afterAll(() => {
  watch.restore();
  fs.rmSync(outer, { recursive: true, force: true });
});

describe('outside of the folder', () => {
  it.each(WATCHED)('%s is seen', async (name) => {
    expect(await call(name, secret)).toContainEqual(expect.stringContaining(outer));
  });
  it.each(
    WATCHED.filter((n) => /(rename|copyFile|cp|link)(Sync)?$/.test(n) && !/unlink|read/.test(n)),
  )('%s is seen to write', async (name) => {
    expect(await call(name, inside, secret)).not.toEqual([]);
  });
  it.each([
    ['a URL', pathToFileURL(secret)],
    ['bytes', Buffer.from(secret)],
    ['a relative path', path.relative(process.cwd(), secret)],
    ['..', path.join(folder, '..', 'secret', 'file')],
    ['a link', path.join(folder, 'link', 'file')],
  ])('%s is seen', async (_, file) => {
    expect(await call('readFileSync', file)).toContainEqual(expect.stringContaining(secret));
  });
  it('named imports are seen', async () => {
    const { readFileSync } = await import('node:fs');
    const { readFile } = await import('node:fs/promises');
    watch.start();
    expect(() => readFileSync(secret)).toThrow();
    await expect(readFile(secret)).rejects.toThrow();
    expect(watch.stop()).toEqual(
      expect.arrayContaining([`readFileSync: ${secret}`, `readFile: ${secret}`]),
    );
  });
});

it.each(['readFileSync', 'promises.readFile', 'statSync', 'readFile'])(
  '%s inside is nothing to tell',
  async (name) => {
    expect(await call(name, inside)).toEqual([]);
  },
);

it('nothing is noted before it starts', () => {
  fs.existsSync(secret);
  watch.start();
  expect(watch.stop()).toEqual([]);
});
