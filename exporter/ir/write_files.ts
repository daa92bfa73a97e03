import fs from 'node:fs';

/** Under what name a file is written before it is complete. */
export const unfinished = (file: string): string => `${file}.tmp-${process.pid}`;

/** Writes all bytes; the system may take a part only, as before a disk is full. */
export function writeAll(fd: number, bytes: Uint8Array, position: number): void {
  for (let done = 0; done < bytes.length; ) {
    done += fs.writeSync(fd, bytes, done, bytes.length - done, position + done);
  }
}

/**
 * Puts files that were written under their unfinished names where they belong, all of them or none: those that they replace are kept
 * aside until all are in place.
 *
 * @throws the error of the system; what was there before is there again, or the message says where it is
 */
export function replaceFiles(files: readonly string[]): void {
  const undo: (() => void)[] = [];
  const kept: { file: string; old: string }[] = [];
  const last = files.at(-1)!; // replaced in one step: it need not be kept
  try {
    for (const file of files) {
      const there = fs.lstatSync(file, { throwIfNoEntry: false });
      if (there?.isDirectory()) throw new Error(`${file} is a folder`);
      if (there && file !== last) {
        const old = `${file}.old-${process.pid}`;
        fs.renameSync(file, old);
        undo.push(() => fs.renameSync(old, file));
        kept.push({ file, old });
      }
      fs.renameSync(unfinished(file), file);
      if (!there) undo.push(() => fs.rmSync(file));
    }
  } catch (error) {
    try {
      for (const back of undo.reverse()) back();
    } catch {
      const left = kept.filter(({ old }) => fs.existsSync(old));
      const where = left.map(({ file, old }) => `what ${file} held is in ${old}`).join(', ');
      throw new Error(`${(error as Error).message}; ${where}`, { cause: error });
    }
    throw error;
  }
  for (const { old } of kept) fs.rmSync(old, { force: true });
}

/**
 * Writes files that appear complete, all of them or none.
 *
 * @throws the error of the system; nothing is left of them, and what was there before is there still
 */
export function writeFiles(files: Readonly<Record<string, string | Uint8Array>>): void {
  const names = Object.keys(files);
  try {
    for (const name of names) fs.writeFileSync(unfinished(name), files[name]!);
    replaceFiles(names);
  } catch (error) {
    for (const name of names) fs.rmSync(unfinished(name), { force: true });
    throw error;
  }
}
