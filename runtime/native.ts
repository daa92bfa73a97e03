import { existsSync, readFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { FlaError } from '../ops/error.js';

const PACKAGE = 'onnx-fla';

function packageRoot(): string {
  let folder = dirname(fileURLToPath(import.meta.url));
  for (;;) {
    const manifest = join(folder, 'package.json');
    if (existsSync(manifest) && JSON.parse(readFileSync(manifest, 'utf8')).name === PACKAGE)
      return folder;
    const parent = dirname(folder);
    if (parent === folder)
      throw new FlaError('not_found', `${PACKAGE}: package.json was not found above this file`);
    folder = parent;
  }
}

/** Folder of the compiled parts: `FLA_NATIVE_DIR`, or `build/native` of this package. */
export function nativeDir(): string {
  return process.env.FLA_NATIVE_DIR || join(packageRoot(), 'build', 'native');
}

/** What builds the compiled parts: in a checkout, or from the folder of a project that has the package installed. */
function buildCommand(): string {
  const installed = basename(dirname(packageRoot())) === 'node_modules';
  const script = 'npm run build:native';
  return installed ? `npm explore ${PACKAGE} -- ${script}` : script;
}

/**
 * Path of one compiled part, for example `fla_node.node`.
 *
 * @throws FlaError `not_found` when it was not built.
 */
export function nativeFile(name: string): string {
  const path = join(nativeDir(), name);
  if (existsSync(path)) return path;
  throw new FlaError(
    'not_found',
    `${path} was not found: build it with "${buildCommand()}" (needs CMake and a C++17 compiler), or set FLA_NATIVE_DIR to the folder that has it`,
  );
}

/** File name of the operator library on this platform. */
export const OPS_LIBRARY = process.platform === 'darwin' ? 'libfla_ops.dylib' : 'libfla_ops.so';
