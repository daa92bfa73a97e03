/** What `onnx-fla/web` adds to a page. */
import { gzipSync } from 'node:zlib';
import { build, type Rollup, transformWithEsbuild } from 'vite';
import { expect, it } from 'vitest';
import { ROOT } from '../support/models.js';

const LIMIT = 60 * 1024;

/** All of the package's code that an import of `entry` brings, without onnxruntime-web, minified and compressed. */
async function sizeOf(entry: string): Promise<number> {
  const result = (await build({
    root: ROOT,
    configFile: false,
    logLevel: 'error',
    build: {
      write: false,
      lib: { entry: `${ROOT}/runtime/web/${entry}.ts`, formats: ['es'] },
      rollupOptions: { external: [/^onnxruntime-web/] },
    },
  })) as Rollup.RollupOutput[];
  let code = '';
  for (const { output } of result)
    for (const file of output) if (file.type === 'chunk') code += file.code;
  expect(code).not.toMatch(/from ?["']node:|protobufjs/);
  const { code: small } = await transformWithEsbuild(code, 'bundle.js', { minify: true });
  return gzipSync(small, { level: 9 }).length;
}

it.each(['index', 'jspi', 'register'])(
  '%s: at most 60 KB, minified and compressed',
  async (entry) => {
    const bytes = await sizeOf(entry);
    console.log(`onnx-fla/web (${entry}): ${bytes} bytes`);
    expect(bytes).toBeLessThan(LIMIT);
  },
);
