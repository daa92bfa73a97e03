// Configures and builds the native parts (operator library, Node addon) into build/native with CMake.
//   --cuda [architectures]   with the CUDA kernels, for example --cuda "80-real;90a-real"; later builds keep them
//   --no-cuda                without them again
//   --verbose                prints what CMake prints
import { spawnSync } from 'node:child_process';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const quiet = !process.argv.includes('--verbose');

/** CMake's options for the CUDA kernels; what was chosen before stays when nothing is asked for. */
function cuda() {
  const at = process.argv.indexOf('--cuda');
  if (at < 0) return process.argv.includes('--no-cuda') ? ['-DFLA_BUILD_CUDA=OFF'] : [];
  const architectures = process.argv[at + 1];
  const given = architectures && !architectures.startsWith('--');
  return ['-DFLA_BUILD_CUDA=ON', ...(given ? [`-DCMAKE_CUDA_ARCHITECTURES=${architectures}`] : [])];
}

/** Runs one command; on failure prints what it said and a remedy, then exits 1. */
function step(command, args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    stdio: quiet ? 'pipe' : 'inherit',
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  });
  if (status === 0) return;
  process.stderr.write(`${stdout ?? ''}${stderr ?? ''}`);
  const why =
    error?.code === 'ENOENT' ? `${command} was not found` : `${command} failed (exit ${status})`;
  process.stderr.write(
    `\nonnx-fla: native build: ${why}.\nIt needs CMake >= 3.18 and a C++17 compiler (Debian: apt-get install cmake g++); with --cuda also nvcc 12 or newer.\n`,
  );
  process.exit(1);
}

step('cmake', [
  '-S',
  '.',
  '-B',
  'build/cmake',
  '-DCMAKE_BUILD_TYPE=Release',
  `-DNODE_EXECUTABLE=${process.execPath}`,
  ...cuda(),
]);
step('cmake', ['--build', 'build/cmake', '--parallel', String(availableParallelism())]);
