// `npm test`: builds what is out of date, then runs every test. Extra arguments go to vitest.
import { spawnSync } from 'node:child_process';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

const run = (command, args) => {
  const { status } = spawnSync(command, args, { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
};
run('npm', ['run', '--silent', 'build']);
const vitest = dirname(createRequire(import.meta.url).resolve('vitest/package.json'));
run(process.execPath, [join(vitest, 'vitest.mjs'), 'run', ...process.argv.slice(2)]);
