/** Tells which files the code under test asks node:fs for, whichever of its functions it uses. */
import fs from 'node:fs';
import { syncBuiltinESMExports } from 'node:module';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

type Functions = Record<string, (...args: unknown[]) => unknown>;

/** Take a second path. */
const TWO_PATHS = /^(rename|copyFile|cp|link|symlink)(Sync)?$/;
/** Look at a name, not at what it links to. */
const NAMES_ONLY = /^(exists|lstat|lchown|lchmod|lutimes|readlink|realpath|unlink|rm)(Sync)?$/;
/** Take a descriptor where others take a path, or nothing of either. */
const NO_PATH = /^(f(chmod|chown|datasync|stat|sync|truncate|utimes)|close|readv?|writev?)(Sync)?$/;
const isPathFunction = ([name, value]: [string, unknown]) =>
  typeof value === 'function' && /^[a-z]/.test(name) && !NO_PATH.test(name);

/** Names of the functions that are watched, those of node:fs/promises with `promises.` before them. */
export const WATCHED: readonly string[] = [
  ...Object.entries(fs)
    .filter(isPathFunction)
    .map(([name]) => name),
  ...Object.entries(fs.promises)
    .filter(isPathFunction)
    .map(([name]) => `promises.${name}`),
];

export interface FsWatch {
  start(): void;
  /** Ends a stretch that `start` began: what it asked for outside of the folder, as `function: path`. */
  stop(): string[];
  /** Puts the functions back. */
  restore(): void;
}

/** Puts itself before every function of node:fs and node:fs/promises that takes a path. */
export function watchFs(folder: string): FsWatch {
  const { realpathSync } = fs;
  const base = realpathSync(folder);
  let seen: Set<string> | undefined;
  const note = (name: string, value: unknown) => {
    if (!seen || !(typeof value === 'string' || value instanceof URL || Buffer.isBuffer(value)))
      return;
    const during = seen;
    seen = undefined; // realpathSync may use what is watched
    const lexical = path.resolve(value instanceof URL ? fileURLToPath(value) : String(value));
    const real = resolved(realpathSync, lexical, NAMES_ONLY.test(name));
    if (real !== base && !real.startsWith(base + path.sep)) during.add(`${name}: ${real}`);
    seen = during;
  };
  const undo: (() => void)[] = [];
  const wrap = (holder: Functions) => {
    for (const [name, original] of Object.entries(holder)) {
      if (!isPathFunction([name, original])) continue;
      const watched = function (this: unknown, ...args: unknown[]) {
        note(name, args[0]);
        if (TWO_PATHS.test(name)) note(name, args[1]);
        return original.apply(this, args);
      };
      Object.defineProperties(watched, Object.getOwnPropertyDescriptors(original));
      holder[name] = watched;
      undo.push(() => void (holder[name] = original));
    }
  };
  wrap(fs as unknown as Functions);
  wrap(fs.promises as unknown as Functions);
  syncBuiltinESMExports();
  return {
    start: () => void (seen = new Set()),
    stop() {
      const found = [...(seen ?? [])];
      seen = undefined;
      return found;
    },
    restore() {
      for (const back of undo) back();
      syncBuiltinESMExports();
    },
  };
}

/** Where a path leads, links on the way resolved; that of its last part unless only the name is meant. */
function resolved(realpath: typeof fs.realpathSync, file: string, nameOnly: boolean): string {
  const follow = (f: string) => {
    try {
      return realpath(f);
    } catch {
      return undefined;
    }
  };
  const whole = nameOnly ? undefined : follow(file);
  return whole ?? path.join(follow(path.dirname(file)) ?? path.dirname(file), path.basename(file));
}
