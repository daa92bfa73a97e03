// `npm test`: builds what is out of date, then runs every test. Extra arguments go to vitest. Tests in the browser and on the software
// GPU need Chromium: on Debian, as root, it is installed when it is missing; elsewhere set CHROMIUM_PATH. Without it those tests are
// skipped, or fail when CI is set.
import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

const run = (command, args) => {
  const { status } = spawnSync(command, args, { stdio: 'inherit' });
  if (status !== 0) process.exit(status ?? 1);
};

const chromium = () =>
  [
    process.env.CHROMIUM_PATH ?? '',
    '/usr/bin/chromium',
    '/usr/bin/chromium-browser',
    '/usr/bin/google-chrome',
  ].some((place) => place !== '' && existsSync(place));

function installChromium() {
  const apt = (...args) => {
    console.log(`npm test: apt-get ${args.join(' ')}`);
    const env = { ...process.env, DEBIAN_FRONTEND: 'noninteractive' };
    return spawnSync('apt-get', args, { stdio: 'inherit', env, timeout: 600_000 }).status === 0;
  };
  const install = () => apt('install', '-y', 'chromium');
  console.log('npm test: there is no Chromium, which tests in the browser need; it is installed:');
  return install() || (apt('update') && install());
}

const canInstall = () =>
  process.platform === 'linux' && process.getuid?.() === 0 && existsSync('/usr/bin/apt-get');

const args = process.argv.slice(2);
// A run of some tests that are not in the browser does not need one.
const paths = args.filter((arg) => /[/\\.]/.test(arg));
const wantsBrowser = paths.length === 0 || paths.some((path) => /web|wgsl/.test(path));
if (wantsBrowser && !chromium() && !(canInstall() && installChromium())) {
  console.warn(
    `npm test: there is no Chromium: tests in the browser ${process.env.CI ? 'will FAIL' : 'are SKIPPED'}. Debian: apt-get install chromium; elsewhere: CHROMIUM_PATH=/path/to/chrome`,
  );
}
run('npm', ['run', '--silent', 'build']);
const vitest = dirname(createRequire(import.meta.url).resolve('vitest/package.json'));
run(process.execPath, [join(vitest, 'vitest.mjs'), 'run', ...args]);
