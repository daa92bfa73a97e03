// `npm run build:ts && node bench/webgpu/pack.mjs FOLDER`: the WebGPU bench as a folder that runs on a bare Linux x64 machine with a Vulkan
// driver (no Node, no npm, no network): FOLDER/run cases, FOLDER/run --seconds 300. About 180 MB, 50 MB as a .tar.xz.
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'vite';

const root = fileURLToPath(new URL('../..', import.meta.url));
const folder = process.argv[2];
if (!folder) throw new Error('usage: node bench/webgpu/pack.mjs FOLDER');
const target = path.resolve(folder);
const entry = path.join(root, 'dist/bench/webgpu/main.js');
if (!fs.existsSync(entry)) throw new Error(`${entry} is missing: npm run build:ts`);

const copy = (from, to) => {
  const file = path.join(target, to);
  fs.mkdirSync(path.dirname(file), { recursive: true });
  fs.copyFileSync(from, file);
};
const copyFromPackage = (name, files) => {
  for (const file of files) {
    copy(path.join(root, 'node_modules', name, file), path.join('node_modules', name, file));
  }
};

fs.rmSync(target, { recursive: true, force: true });
await build({
  root,
  configFile: false,
  logLevel: 'warn',
  build: {
    ssr: entry,
    outDir: path.join(target, 'dist'),
    emptyOutDir: true,
    target: 'node20',
    rollupOptions: { external: ['webgpu', /^onnxruntime-web/, /webgpu\/browser\.js$/] },
  },
  ssr: { noExternal: true },
});
// The root of the packed bench, as for sources: where results go and versions are read.
const { version } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8'));
const packed = { name: 'onnx-fla-bench-webgpu', private: true, type: 'module', version };
fs.writeFileSync(path.join(target, 'package.json'), JSON.stringify(packed));
copyFromPackage('webgpu', ['package.json', 'index.js', 'LICENSE.md', 'dist/linux-x64/dawn.node']);
copyFromPackage('onnxruntime-web', [
  'package.json',
  'dist/ort.webgpu.bundle.min.mjs',
  'dist/ort-wasm-simd-threaded.asyncify.mjs',
  'dist/ort-wasm-simd-threaded.asyncify.wasm',
]);
copy(process.execPath, 'node');
fs.chmodSync(path.join(target, 'node'), 0o755);

// Dawn needs a Vulkan loader by this name; Chromium brings one.
const loaders = ['/usr/lib/x86_64-linux-gnu/libvulkan.so.1', '/usr/lib/chromium/libvulkan.so.1'];
const loader = loaders.find((file) => fs.existsSync(file));
if (loader) copy(fs.realpathSync(loader), 'lib/libvulkan.so.1');
else console.warn(`no Vulkan loader in ${loaders.join(' or ')}: the other machine must have one`);

fs.writeFileSync(
  path.join(target, 'run'),
  `#!/bin/sh
# run [cases] [options of bench/webgpu/main.ts]. Where the driver is not found, set VK_DRIVER_FILES to its .json file.
here=$(cd "$(dirname "$0")" && pwd)
LD_LIBRARY_PATH="$here/lib\${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" exec "$here/node" --liftoff-only "$here/dist/main.js" "$@"
`,
);
fs.chmodSync(path.join(target, 'run'), 0o755);
const commit = execFileSync('git', ['rev-parse', '--short', 'HEAD'], { cwd: root });
fs.writeFileSync(path.join(target, 'COMMIT'), commit);
console.log(target);
